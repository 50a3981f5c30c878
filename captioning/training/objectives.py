"""What training makes small: cross entropy of the next token, summed over tokens."""

from torch import Tensor
from torch.nn import functional

from captioning.models.base import PAD_TARGET, TeacherForced


def cross_entropy_sum(scored: TeacherForced, captions: Tensor, *, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Summed loss to minimise, and the summed plain negative log-likelihood to report, in nats.

    Sums, not means: who divides must know the tokens of all workers and passes together.
    """
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
