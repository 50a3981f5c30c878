"""Captions drawn at random from a model's own distribution, as self-critical training needs them.

Nothing is forbidden or discouraged but the banned tokens: what is drawn must come from the very
distribution whose gradient is taken. Knows tokens and probabilities: no text, no images, no model.
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
    """`count` captions for each of the B images of `stepper`, drawn token by token from softmax(logits / temperature).

    Gives tokens (B * count, T) long, T at most `max_new_tokens`: an image's captions one after the
    other, each with its end token, then `pad`. A caption that was cut at `max_new_tokens` has no end
    token. `banned` ids are never drawn (the end token is not one of them). The first step runs one
    row an image, and a caption that is finished leaves the batch. The draws come from PyTorch's
    global random numbers. Raises `LogitsError` where the model's logits are not numbers.
    """
    assert count > 0
    assert max_new_tokens > 0
    assert temperature > 0
    states = stepper.start()
    device = states.device
    never = torch.tensor(sorted({int(token) for token in banned} - {eos_id}), dtype=torch.long, device=device)
    # Rows of the stepper's last answer that are gone on with, and the captions that they belong to.
    rows = torch.arange(len(states), device=device).repeat_interleave(count)
    captions = torch.arange(len(rows), device=device)
    tokens = torch.full((len(rows), max_new_tokens), pad, dtype=torch.long, device=device)
    length = 0
    probabilities = _probabilities(stepper.vocabulary.logits(states), never, temperature)[rows]
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
        probabilities = _probabilities(stepper.vocabulary.logits(states), never, temperature)
    return tokens[:, :length]


def _probabilities(logits: Tensor, never: Tensor, temperature: float) -> Tensor:
    """What the next token is drawn from, (R, V); a row is NaN throughout where a logit is no number."""
    return (logits.float() / temperature).index_fill(1, never, -float("inf")).softmax(1)


def _draw(probabilities: Tensor) -> Tensor:
    """One entry (R,) of each row of `probabilities` (R, V)."""
    if probabilities.device.type != "cpu":
        return torch.multinomial(probabilities, 1).squeeze(1)
    # On a CPU multinomial takes a random number an entry, and longer than the vocabulary's product; this
    # takes one a row. The sums never fall, and the point is below the last: what is found has a share.
    sums = probabilities.cumsum(1)
    total = sums[:, -1:]
    point = torch.minimum(torch.rand_like(total) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, point, right=True).squeeze(1)
