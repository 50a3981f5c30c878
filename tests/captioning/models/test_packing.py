"""Captions packed into rows: each attends to itself and its head, at the positions it has alone."""

import random

import pytest
import torch

from captioning.models.packing import pack


def test_masks_and_positions() -> None:
    # Two heads of two places; captions of 3, 2 and 2 targets: input tokens 0, 1 | 2 | 3.
    packing = pack([3, 2, 2], [0, 0, 1], num_heads=2, head_length=2, first_position=5)
    [group] = packing.groups
    assert group.source.tolist() == [[0, 1, 4, 5, 6, 2, 3, 7]]
    assert group.positions.tolist() == [[5, 6, 7, 8, 7, 5, 6, 7]]
    sees = [[place for place, hidden in enumerate(row) if not hidden] for row in group.mask(torch.float32)[0, 0] < 0]
    assert sees == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [5], [5, 6], [5, 6, 7]]
    # A head's last place predicts each first target.
    assert packing.target_places.tolist() == [1, 2, 3, 1, 4, 6, 7]


def test_every_input_is_packed_once_with_little_padding() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 30) for _ in range(200)]
    packing = pack(lengths, range(200), num_heads=200, head_length=1)
    sources = torch.cat([group.source[group.owner >= 0] for group in packing.groups])
    assert sorted(sources.tolist()) == list(range(200 + sum(lengths) - 200))
    assert len(packing.target_places) == sum(lengths)
    places = sum(group.source.numel() for group in packing.groups)
    assert places < 1.05 * len(sources)
    assert max(group.source.shape[1] for group in packing.groups) <= 64


def test_rows_are_as_long_as_the_longest_head_with_its_captions() -> None:
    packing = pack([40, 41, 5], [0, 0, 1], num_heads=2, head_length=10)
    assert packing.groups[0].source.shape == (2, 10 + 39 + 40)


@pytest.mark.parametrize("lengths", [[], [0], [0, 3, 0]])
def test_captions_without_targets_have_no_places(lengths: list[int]) -> None:
    packing = pack(lengths, range(len(lengths)), num_heads=len(lengths), head_length=2)
    assert len(packing.target_places) == sum(lengths)


def test_padding_attends_to_something() -> None:
    """A fully masked row of attention would be NaN."""
    packing = pack([60, 2], [0, 1], num_heads=2, head_length=40)
    for group in packing.groups:
        assert (group.mask(torch.float32) == 0).any(-1).all()
