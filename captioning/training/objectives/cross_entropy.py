"""Cross entropy of the reference captions' next tokens, with label smoothing and scheduled sampling."""

import torch
from torch import Tensor
from torch.nn import functional

from captioning.models.base import PAD_TARGET, CaptionModel, TeacherForced
from captioning.training.batches import Batch
from captioning.training.objectives.base import Loss, Objective


class CrossEntropy(Objective):
    """Teacher forcing, with a share of the input tokens, rising to `scheduled_sampling`, sampled from the model."""

    def __init__(self, *, label_smoothing: float = 0.0, scheduled_sampling: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self.scheduled_sampling = scheduled_sampling

    def units(self, batch: Batch) -> int:
        """Target tokens."""
        return batch.num_targets

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """Cross entropy over the tokens of the batch's captions."""
        features = batch.features(model)
        inputs = None
        share = self.scheduled_sampling * self.progress
        if share:
            inputs = replace_with_samples(model, features, batch, share)
        scored = model(features, batch.captions, batch.image_index, inputs)
        total, plain = cross_entropy_sum(scored, batch.captions, label_smoothing=self.label_smoothing)
        return Loss(total, {"loss": float(plain)})


@torch.no_grad()
def replace_with_samples(model: CaptionModel, features: object, batch: Batch, share: float) -> Tensor:
    """The captions (N, T) with a `share` of their tokens replaced by samples from the model.

    Scheduled sampling (Bengio et al. 2015) in two parallel passes (Mihaylova & Martins 2019): each token
    is sampled given the reference tokens before it.
    """
    is_target = batch.captions != PAD_TARGET
    scored = model(features, batch.captions, batch.image_index)
    sampled = torch.full_like(batch.captions, PAD_TARGET)
    sampled[is_target] = torch.multinomial(scored.logits.float().softmax(-1), 1).squeeze(1)
    # PyTorch before 2026 would reuse the weights that autocast cast here under no_grad, and lose their gradients.
    torch.clear_autocast_cache()
    replaced = is_target & (torch.rand(is_target.shape, device=is_target.device) < share)
    return torch.where(replaced, sampled, batch.captions)


def cross_entropy_sum(scored: TeacherForced, captions: Tensor, *, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The summed loss to minimise, and the summed negative log-likelihood to report, in nats."""
    targets = captions[captions != PAD_TARGET]
    log_probs = scored.logits.float().log_softmax(-1)
    likelihood = functional.nll_loss(log_probs, targets, reduction="sum")
    loss = likelihood
    if label_smoothing:
        # Szegedy et al. 2016: part of the target's probability is spread evenly over the vocabulary.
        loss = (1 - label_smoothing) * likelihood - label_smoothing * log_probs.mean(-1).sum()
    if scored.penalty is not None:
        loss = loss + scored.penalty.sum()
    return loss, likelihood.detach()
