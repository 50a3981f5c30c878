"""GPT-2 decoded one token at a time after a prefix: a `Stepper` for the decoding engine.

The prefix is read once an image and shared by its hypotheses. All hypotheses of an image write to one
key/value cache, and a mask tells which entries are a hypothesis's own past. So keys and values are not
copied when beams branch or end, and entries that no hypothesis sees any longer are overwritten.
Shapes: B images, N groups of K hypotheses, R = N · K, P prefix, S cache entries, E width, H heads,
D width of a head.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.lm_head import LMHead
from captioning.decoding.stepper import as_groups
from captioning.models.gpt2_weights import Gpt2Weights

#: Steps that memory is allocated for at once. Five beams of 20 tokens need that of eleven.
_STEPS_AHEAD = 12
#: Caches grow by multiples of this many entries, the most that a processor sums at once: the sums of a group are
#: then bitwise the same, however many entries the other groups of its batch need.
_ENTRY_MULTIPLE = 16


class Gpt2Stepper:
    """A hypothesis's state is its group's cache and its row of the mask."""

    def __init__(
        self, weights: Gpt2Weights, lm_head: LMHead, prefix: Tensor, *, check_length: Callable[[int], None]
    ) -> None:
        """`prefix` is (B, P, E); `check_length` is called with the number of positions needed, and may raise."""
        self.lm_head = lm_head
        self._weights = weights
        self._prefix = prefix
        self._check_length = check_length
        self._caches: list[_Cache] = []
        self._mask: Tensor | None = None
        self._length = 0
        self._groups = 0

    def start(self) -> Tensor:
        """States (B, E) that predict the first token."""
        self._length = self._prefix.shape[1]
        self._check_length(self._length)
        states, keys_values = self._weights.prefill(self._prefix)
        self._caches = [_Cache(each) for each in keys_values]
        self._mask = None
        # 0 makes the first `advance` allocate memory for the steps to come.
        self._groups = 0
        return states

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the hypotheses `rows`, both (R,) or (N, K); returns states (R, E)."""
        assert self._length, "start() comes first"
        self._length += 1
        self._check_length(self._length)
        device = self._prefix.device
        groups, grouped = as_groups(rows, device)
        count, beams = groups.shape
        entries = self._reorder(groups, grouped=grouped)
        embeddings = self._weights.embed(torch.as_tensor(tokens, device=device).reshape(count, beams))
        x = self._weights.add_positions(embeddings, slice(self._length - 1, self._length))
        for block, cache in zip(self._weights.blocks, self._caches, strict=True):
            query, keys_values = block.project(x)
            x = block.output(x, block.attend(query, cache.write(keys_values, entries), mask=self._mask))
        return self._weights.final_norm(x).flatten(0, 1)

    def _reorder(self, groups: Tensor, *, grouped: bool) -> Tensor | None:
        """Select the rows `groups` (N, K) of the previous step, which had N' groups of K'.

        Returns the entries (R,), over the caches of all groups, that the new tokens are written to; None for the
        last entry of each group.
        """
        count, beams = groups.shape
        previous_beams = 1 if self._mask is None else self._mask.shape[1]
        parents = torch.div(groups[:, 0], previous_beams, rounding_mode="floor")
        if count != self._groups or not grouped:
            for cache in self._caches:
                cache.select(parents, reserve=_STEPS_AHEAD * beams)
            self._groups = count
        if beams == 1 and self._mask is None:
            # A group is one hypothesis, which sees all of its cache.
            for cache in self._caches:
                cache.grow(1)
            return None
        if self._mask is None:
            past = groups.new_zeros(count, beams, self._length - 1, dtype=self._weights.dtype)
        else:
            past = self._mask[parents[:, None], groups - parents[:, None] * previous_beams]
        # The new tokens go to the first entries that no hypothesis of the group sees, or to new ones.
        unused = past.isinf().all(dim=1)
        size = unused.shape[1]
        missing = beams - int(unused.sum(dim=1).min())
        new = -(-(size + missing) // _ENTRY_MULTIPLE) * _ENTRY_MULTIPLE - size if missing > 0 else 0
        past = functional.pad(past, (0, new), value=-float("inf"))
        unused = functional.pad(unused, (0, new), value=True)
        entries = unused.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :beams]
        own = past.new_full((beams, beams), -float("inf")).fill_diagonal_(0)
        self._mask = past.scatter_(2, entries[:, None].expand(-1, beams, -1), own.expand(count, -1, -1))
        for cache in self._caches:
            cache.grow(new)
        return (torch.arange(count, device=entries.device)[:, None] * self._caches[0].capacity + entries).flatten()


class _Cache:
    """Keys and values (N, S, 2, H, D) of one block, in memory that more entries fit into."""

    def __init__(self, keys_values: Tensor) -> None:
        self._memory = keys_values
        self._size = keys_values.shape[1]

    @property
    def capacity(self) -> int:
        """Entries of a group that there is memory for."""
        return self._memory.shape[1]

    def select(self, groups: Tensor, *, reserve: int) -> None:
        """Keep the caches of `groups`, in their order, with memory for `reserve` more entries."""
        self._reallocate(reserve, groups)

    def grow(self, entries: int) -> None:
        """Add `entries` entries, which are still to be written."""
        size = self._size + entries
        if size > self.capacity:
            self._reallocate(size)
        # Masked entries are multiplied by zero, so they must be finite.
        self._memory[:, self._size : size] = 0.0
        self._size = size

    def write(self, keys_values: Tensor, entries: Tensor | None) -> Tensor:
        """Write keys and values (N, K, 2, H, D) to `entries` (R,), or to the last ones; returns the whole cache."""
        if entries is None:
            self._memory[:, self._size - keys_values.shape[1] : self._size] = keys_values
        else:
            self._memory.flatten(0, 1).index_copy_(0, entries, keys_values.flatten(0, 1))
        return self._memory[:, : self._size]

    def _reallocate(self, reserve: int, groups: Tensor | None = None) -> None:
        old = self._memory[:, : self._size]
        count, size, *shape = old.shape
        self._memory = old.new_empty(count if groups is None else len(groups), size + reserve, *shape)
        self._memory[:, :size] = old if groups is None else old[groups]
