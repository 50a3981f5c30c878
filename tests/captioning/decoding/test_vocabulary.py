"""The scores of a vocabulary, whole or in pieces, are those of plain logits."""

import pytest
import torch

from captioning.decoding.vocabulary import Scores, Vocabulary

NEVER = -float("inf")
#: Words and rows: less than a block, one piece, many pieces, more rows than are taken at once.
SIZES = [(30, 3), (700, 5), (5000, 7), (1500, 400)]


@pytest.fixture(params=SIZES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Vocabulary, torch.Tensor, torch.Tensor]:
    words, rows = request.param
    generator = torch.Generator().manual_seed(words)
    weight, states = torch.randn(words, 16, generator=generator), torch.randn(rows, 16, generator=generator)
    bias = torch.randn(words, generator=generator)
    return Vocabulary(weight, bias), states, states @ weight.T + bias


def test_logits_and_the_normaliser(case: tuple[Vocabulary, torch.Tensor, torch.Tensor]) -> None:
    vocabulary, states, logits = case
    torch.testing.assert_close(vocabulary.logits(states), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vocabulary.score(states).normaliser, logits.logsumexp(1), atol=1e-4, rtol=1e-4)


def check_best(scores: Scores, logits: torch.Tensor, tolerance: float = 1e-4) -> None:
    found, words = scores.best(10)
    expected, places = logits.topk(10, dim=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=tolerance)
    assert words.tolist() == places.tolist()


def test_the_best_before_and_after_changes(case: tuple[Vocabulary, torch.Tensor, torch.Tensor]) -> None:
    vocabulary, states, logits = case
    scores = vocabulary.score(states)
    check_best(scores, logits)
    best = logits.topk(6, dim=1).indices

    changed = logits.clone()
    lowered = best[:, :2]
    scores.set(lowered, scores.of(lowered) - 50)
    changed.scatter_add_(1, lowered, torch.full_like(lowered, -50, dtype=torch.float32))
    raised = (best[:, 2:3] + 17) % vocabulary.size
    scores.set(raised, torch.full_like(raised, 40, dtype=torch.float32))
    changed.scatter_(1, raised, 40.0)
    check_best(scores, changed)

    # Named twice, ruled out once.
    named = best[:, [3, 4, 3]]
    scores.forbid(named, torch.tensor([[True, False, False]]).expand(len(named), -1))
    changed.scatter_(1, best[:, 3:4], NEVER)
    check_best(scores, changed)

    found, words = scores.best(10)
    torch.testing.assert_close(scores.before(words, found), logits.gather(1, words), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height", [0.0, 60.0, 200.0, 5000.0])
def test_words_that_are_never_said(case: tuple[Vocabulary, torch.Tensor, torch.Tensor], height: float) -> None:
    """However high they are: the others keep their order and their height."""
    vocabulary, states, logits = case
    never = [int(logits[0].argmax()), vocabulary.size - 1]
    bias = torch.zeros(vocabulary.size)
    bias[never] = height
    higher = Vocabulary(torch.cat((weights(vocabulary), bias[:, None]), dim=1))
    scores = higher.score(torch.cat((states, torch.ones(len(states), 2)), dim=1), never)
    logits = logits + bias
    torch.testing.assert_close(scores.normaliser, logits.logsumexp(1), atol=1e-3, rtol=1e-4)
    logits[:, never] = NEVER
    check_best(scores, logits)


def weights(vocabulary: Vocabulary) -> torch.Tensor:
    """The words' weights and biases (V, 17) of `case`: its logits of unit vectors."""
    unit = torch.cat((torch.zeros(1, 16), torch.eye(16)))
    logits = vocabulary.logits(unit).T
    return torch.cat((logits[:, 1:] - logits[:, :1], logits[:, :1]), dim=1)


@pytest.mark.parametrize("offset", [0.0, -300.0, 300.0])
@pytest.mark.parametrize("higher", [0.0, 50.0, 200.0])
def test_logits_of_any_height(offset: float, higher: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, states = torch.randn(5000, 16, generator=generator), torch.randn(4, 16, generator=generator)
    # The first words, from which the height is guessed, say little of the last ones in two of the rows.
    weight[:, 0], states[:, 0] = 0.0, torch.tensor([0.0, 0.0, 1.0, 1.0])
    weight[4000:, 0] = higher
    bias = torch.full((5000,), offset)
    logits = states @ weight.T + bias
    scores = Vocabulary(weight, bias).score(states)
    torch.testing.assert_close(scores.normaliser, logits.logsumexp(1), atol=1e-3, rtol=1e-6)
    check_best(scores, logits, tolerance=1e-6)
    assert not scores.broken.any()


def test_a_row_that_is_no_number_is_told() -> None:
    vocabulary = Vocabulary(torch.randn(3000, 8))
    states = torch.randn(4, 8)
    states[2] = float("nan")
    assert vocabulary.score(states).broken.tolist() == [False, False, True, False]


def test_memory_is_used_again_where_it_is_given_back() -> None:
    vocabulary = Vocabulary(torch.randn(3000, 8))
    states = torch.randn(6, 8)
    first = vocabulary.score(states)
    best = first.best(3)[1].tolist()
    first.forbid(torch.tensor([[1, 2]]).expand(6, -1), torch.ones(6, 2, dtype=torch.bool))
    vocabulary.release(first)
    fewer = vocabulary.score(states[:4])
    assert fewer.kept.memory.data_ptr() == first.kept.memory.data_ptr()
    assert fewer.best(3)[1].tolist() == best[:4]
    # What has not been given back stays as it is.
    kept = fewer.best(3)[0].clone()
    assert vocabulary.score(torch.randn(4, 8)).kept.memory.data_ptr() != fewer.kept.memory.data_ptr()
    assert torch.equal(fewer.best(3)[0], kept)
    # All of it can be used again, by as many rows as at first.
    vocabulary.release(fewer)
    assert vocabulary.score(states).kept.memory.data_ptr() == first.kept.memory.data_ptr()


def test_memory_is_used_again_in_and_out_of_inference_mode() -> None:
    vocabulary = Vocabulary(torch.randn(3000, 8))
    states = torch.randn(6, 8)
    with torch.inference_mode():
        first = vocabulary.score(states)
        best = first.best(3)[1].tolist()
        vocabulary.release(first)
    assert vocabulary.score(states).best(3)[1].tolist() == best


def test_a_row_does_not_depend_on_the_others() -> None:
    vocabulary = Vocabulary(torch.randn(3000, 64))
    states = torch.randn(40, 64)
    together = vocabulary.score(states).best(5)[0]
    for rows in (slice(0, 1), slice(3, 10), slice(8, 40)):
        torch.testing.assert_close(vocabulary.score(states[rows]).best(5)[0], together[rows], rtol=1e-6, atol=1e-6)
