"""Cross entropy of the next token of the people's captions, with label smoothing and scheduled sampling."""

import torch
from torch import Tensor
from torch.nn import functional

from captioning.models.base import PAD_TARGET, CaptionModel, TeacherForced
from captioning.training.batches import Batch
from captioning.training.objectives.base import Loss, Objective


class CrossEntropy(Objective):
    """Teacher forcing. A share of the words read, rising to `scheduled_sampling`, are the model's own guesses."""

    def __init__(self, *, label_smoothing: float = 0.0, scheduled_sampling: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self.scheduled_sampling = scheduled_sampling

    def units(self, batch: Batch) -> int:
        """Tokens to learn from."""
        return batch.num_targets

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """Cross entropy over the tokens of the batch's captions."""
        features = batch.features(model)
        said = None
        share = self.scheduled_sampling * self.done
        if share:
            said = guessed(model, features, batch, share)
        scored = model(features, batch.captions, batch.images, said)
        total, plain = cross_entropy_sum(scored, batch.captions, label_smoothing=self.label_smoothing)
        return Loss(total, {"loss": float(plain)})


@torch.no_grad()
def guessed(model: CaptionModel, features: object, batch: Batch, share: float) -> Tensor:
    """The captions (N, T) with a `share` of their words replaced by what the model would have said there.

    Scheduled sampling (Bengio et al. 2015) in two parallel passes (Mihaylova & Martins 2019): the
    guesses are drawn from the model's distribution behind the people's own words.
    """
    asked = batch.captions != PAD_TARGET
    scored = model(features, batch.captions, batch.images)
    own = torch.full_like(batch.captions, PAD_TARGET)
    own[asked] = torch.multinomial(scored.logits.float().softmax(-1), 1).squeeze(1)
    # Before 2026 PyTorch's autocast kept these weights as it had cast them, without a way to their gradients.
    torch.clear_autocast_cache()
    replaced = asked & (torch.rand(asked.shape, device=asked.device) < share)
    return torch.where(replaced, own, batch.captions)


def cross_entropy_sum(scored: TeacherForced, captions: Tensor, *, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Summed loss to minimise, and the summed plain negative log-likelihood to report, in nats."""
    targets = captions[captions != PAD_TARGET]
    log_probs = scored.logits.float().log_softmax(-1)
    likelihood = functional.nll_loss(log_probs, targets, reduction="sum")
    loss = likelihood
    if label_smoothing:
        # Szegedy et al. 2016: a share of the target's mass spread evenly over the vocabulary.
        loss = (1 - label_smoothing) * likelihood - label_smoothing * log_probs.mean(-1).sum()
    if scored.penalty is not None:
        loss = loss + scored.penalty.sum()
    return loss, likelihood.detach()
