"""The recurrence for CPUs: states and gradients equal to PyTorch's LSTM over captions of unequal length."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from captioning.models.recurrence import Packed, recur

LENGTHS = [3, 1, 5, 5, 2]


def asked() -> Tensor:
    return torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]


def test_packing_is_pytorchs_and_can_be_undone() -> None:
    mask = asked()
    packed = Packed.of(mask)
    tokens = torch.arange(int(mask.sum()))
    padded = torch.zeros(5, 5, 1)
    padded[mask] = tokens[:, None].float()
    theirs = pack_padded_sequence(padded, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    assert packed.sizes == theirs.batch_sizes.tolist()
    assert tokens[packed.to_packed].tolist() == theirs.data[:, 0].long().tolist()
    assert tokens[packed.to_packed][packed.to_captions].tolist() == tokens.tolist()


@pytest.mark.parametrize(("low", "tolerance"), [(False, 1e-6), (True, 3e-2)])
def test_states_and_gradients_are_those_of_nn_lstm(low: bool, tolerance: float) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(6, 8, batch_first=True)
    inputs = torch.randn(5, 5, 6, requires_grad=True)
    first = [torch.randn(5, 8, requires_grad=True) for _ in range(2)]
    wanted = torch.randn(sum(LENGTHS), 8)
    mask = asked()
    packed = Packed.of(mask)

    sequence = pack_padded_sequence(inputs, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    theirs = pad_packed_sequence(lstm(sequence, (first[0][None], first[1][None]))[0], batch_first=True)[0][mask]
    leaves = [inputs, *first, *lstm.parameters()]
    their_gradients = torch.autograd.grad((theirs * wanted).sum(), leaves)

    gates = nn.functional.linear(inputs[mask], lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        states = recur(gates[packed.to_packed], *first, lstm.weight_hh_l0, packed)
    ours = states[packed.to_captions]
    our_gradients = torch.autograd.grad((ours * wanted).sum(), leaves)

    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_captions_without_a_token_have_no_gradient() -> None:
    packed = Packed.of(torch.tensor([[True, True], [False, False], [True, False]]))
    gates, weight = torch.randn(3, 16), torch.randn(16, 4)
    first = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    recur(gates, *first, weight, packed).sum().backward()
    for state in first:
        assert state.grad is not None
        assert state.grad[1].abs().max() == 0
        assert state.grad[[0, 2]].abs().min() > 0
