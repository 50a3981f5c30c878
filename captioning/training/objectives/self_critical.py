"""Self-critical training: policy gradient on the rewards of captions sampled from the model.

REINFORCE with the mean reward of the image's other samples as the baseline (Luo 2020, "A better variant of
self-critical sequence training"; "new SCST"). The rewards are computed by a `Reward`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional

from captioning.config import settings
from captioning.data.tokenizers import Tokenizer
from captioning.decoding.sample import sample
from captioning.metrics.cider import CiderD
from captioning.models.base import PAD_TARGET, CaptionModel, TeacherForced
from captioning.training.batches import Batch
from captioning.training.fsdp import unsharded
from captioning.training.objectives.base import Loss, Objective
from captioning.training.objectives.reward import CiderReward, Reward, train_split_cider

__all__ = ["SelfCritical", "SelfCriticalSettings", "train_split_cider"]

#: Samples are scored in this many groups of similar length, to save padding.
_LENGTH_GROUPS = 4


@settings
class SelfCriticalSettings:
    """How captions are sampled and rewarded."""

    samples: Annotated[int, Ge(2)] = 5
    """Captions sampled per image."""

    temperature: Annotated[float, Gt(0)] = 1.0
    """The sampling temperature; below 1 sharpens the distribution. After training with label smoothing, which spreads
    probability over all words, start with 0.5 to 0.7: at 1 nearly all samples are nonsense, and training collapses."""

    max_new_tokens: Annotated[int, Ge(1)] | None = None
    """The maximum length of a sample in tokens, its end included; a sample that is truncated there has reward 0. Null:
    as in `decoding`."""

    bleu_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the sentence BLEU-4, in 0 to 1, in the reward; CIDEr-D, in 0 to 10, has weight 1."""

    between_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the penalty for captions that fit other photos: a caption's highest CIDEr-D with another image of its
    pass is subtracted from its reward. 0.3 to 1; needs `images_per_pass` of 8 or more."""

    cross_entropy_weight: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the cross entropy on the reference captions in the loss, which keeps captions close to them."""


