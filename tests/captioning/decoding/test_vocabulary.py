"""The scores of a vocabulary, whole or in pieces, are those of plain logits."""

import pytest
import torch

from captioning.decoding.scores import Best, Scores
from captioning.decoding.vocabulary import Vocabulary

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
    best = scores.best(10, scores.normaliser[:, None])
    expected, places = logits.topk(10, dim=1)
    torch.testing.assert_close(best.ranks, expected, atol=1e-4, rtol=tolerance)
    assert best.words.tolist() == places.tolist()
    assert not best.parents.any()


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

    found = best_of(scores, 10)
    own = logits.log_softmax(1).gather(1, found.words)
    torch.testing.assert_close(found.own, own, atol=1e-4, rtol=1e-4)


def best_of(scores: Scores, count: int) -> Best:
    """The best of each row for itself."""
    return scores.best(count, torch.zeros_like(scores.normaliser)[:, None])


def test_the_best_of_rows_together() -> None:
    """Lines of three rows, one of which leads, one is far behind, and words are changed in all of them."""
    generator = torch.Generator().manual_seed(4)
    weight, states = torch.randn(4000, 16, generator=generator), torch.randn(12, 16, generator=generator)
    lead = torch.tensor([[0.0, -1.0, -2.0], [-3.0, 0.0, -0.5], [-1.0e9, 0.0, -0.1], [-5.0, -5.0, -5.0]])
    scores = Vocabulary(weight).score(states, [7])
    logits = states @ weight.T
    own = logits.log_softmax(1)
    raised = logits.topk(300, dim=1).indices[:, [250, 299]]
    scores.set(raised, scores.of(raised) + 9)
    logits.scatter_add_(1, raised, torch.full_like(raised, 9, dtype=torch.float32))
    logits[:, 7] = NEVER

    best = scores.best(10, lead)
    totals = (logits - scores.normaliser[:, None] + lead.view(12, 1)).view(4, -1)
    expected, places = totals.topk(10, dim=1)
    torch.testing.assert_close(best.ranks, expected, atol=1e-4, rtol=1e-4)
    assert (best.parents * 4000 + best.words).tolist() == places.tolist()
    torch.testing.assert_close(best.own, own.view(4, -1).gather(1, places), atol=1e-4, rtol=1e-4)
    assert len(set(best.parents[0].tolist())) > 1


def test_what_is_left_of_a_tiny_vocabulary() -> None:
    """All words that there are; those that are ruled out come last, and are words none the less."""
    scores = Vocabulary(torch.eye(5)).score(torch.eye(5)[:2], [0, 4])
    best = best_of(scores, 8)
    assert best.words.shape == (2, 5)
    assert best.words[1, 0] == 1
    assert best.ranks.isneginf().sum(1).tolist() == [2, 2]
    assert best.words.max() <= 4


def test_what_was_in_memory_before_is_never_taken_for_a_word() -> None:
    """Where the last piece, which is short, is filled up, words of other rows lay when there were more of them."""
    words = 2100
    vocabulary = Vocabulary(torch.randn(words, 8))
    vocabulary.release(vocabulary.score(torch.randn(6, 8)))
    scores = vocabulary.score(torch.randn(4, 8))
    every = torch.arange(words).expand(4, -1)
    scores.forbid(every, every >= 3)
    # So many that every block is looked through.
    best = best_of(scores, 70)
    assert best.ranks.isneginf().sum(1).tolist() == [67] * 4
    assert [sorted(few) for few in best.words[:, :3].tolist()] == [[0, 1, 2]] * 4
    assert best.words.max() < words


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
    best = best_of(first, 3).words.tolist()
    first.forbid(torch.tensor([[1, 2]]).expand(6, -1), torch.ones(6, 2, dtype=torch.bool))
    vocabulary.release(first)
    fewer = vocabulary.score(states[:4])
    assert fewer.kept.memory.data_ptr() == first.kept.memory.data_ptr()
    assert best_of(fewer, 3).words.tolist() == best[:4]
    # What has not been given back stays as it is.
    kept = best_of(fewer, 3).ranks.clone()
    assert vocabulary.score(torch.randn(4, 8)).kept.memory.data_ptr() != fewer.kept.memory.data_ptr()
    assert torch.equal(best_of(fewer, 3).ranks, kept)
    # All of it can be used again, by as many rows as at first.
    vocabulary.release(fewer)
    assert vocabulary.score(states).kept.memory.data_ptr() == first.kept.memory.data_ptr()


def test_memory_is_used_again_in_and_out_of_inference_mode() -> None:
    vocabulary = Vocabulary(torch.randn(3000, 8))
    states = torch.randn(6, 8)
    with torch.inference_mode():
        first = vocabulary.score(states)
        best = best_of(first, 3).words.tolist()
        vocabulary.release(first)
    assert best_of(vocabulary.score(states), 3).words.tolist() == best


def test_a_row_does_not_depend_on_the_others() -> None:
    vocabulary = Vocabulary(torch.randn(3000, 64))
    states = torch.randn(40, 64)
    together = best_of(vocabulary.score(states), 5).ranks
    for rows in (slice(0, 1), slice(3, 10), slice(8, 40)):
        torch.testing.assert_close(
            best_of(vocabulary.score(states[rows]), 5).ranks, together[rows], rtol=1e-6, atol=1e-6
        )
