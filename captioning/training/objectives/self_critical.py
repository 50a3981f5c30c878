"""Self-critical training: the model's own captions, made likelier where they are worth more than their like.

REINFORCE with the mean of the image's other samples as the baseline (Luo 2020, "A better variant of
self-critical sequence training"; "new SCST"). Knows captions as tokens and text; what they are
worth a `Reward` says.
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
from captioning.training.fsdp import whole
from captioning.training.objectives.base import Loss, Objective
from captioning.training.objectives.reward import CiderReward, Reward, train_frequencies

__all__ = ["SelfCritical", "SelfCriticalSettings", "train_frequencies"]

#: Groups by length that samples are scored in, as many whatever the number of images.
_GROUPS = 4


@settings
class SelfCriticalSettings:
    """How captions are sampled and what they are paid for."""

    samples: Annotated[int, Ge(2)] = 5
    """Captions drawn an image."""

    temperature: Annotated[float, Gt(0)] = 1.0
    """Below 1 sharpens what is drawn from. After label smoothing, which spreads mass over all words, start with 0.5 to
    0.7: at 1 nearly all samples are nonsense, nothing good is found to learn from, and training collapses."""

    max_new_tokens: Annotated[int, Ge(1)] | None = None
    """The most tokens of a sample, its end counted; a sample that is cut there is worth nothing. Null: as in
    `decoding`."""

    bleu_weight: Annotated[float, Ge(0)] = 0.0
    """Points of reward for a sentence BLEU-4 of 1, beside CIDEr-D in 0 to 10."""

    between_weight: Annotated[float, Ge(0)] = 0.0
    """How many times the CIDEr-D of a caption with that other image of its pass which it fits best is taken off its
    reward, against captions that fit many photos. 0.3 to 1; needs `images_per_pass` of 8 or more."""

    cross_entropy_weight: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the plain loss on people's captions that is kept in, against captions that drift from theirs."""