class SelfCritical(Objective):
    """Samples captions and raises the probability of those with a higher reward than the image's other samples.

    `scorer` has the document frequencies of the train split; `max_new_tokens` is the decoding's.
    The units are samples. A step's loss is the mean over samples of −advantage · Σ_t log p(token t)
    / max_new_tokens, EOS included, so that the model also learns when to stop. The advantage is the reward
    less the mean reward of the image's other samples. The log-probabilities are summed and divided by a
    constant: divided by the sample's own length, each token of a long bad caption would be penalised less,
    and captions would grow. Sampling and training use the same distribution: logits / temperature without
    the banned tokens, without dropout. A truncated sample has reward 0.

    The policy-gradient loss does not measure progress; `reward` does. `log_prob` near 0 with `distinct`
    falling means that all samples are alike and there is nothing left to learn.
    """

    def __init__(
        self, settings: SelfCriticalSettings, tokenizer: Tokenizer, scorer: CiderD, *, max_new_tokens: int
    ) -> None:
        self.settings = settings
        self.max_new_tokens = settings.max_new_tokens or max_new_tokens
        self.reward: Reward = CiderReward(
            scorer, bleu_weight=settings.bleu_weight, between_weight=settings.between_weight
        )
        self._tokenizer = tokenizer

    def units(self, batch: Batch) -> int:
        """Samples of all images."""
        return len(batch.keys) * self.settings.samples

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """The policy-gradient loss on new samples of the batch's images.

        Metrics, as sums over samples: `reward`, `loss` (what is minimised), `length` in tokens,
        `log_prob` (mean over a sample's tokens; its negative estimates the entropy per token), `cut` (1 if
        truncated), and `distinct` (1 for a sample that equals no earlier one of its image).
        """
        count = self.settings.samples
        with without_dropout(model):
            features = batch.features(model)
            sampled = self._sample(model, features)
            images = torch.arange(len(batch.keys), device=sampled.device).repeat_interleave(count)
            rewards, texts = self._rewards(sampled, batch)
            log_probs = self.log_probs(model, features, sampled, images)
            total = policy_loss(log_probs, rewards) / self.max_new_tokens
            share = self.settings.cross_entropy_weight
            if share:
                cross_entropy = self._cross_entropy(model(features, batch.captions, batch.image_index), batch)
                total = (1 - share) * total + share * cross_entropy
        lengths = (sampled != PAD_TARGET).sum(1)
        metrics = {
            "loss": float(total.detach()),
            "reward": float(rewards.sum()),
            "length": float(lengths.sum()),
            "log_prob": float((log_probs.detach() / lengths).sum()),
            "cut": float(sum(text is None for each in texts for text in each)),
            "distinct": float(sum(len(set(each)) for each in texts)),
        }
        return Loss(total, metrics)

    def log_probs(self, model: CaptionModel, features: object, captions: Tensor, images: Tensor) -> Tensor:
        """Log-probability (N,) of each of `captions` (N, T) under the sampling distribution."""
        lengths = (captions != PAD_TARGET).sum(1)
        # Grouped by length: with a few long captions, half of all positions would be padding.
        order = lengths.argsort(stable=True)
        sums = []
        for rows in order.tensor_split(min(_LENGTH_GROUPS, self.settings.samples)):
            group = captions[rows, : int(lengths[rows[-1]])]
            sums.append(sum_per_caption(self._token_log_probs(model(features, group, images[rows]), group), group))
        return torch.cat(sums)[order.argsort()]

    def _token_log_probs(self, scored: TeacherForced, captions: Tensor) -> Tensor:
        """Log-probability (K,) of each token of `captions`."""
        logits = scored.logits.float()
        if self.settings.temperature != 1:
            logits = logits / self.settings.temperature
        banned = torch.tensor(self._tokenizer.banned_ids, dtype=torch.long, device=logits.device)
        logits = logits.index_fill(1, banned, -float("inf"))
        return -functional.cross_entropy(logits, captions[captions != PAD_TARGET], reduction="none")

    def _sample(self, model: CaptionModel, features: object) -> Tensor:
        with torch.no_grad(), unsharded(model):
            sampled = sample(
                model.stepper(features),
                count=self.settings.samples,
                max_new_tokens=self.max_new_tokens,
                eos_id=self._tokenizer.eos_id,
                banned=self._tokenizer.banned_ids,
                temperature=self.settings.temperature,
                pad=PAD_TARGET,
            )
        # PyTorch before 2026 would reuse the weights that autocast cast here under no_grad, and lose their gradients.
        torch.clear_autocast_cache()
        return sampled

    def _rewards(self, sampled: Tensor, batch: Batch) -> tuple[Tensor, list[list[str | None]]]:
        """Rewards (B, K) and the texts, None for a truncated sample."""
        texts = [self._text(tokens) for tokens in sampled.tolist()]
        by_image = [texts[at : at + self.settings.samples] for at in range(0, len(texts), self.settings.samples)]
        return self.reward(batch.keys, by_image, batch.references).to(sampled.device), by_image

    def _text(self, tokens: Sequence[int]) -> str | None:
        eos = self._tokenizer.eos_id
        return self._tokenizer.decode(tokens[: tokens.index(eos)]) if eos in tokens else None

    def _cross_entropy(self, scored: TeacherForced, batch: Batch) -> Tensor:
        """Cross entropy of the references / max_new_tokens; each image weighs as much as its samples together."""
        is_target = batch.captions != PAD_TARGET
        losses = functional.cross_entropy(scored.logits.float(), batch.captions[is_target], reduction="none")
        if scored.penalty is not None:
            losses = losses + scored.penalty
        captions_each = batch.image_index.bincount(minlength=len(batch.keys))[batch.image_index]
        per_image = sum_per_caption(losses, batch.captions) / captions_each
        return per_image.sum() * self.settings.samples / self.max_new_tokens


def policy_loss(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """−Σ advantage · log p over the K captions of each of B images: `log_probs` (B * K,), `rewards` (B, K).

    A caption's advantage is its reward less the mean of the image's other K − 1.
    """
    count = rewards.shape[1]
    advantages = (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)
    return -(advantages.flatten() * log_probs).sum()


def sum_per_caption(values: Tensor, captions: Tensor) -> Tensor:
    """Sums (N,) over each of `captions` (N, T) of `values` (K,), one for each token that is not padding."""
    rows = (captions != PAD_TARGET).nonzero()[:, 0]
    return values.new_zeros(len(captions)).index_add(0, rows, values)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the previous mode afterwards."""
    training = model.training
    model.eval()
    for module in model.modules():
        # cuDNN computes gradients of an RNN in training mode only; a single layer has no dropout.
        if isinstance(module, nn.RNNBase) and (module.num_layers == 1 or not module.dropout):
            module.training = True
    try:
        yield
    finally:
        model.train(training)
