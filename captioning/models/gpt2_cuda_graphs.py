"""GPT-2 decoded one token at a time by CUDA graphs: a `Stepper` for GPUs, beside that of `gpt2_stepper`.

A captured step finds its inputs and outputs at fixed addresses. So an image keeps its slot of a workspace while
it is open, and the tokens of each step have cache entries of their own. A step runs over a power of two of
slots; once half of them are empty, those in use are compacted. What differs between steps is copied into a few
small tensors, and no step waits for the GPU. Shapes: B images, N groups of K hypotheses, L slots, S cache
entries, P prefix, E width.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from captioning.decoding.cuda_graphs import capture
from captioning.decoding.lm_head import LMHead
from captioning.decoding.stepper import as_groups
from captioning.models.gpt2_weights import Gpt2Weights

#: The fewest slots of a workspace.
_MIN_SLOTS = 8
#: Steps that entries are allocated for at once, and what numbers of entries are multiples of: attention kernels
#: want aligned masks.
_STEPS_AHEAD, _ENTRY_MULTIPLE = 20, 16
#: Workspaces kept for later batches, one for each number of beams.
_MAX_FREE = 2


class Workspace:
    """Memory at fixed addresses, and the steps captured over it."""

    def __init__(
        self, weights: Gpt2Weights, keys_values: Sequence[Tensor], *, slots: int, beams: int, entries: int
    ) -> None:
        """`keys_values` (…, 2, H, D) of each block give the caches' shapes and types."""
        self.slots, self.beams, self.entries = slots, beams, entries
        self._weights = weights
        self._device = keys_values[0].device
        self._steps: dict[int, Callable[[], None]] = {}
        # Usable both in and out of inference mode.
        with torch.inference_mode(False):
            make = partial(torch.zeros, device=self._device)
            self.tokens = make(slots, beams, dtype=torch.long)
            self.position = make(1, dtype=torch.long)
            #: The entries (K,) of each slot that this step's tokens are written to.
            self.new_entries = make(beams, dtype=torch.long)
            self.mask = make(slots, beams, entries, dtype=weights.dtype)
            self.caches = [make(slots, entries, *each.shape[-3:], dtype=each.dtype) for each in keys_values]
            self.states = make(slots, beams, weights.width, dtype=weights.residual_dtype)

    def run(self, slots: int) -> None:
        """Run a step over the first `slots` slots: read `tokens` at `position`, write `states`."""
        if slots not in self._steps:
            self._steps[slots] = capture(partial(self.step, slots), self._device)
        self._steps[slots]()

    def step(self, slots: int) -> None:
        """The step that `run` captures."""
        weights = self._weights
        x = weights.add_positions(weights.embed(self.tokens[:slots]), self.position)
        for block, cache in zip(weights.blocks, self.caches, strict=True):
            query, keys_values = block.project(x)
            cache[:slots].index_copy_(1, self.new_entries, keys_values)
            x = block.output(x, block.attend(query, cache[:slots], mask=self.mask[:slots]))
        self.states[:slots] = weights.final_norm(x)


class WorkspacePool:
    """Workspaces kept for later batches. Thread-safe."""

    def __init__(self, weights: Gpt2Weights) -> None:
        self.weights = weights
        self._free: dict[int, Workspace] = {}
        self._lock = threading.Lock()

    def acquire(self, keys_values: Sequence[Tensor], *, slots: int, beams: int, entries: int) -> Workspace:
        """A workspace of at least that size, for the caller alone until it is released."""
        with self._lock:
            workspace = self._free.pop(beams, None)
        if workspace is None or workspace.slots < slots or workspace.entries < entries:
            workspace = Workspace(self.weights, keys_values, slots=slots, beams=beams, entries=entries)
        return workspace

    def release(self, workspace: Workspace) -> None:
        """Return a workspace to the pool, which drops the oldest beyond its bound."""
        with self._lock:
            self._free.pop(workspace.beams, None)
            self._free[workspace.beams] = workspace
            while len(self._free) > _MAX_FREE:
                del self._free[next(iter(self._free))]


