"""The decoder as a language model: cross entropy of captions without their images."""

import math

import torch

from captioning.data.shards import ShardSet
from captioning.data.tokenizers import Tokenizer
from captioning.models.base import CaptionModel
from captioning.training.batches import Batch, grouped
from captioning.training.objectives.base import Loss, Objective
from captioning.training.objectives.cross_entropy import cross_entropy_sum
from captioning.training.objectives.token_rows import token_rows
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers

_CAPTIONS_AT_ONCE = 160


class LanguageModel(Objective):
    """The next token of captions that are read without images; judged by the perplexity of the split's captions."""

    judged_by_captions = False

    def __init__(self, tokenizer: Tokenizer, *, split: str, max_tokens: int, label_smoothing: float = 0.0) -> None:
        self._tokenizer = tokenizer
        self._split = split
        self._max_tokens = max_tokens
        self._label_smoothing = label_smoothing

    def units(self, batch: Batch) -> int:
        """Tokens to learn from."""
        return batch.num_targets

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """Cross entropy over the tokens of the batch's captions."""
        scored = model.forward_text(batch.captions)
        total, plain = cross_entropy_sum(scored, batch.captions, label_smoothing=self._label_smoothing)
        return Loss(total, {"loss": float(plain)})

    @torch.no_grad()
    def validate(self, model: CaptionModel, shards: ShardSet, workers: Workers) -> dict[str, float]:
        """`loss`, nats a token of the split's captions; `perplexity`, its exponential; `score`, minus the loss."""
        model.eval()
        place = {"rank": workers.rank, "world": workers.world}
        samples = epoch_samples(shards, self._split, epoch=0, seed=0, shuffle=False, **place)
        captions = (caption for sample in samples for caption in sample.captions)
        total, tokens = 0.0, 0
        for some in grouped(captions, _CAPTIONS_AT_ONCE):
            batch = Batch((), None, token_rows(some, self._tokenizer, self._max_tokens), torch.arange(len(some)))
            batch = batch.to(workers.device)
            scored = model.forward_text(batch.captions)
            total += float(cross_entropy_sum(scored, batch.captions, label_smoothing=0.0)[1])
            tokens += batch.num_targets
        total, count = workers.sums([total, tokens])
        loss = total / count
        return {"loss": loss, "perplexity": math.exp(loss), "score": -loss}
