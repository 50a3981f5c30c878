"""Captions sampled from a model's own distribution, as self-critical training needs them.

Nothing is forbidden or discouraged but the banned tokens: samples must come from the very
distribution whose gradient is taken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.decoding.stepper import Stepper
from captioning.errors import LogitsError


@torch.no_grad()
def sample(
    stepper: Stepper,
    *,
    count: int,
    max_new_tokens: int,
    eos_id: int,
    banned: Sequence[int] = (),
    temperature: float = 1.0,
    pad: int = -100,
) -> Tensor:
    """Sample `count` captions for each of the B images of `stepper` from softmax(logits / temperature).

    Returns tokens (B * count, T) long, T at most `max_new_tokens`: the captions of an image are
    adjacent, each with its end token and then `pad`. A caption cut at `max_new_tokens` has no end
    token. `banned` ids are never sampled (the end token is not one of them). The first step runs one
    row an image, and finished captions leave the batch. Uses PyTorch's global random generator.
    Raises `LogitsError` where the model's logits are not finite.
    """
    assert count > 0
    assert max_new_tokens > 0
    assert temperature > 0
    states = stepper.start()
    device = states.device
    excluded = torch.tensor(sorted({int(token) for token in banned} - {eos_id}), dtype=torch.long, device=device)
    # The open rows among the stepper's last states, and the captions that they belong to.
    rows = torch.arange(len(states), device=device).repeat_interleave(count)
    captions = torch.arange(len(rows), device=device)
    tokens = torch.full((len(rows), max_new_tokens), pad, dtype=torch.long, device=device)
    length = 0
    probabilities = _probabilities(stepper.lm_head.logits(states), excluded, temperature)[rows]
    while len(captions):
        broken = ~probabilities[:, 0].isfinite()
        if broken.any():
            raise LogitsError.of(sorted(set((captions[broken] // count).tolist())))
        chosen = _draw(probabilities)
        tokens[captions, length] = chosen
        length += 1
        open_ = (chosen != eos_id).nonzero().squeeze(1)
        if length == max_new_tokens or len(open_) == 0:
            break
        rows = rows[open_] if length == 1 else open_
        captions = captions[open_]
        states = stepper.advance(chosen[open_, None], rows[:, None])
        probabilities = _probabilities(stepper.lm_head.logits(states), excluded, temperature)
    return tokens[:, :length]


def _probabilities(logits: Tensor, excluded: Tensor, temperature: float) -> Tensor:
    """Probabilities (R, V) of the next token; NaN throughout a row whose logits are not finite."""
    return (logits.float() / temperature).index_fill(1, excluded, -float("inf")).softmax(1)


def _draw(probabilities: Tensor) -> Tensor:
    """One sampled token (R,) for each row of `probabilities` (R, V)."""
    if probabilities.device.type != "cpu":
        return torch.multinomial(probabilities, 1).squeeze(1)
    # On a CPU multinomial draws a random number for every entry, which takes longer than the output layer;
    # inverting the cumulative distribution needs one a row. The sums never decrease and the point is below the
    # last of them, so the entry found has a probability above zero.
    sums = probabilities.cumsum(1)
    total = sums[:, -1:]
    point = torch.minimum(torch.rand_like(total) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, point, right=True).squeeze(1)