class CudaGraphGpt2Stepper:
    """A hypothesis's state is its image's slot and its row of the mask."""

    def __init__(
        self, pool: WorkspacePool, lm_head: LMHead, prefix: Tensor, *, check_length: Callable[[int], None]
    ) -> None:
        """`prefix` is (B, P, E); `check_length` is called with the number of positions needed, and may raise."""
        self.lm_head = lm_head
        self._pool = pool
        self._prefix = prefix
        self._check_length = check_length
        self._length = 0
        self._workspace: Workspace | None = None
        self._release: Callable[[], object] = lambda: None

    def start(self) -> Tensor:
        """States (B, E) that predict the first token."""
        self._length = self._used = self._prefix.shape[1]
        self._check_length(self._length)
        states, self._prefix_keys_values = self._pool.weights.prefill(self._prefix)
        self._release()
        self._workspace = None
        # The number of slots that steps run over, the slot (N,) of each group, and each hypothesis's mask (N, K, S).
        self._size = 0
        self._slots = torch.arange(len(self._prefix), device=self._prefix.device)
        self._mask = self._prefix.new_zeros(len(self._prefix), 1, self._length, dtype=self._pool.weights.dtype)
        return states

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the hypotheses `rows`, both (R,) or (N, K); returns states (R, E)."""
        assert self._length, "start() comes first"
        self._length += 1
        self._check_length(self._length)
        device = self._prefix.device
        groups, grouped = as_groups(rows, device)
        count, beams = groups.shape
        previous_count, previous_beams = self._mask.shape[:2]
        parents = torch.div(groups[:, 0], previous_beams, rounding_mode="floor")
        workspace = self._prepare(parents, beams, branching=not grouped or count > previous_count)
        past = self._mask[parents[:, None], groups - parents[:, None] * previous_beams]
        new = slice(self._used, self._used + beams)
        self._mask = past.new_full((count, beams, workspace.entries), -float("inf"))
        self._mask[:, :, : past.shape[2]] = past
        self._mask[:, :, new] = past.new_full((beams, beams), -float("inf")).fill_diagonal_(0)
        self._used += beams

        workspace.mask.index_copy_(0, self._slots, self._mask)
        workspace.tokens.index_copy_(0, self._slots, torch.as_tensor(tokens, device=device).view(count, beams))
        torch.arange(new.start, new.stop, out=workspace.new_entries)
        workspace.position.fill_(self._length - 1)
        workspace.run(self._size)
        return workspace.states[self._slots].flatten(0, 1)

    def _prepare(self, parents: Tensor, beams: int, *, branching: bool) -> Workspace:
        """A workspace with a slot for each group, whose parents (N,) are among the previous groups.

        Groups keep their slots unless they are `branching`, several from one parent.
        """
        workspace, size = self._workspace, _power_of_two(len(parents))
        slots = self._slots[parents]
        if workspace is None:
            self._move(self._prefix_keys_values, slots, size, beams)
            self._prefix_keys_values = []
        elif beams != workspace.beams or size > workspace.slots or self._used + beams > workspace.entries:
            self._move([cache[:, : self._used] for cache in workspace.caches], slots, size, beams)
        elif branching or 2 * size <= self._size:
            for cache in workspace.caches:
                cache[: len(slots), : self._used] = cache[slots, : self._used]
            self._assign_slots(len(slots), size)
        else:
            self._slots = slots
        assert self._workspace is not None
        return self._workspace

    def _move(self, keys_values: Sequence[Tensor], rows: Tensor, size: int, beams: int) -> None:
        """Move to another workspace with `rows` (N,) of each block's `keys_values` (…, used, 2, H, D)."""
        entries = -(-(self._used + _STEPS_AHEAD * beams) // _ENTRY_MULTIPLE) * _ENTRY_MULTIPLE
        workspace = self._pool.acquire(keys_values, slots=size, beams=beams, entries=entries)
        # Masked slots and entries are multiplied by zero, so they must be finite.
        workspace.mask.zero_()
        for cache, old in zip(workspace.caches, keys_values, strict=True):
            cache.zero_()
            cache[: len(rows), : self._used] = old[rows]
        self._release()
        self._workspace = workspace
        self._release = weakref.finalize(self, self._pool.release, workspace)
        self._assign_slots(len(rows), size)

    def _assign_slots(self, count: int, size: int) -> None:
        """Give the groups the first `count` of `size` slots, in their order."""
        self._size = size
        self._slots = torch.arange(count, device=self._prefix.device)


def _power_of_two(count: int) -> int:
    return max(_MIN_SLOTS, 1 << (count - 1).bit_length())