class SelfCritical(Objective):
    """Samples captions, has them valued, and makes the better ones likelier.

    `scorer` has the document frequencies of the train split; `max_new_tokens` is the decoding's.
    The units are samples. A step's loss is the mean over samples of −advantage · Σ_t log p(token t)
    / max_new_tokens, the end token among the tokens: when to stop is learned too. The advantage
    is the reward less the mean reward of the image's other samples. The log-probabilities are summed
    and divided by a constant: divided by the sample's own length, each token of a long bad caption
    would be blamed less, and captions would grow. Drawn from and learned is the same distribution,
    logits / temperature without the tokens that are never written, without dropout. A sample that
    is cut off is worth nothing, so that truncated endings never pay.

    The loss of the policy gradient says nothing about progress; `reward` does. `log_prob` near 0
    with `distinct` falling means that samples are all alike and there is nothing left to learn.
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
        """Samples, of all images."""
        return len(batch.keys) * self.settings.samples

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """The policy gradient's loss on new samples of the batch's images, and what they were worth.

        Facts, as sums over samples: `reward`, `loss` (what is minimised), `length` in tokens,
        `log_prob` (mean of a sample's tokens: minus it estimates the entropy a token), `cut`, and
        `distinct` (1 for a sample that no earlier one of its image equals).
        """
        count = self.settings.samples
        with without_dropout(model):
            features = batch.features(model)
            sampled = self._sample(model, features)
            images = torch.arange(len(batch.keys), device=sampled.device).repeat_interleave(count)
            rewards, texts = self._value(sampled, batch)
            log_probs = self.log_probs(model, features, sampled, images)
            total = policy_loss(log_probs, rewards) / self.max_new_tokens
            share = self.settings.cross_entropy_weight
            if share:
                people = self._cross_entropy(model(features, batch.captions, batch.images), batch)
                total = (1 - share) * total + share * people
        lengths = (sampled != PAD_TARGET).sum(1)
        facts = {
            "loss": float(total.detach()),
            "reward": float(rewards.sum()),
            "length": float(lengths.sum()),
            "log_prob": float((log_probs.detach() / lengths).sum()),
            "cut": float(sum(text is None for each in texts for text in each)),
            "distinct": float(sum(len(set(each)) for each in texts)),
        }
        return Loss(total, facts)

    def log_probs(self, model: CaptionModel, features: object, captions: Tensor, images: Tensor) -> Tensor:
        """Log-probability (N,) of each of `captions` (N, T) under the distribution that samples are drawn from."""
        lengths = (captions != PAD_TARGET).sum(1)
        # Captions of like length together: half of all places are pads where few captions are long.
        order = lengths.argsort(stable=True)
        found = []
        for rows in order.tensor_split(min(_GROUPS, self.settings.samples)):
            group = captions[rows, : int(lengths[rows[-1]])]
            found.append(per_caption(self._token_log_probs(model(features, group, images[rows]), group), group))
        return torch.cat(found)[order.argsort()]

    def _token_log_probs(self, scored: TeacherForced, captions: Tensor) -> Tensor:
        """The same of each token, (K,)."""
        logits = scored.logits.float()
        if self.settings.temperature != 1:
            logits = logits / self.settings.temperature
        banned = torch.tensor(self._tokenizer.banned_ids, dtype=torch.long, device=logits.device)
        logits = logits.index_fill(1, banned, -float("inf"))
        return -functional.cross_entropy(logits, captions[captions != PAD_TARGET], reduction="none")

    def _sample(self, model: CaptionModel, features: object) -> Tensor:
        with torch.no_grad(), whole(model):
            sampled = sample(
                model.stepper(features),
                count=self.settings.samples,
                max_new_tokens=self.max_new_tokens,
                eos_id=self._tokenizer.eos_id,
                banned=self._tokenizer.banned_ids,
                temperature=self.settings.temperature,
                pad=PAD_TARGET,
            )
        # Before 2026 PyTorch's autocast kept these weights as it had cast them, without a way to their gradients.
        torch.clear_autocast_cache()
        return sampled

    def _value(self, sampled: Tensor, batch: Batch) -> tuple[Tensor, list[list[str | None]]]:
        """Rewards (B, K) and the texts, None for a sample that was cut."""
        texts = [self._text(tokens) for tokens in sampled.tolist()]
        by_image = [texts[at : at + self.settings.samples] for at in range(0, len(texts), self.settings.samples)]
        return self.reward(batch.keys, by_image, batch.references).to(sampled.device), by_image

    def _text(self, tokens: Sequence[int]) -> str | None:
        eos = self._tokenizer.eos_id
        return self._tokenizer.decode(tokens[: tokens.index(eos)]) if eos in tokens else None

    def _cross_entropy(self, scored: TeacherForced, batch: Batch) -> Tensor:
        """The plain loss of the people's captions, each image's as much as its samples; over max_new_tokens too."""
        asked = batch.captions != PAD_TARGET
        losses = functional.cross_entropy(scored.logits.float(), batch.captions[asked], reduction="none")
        if scored.penalty is not None:
            losses = losses + scored.penalty
        captions_each = batch.images.bincount(minlength=len(batch.keys))[batch.images]
        return (per_caption(losses, batch.captions) / captions_each).sum() * self.settings.samples / self.max_new_tokens


def policy_loss(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """−Σ advantage · log p over the K captions of each of B images: `log_probs` (B * K,), `rewards` (B, K).

    A caption's advantage is its reward less the mean of the image's other K − 1.
    """
    count = rewards.shape[1]
    advantages = (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)
    return -(advantages.flatten() * log_probs).sum()


def per_caption(values: Tensor, captions: Tensor) -> Tensor:
    """Sums (N,) of one value a token of `captions` (N, T), given in their order without pads."""
    rows = (captions != PAD_TARGET).nonzero()[:, 0]
    return values.new_zeros(len(captions)).index_add(0, rows, values)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and the mode as it was afterwards."""
    training = model.training
    model.eval()
    for module in model.modules():
        # cuDNN has gradients of a recurrence in training mode only; one of a single layer has no dropout.
        if isinstance(module, nn.RNNBase) and (module.num_layers == 1 or not module.dropout):
            module.training = True
    try:
        yield
    finally:
        model.train(training)
