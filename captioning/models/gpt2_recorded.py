"""GPT-2 driven one token at a time by recorded steps: a `Stepper` for GPUs, beside that of `gpt2_stepper`.

A recorded step finds everything where it was. So an image keeps its slot of a room as long as it is open, each word
that is said has a place of its own, and a step runs over all slots, a power of two of them, until half are empty:
then those in use move together. What differs from step to step is handed over in a few small tensors, and no
step waits for the GPU. Shapes: B images, N lines of K hypotheses, L slots, S places, P prefix, E width.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from captioning.decoding.recorded import record
from captioning.decoding.stepper import as_lines
from captioning.decoding.vocabulary import Vocabulary
from captioning.models.gpt2_weights import Gpt2Weights

#: The fewest slots of a room.
_FEWEST = 8
#: Steps for which there is room at once, and what numbers of places are multiples of: GPUs like their masks so.
_STEPS, _WHOLE = 20, 16
#: Rooms that are kept for batches to come, one for each number of beams.
_KEPT = 2


class Room:
    """Memory that stays where it is, and the steps that were recorded over it."""

    def __init__(self, weights: Gpt2Weights, pairs: Sequence[Tensor], *, slots: int, beams: int, places: int) -> None:
        """`pairs` (…, 2, H, D) are keys and values of each block, such as there is to be room for."""
        self.slots, self.beams, self.places = slots, beams, places
        self._weights = weights
        self._device = pairs[0].device
        self._steps: dict[int, Callable[[], None]] = {}
        # It is to be of use in and out of inference mode.
        with torch.inference_mode(False):
            make = partial(torch.zeros, device=self._device)
            self.tokens = make(slots, beams, dtype=torch.long)
            self.position = make(1, dtype=torch.long)
            #: Where in each slot the words (K,) of this step go.
            self.now = make(beams, dtype=torch.long)
            self.mask = make(slots, beams, places, dtype=weights.dtype)
            self.caches = [make(slots, places, *each.shape[-3:], dtype=each.dtype) for each in pairs]
            self.states = make(slots, beams, weights.width, dtype=weights.wide)

    def run(self, slots: int) -> None:
        """Read `tokens` of the first so many slots at `position`, and leave what follows from them in `states`."""
        if slots not in self._steps:
            self._steps[slots] = record(partial(self.step, slots), self._device)
        self._steps[slots]()

    def step(self, slots: int) -> None:
        """What `run` does, before it is recorded."""
        weights = self._weights
        x = weights.embed(weights.words(self.tokens[:slots]), self.position)
        for block, cache in zip(weights.blocks, self.caches, strict=True):
            query, pairs = block.ask(x)
            cache[:slots].index_copy_(1, self.now, pairs)
            x = block.answer(x, block.look(query, cache[:slots], mask=self.mask[:slots]))
        self.states[:slots] = weights.end(x)


class Rooms:
    """Rooms that wait for batches to come. Several threads may use them."""

    def __init__(self, weights: Gpt2Weights) -> None:
        self.weights = weights
        self._free: dict[int, Room] = {}
        self._lock = threading.Lock()

    def take(self, pairs: Sequence[Tensor], *, slots: int, beams: int, places: int) -> Room:
        """A room of at least that size, which is nobody else's until it is given back."""
        with self._lock:
            room = self._free.pop(beams, None)
        if room is None or room.slots < slots or room.places < places:
            room = Room(self.weights, pairs, slots=slots, beams=beams, places=places)
        return room

    def give_back(self, room: Room) -> None:
        """It is not needed any more."""
        with self._lock:
            self._free.pop(room.beams, None)
            self._free[room.beams] = room
            while len(self._free) > _KEPT:
                del self._free[next(iter(self._free))]


