"""The decoder trained as a language model: cross entropy of captions without images."""

import math

import torch

from captioning.data.shards import ShardSet
from captioning.data.tokenizers import Tokenizer
from captioning.models.base import CaptionModel
from captioning.training.batches import Batch, batched
from captioning.training.objectives.base import Loss, Objective
from captioning.training.objectives.cross_entropy import cross_entropy_sum
from captioning.training.objectives.token_rows import token_rows
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers

_VALIDATION_BATCH = 160


class LanguageModel(Objective):
    """Next-token prediction on captions without images; validated by the perplexity of the split's captions."""

    scored_by_captions = False

    def __init__(self, tokenizer: Tokenizer, *, split: str, max_tokens: int, label_smoothing: float = 0.0) -> None:
        self._tokenizer = tokenizer
        self._split = split
        self._max_tokens = max_tokens
        self._label_smoothing = label_smoothing

    def units(self, batch: Batch) -> int:
        """Target tokens."""
        return batch.num_targets

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """Cross entropy over the tokens of the batch's captions."""
        scored = model.forward_text(batch.captions)
        total, plain = cross_entropy_sum(scored, batch.captions, label_smoothing=self._label_smoothing)
        return Loss(total, {"loss": float(plain)})

    @torch.no_grad()
    def validate(self, model: CaptionModel, shards: ShardSet, workers: Workers) -> dict[str, float]:
        """`loss` in nats per token of the captions of the split, `perplexity`, its exp, and `score`, minus the loss."""
        model.eval()
        place = {"rank": workers.rank, "world_size": workers.world_size}
        samples = epoch_samples(shards, self._split, epoch=0, seed=0, shuffle=False, **place)
        captions = (caption for sample in samples for caption in sample.captions)
        total, tokens = 0.0, 0
        for texts in batched(captions, _VALIDATION_BATCH):
            batch = Batch((), None, token_rows(texts, self._tokenizer, self._max_tokens), torch.arange(len(texts)))
            batch = batch.to(workers.device)
            scored = model.forward_text(batch.captions)
            total += float(cross_entropy_sum(scored, batch.captions, label_smoothing=0.0)[1])
            tokens += batch.num_targets
        total, count = workers.sum_each([total, tokens])
        loss = total / count
        return {"loss": loss, "perplexity": math.exp(loss), "score": -loss}