class RecordedGpt2Stepper:
    """A hypothesis's state is its image's slot, and its row of the mask."""

    def __init__(
        self, rooms: Rooms, vocabulary: Vocabulary, prefix: Tensor, *, check_length: Callable[[int], None]
    ) -> None:
        """`prefix` is (B, P, E); `check_length` hears how many positions are to be in use, and may raise."""
        self.vocabulary = vocabulary
        self._rooms = rooms
        self._prefix = prefix
        self._check_length = check_length
        self._length = 0
        self._room: Room | None = None
        self._leave: Callable[[], object] = lambda: None

    def start(self) -> Tensor:
        """States (B, E) that tell the first token."""
        self._length = self._used = self._prefix.shape[1]
        self._check_length(self._length)
        states, self._pairs = self._rooms.weights.read(self._prefix)
        self._leave()
        self._room = None
        # Slots that are run over, and those (N,) of the lines; what each hypothesis sees, (N, K, S).
        self._size = 0
        self._slots = torch.arange(len(self._prefix), device=self._prefix.device)
        self._mask = self._prefix.new_zeros(len(self._prefix), 1, self._length, dtype=self._rooms.weights.dtype)
        return states

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the hypotheses `rows`, both (R,) or (N, K); states (R, E)."""
        assert self._length, "start() comes first"
        self._length += 1
        self._check_length(self._length)
        device = self._prefix.device
        lines, ordered = as_lines(rows, device)
        count, beams = lines.shape
        before, each = self._mask.shape[:2]
        owners = torch.div(lines[:, 0], each, rounding_mode="floor")
        room = self._find_room(owners, beams, apart=not ordered or count > before)
        past = self._mask[owners[:, None], lines - owners[:, None] * each]
        said = slice(self._used, self._used + beams)
        self._mask = past.new_full((count, beams, room.places), -float("inf"))
        self._mask[:, :, : past.shape[2]] = past
        self._mask[:, :, said] = past.new_full((beams, beams), -float("inf")).fill_diagonal_(0)
        self._used += beams

        room.mask.index_copy_(0, self._slots, self._mask)
        room.tokens.index_copy_(0, self._slots, torch.as_tensor(tokens, device=device).view(count, beams))
        torch.arange(said.start, said.stop, out=room.now)
        room.position.fill_(self._length - 1)
        room.run(self._size)
        return room.states[self._slots].flatten(0, 1)

    def _find_room(self, owners: Tensor, beams: int, *, apart: bool) -> Room:
        """A room for the lines that go on from `owners` (N,) of those before, and a slot of it for each.

        They may keep their slots unless they are to be `apart`, since a line before goes on as several.
        """
        room, size = self._room, _power_of_two(len(owners))
        slots = self._slots[owners]
        if room is None:
            self._take(self._pairs, slots, size, beams)
            self._pairs = []
        elif beams != room.beams or size > room.slots or self._used + beams > room.places:
            self._take([cache[:, : self._used] for cache in room.caches], slots, size, beams)
        elif apart or 2 * size <= self._size:
            for cache in room.caches:
                cache[: len(slots), : self._used] = cache[slots, : self._used]
            self._settle(len(slots), size)
        else:
            self._slots = slots
        assert self._room is not None
        return self._room

    def _take(self, pairs: Sequence[Tensor], lines: Tensor, size: int, beams: int) -> None:
        """Another room for `lines` (N,) of `pairs`, keys and values (…, used, 2, H, D) of each block."""
        places = -(-(self._used + _STEPS * beams) // _WHOLE) * _WHOLE
        room = self._rooms.take(pairs, slots=size, beams=beams, places=places)
        # Slots and places that nobody sees are multiplied by nought, too: they must hold numbers.
        room.mask.zero_()
        for cache, old in zip(room.caches, pairs, strict=True):
            cache.zero_()
            cache[: len(lines), : self._used] = old[lines]
        self._leave()
        self._room = room
        self._leave = weakref.finalize(self, self._rooms.give_back, room)
        self._settle(len(lines), size)

    def _settle(self, count: int, size: int) -> None:
        """Lines have the first slots, in their order."""
        self._size = size
        self._slots = torch.arange(count, device=self._prefix.device)


def _power_of_two(count: int) -> int:
    return max(_FEWEST, 1 << (count - 1).bit_length())
