"""The output layer's scores, whole or in tiles, are those of plain logits."""

import pytest
import torch

from captioning.decoding.lm_head import LMHead
from captioning.decoding.scores import Candidates, Scores

NEG_INF = -float("inf")
#: Vocabulary and rows: less than a block, one tile, many tiles, more rows than are processed at once.
SIZES = [(30, 3), (700, 5), (5000, 7), (1500, 400)]


@pytest.fixture(params=SIZES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[LMHead, torch.Tensor, torch.Tensor]:
    vocab_size, rows = request.param
    generator = torch.Generator().manual_seed(vocab_size)
    weight, states = torch.randn(vocab_size, 16, generator=generator), torch.randn(rows, 16, generator=generator)
    bias = torch.randn(vocab_size, generator=generator)
    return LMHead(weight, bias), states, states @ weight.T + bias


def test_logits_and_logsumexp(case: tuple[LMHead, torch.Tensor, torch.Tensor]) -> None:
    head, states, logits = case
    torch.testing.assert_close(head.logits(states), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(head.score(states).logsumexp, logits.logsumexp(1), atol=1e-4, rtol=1e-4)


def check_best(scores: Scores, logits: torch.Tensor, tolerance: float = 1e-4) -> None:
    best = scores.topk(10, scores.logsumexp[:, None])
    expected, places = logits.topk(10, dim=1)
    torch.testing.assert_close(best.rank_scores, expected, atol=1e-4, rtol=tolerance)
    assert best.tokens.tolist() == places.tolist()
    assert not best.parents.any()


def test_the_best_before_and_after_changes(case: tuple[LMHead, torch.Tensor, torch.Tensor]) -> None:
    head, states, logits = case
    scores = head.score(states)
    check_best(scores, logits)
    best = logits.topk(6, dim=1).indices

    changed = logits.clone()
    lowered = best[:, :2]
    scores.set(lowered, scores.gather(lowered) - 50)
    changed.scatter_add_(1, lowered, torch.full_like(lowered, -50, dtype=torch.float32))
    raised = (best[:, 2:3] + 17) % head.vocab_size
    scores.set(raised, torch.full_like(raised, 40, dtype=torch.float32))
    changed.scatter_(1, raised, 40.0)
    check_best(scores, changed)

    # Given twice, forbidden once.
    repeated = best[:, [3, 4, 3]]
    scores.forbid(repeated, torch.tensor([[True, False, False]]).expand(len(repeated), -1))
    changed.scatter_(1, best[:, 3:4], NEG_INF)
    check_best(scores, changed)

    found = best_of(scores, 10)
    log_probs = logits.log_softmax(1).gather(1, found.tokens)
    torch.testing.assert_close(found.log_probs, log_probs, atol=1e-4, rtol=1e-4)


def best_of(scores: Scores, count: int) -> Candidates:
    """The best of each row by itself."""
    return scores.topk(count, torch.zeros_like(scores.logsumexp)[:, None])


def test_the_best_of_groups_of_rows() -> None:
    """Groups of three rows: one leads, one is far behind, and tokens are changed in all of them."""
    generator = torch.Generator().manual_seed(4)
    weight, states = torch.randn(4000, 16, generator=generator), torch.randn(12, 16, generator=generator)
    beam_scores = torch.tensor([[0.0, -1.0, -2.0], [-3.0, 0.0, -0.5], [-1.0e9, 0.0, -0.1], [-5.0, -5.0, -5.0]])
    scores = LMHead(weight).score(states, [7])
    logits = states @ weight.T
    log_probs = logits.log_softmax(1)
    raised = logits.topk(300, dim=1).indices[:, [250, 299]]
    scores.set(raised, scores.gather(raised) + 9)
    logits.scatter_add_(1, raised, torch.full_like(raised, 9, dtype=torch.float32))
    logits[:, 7] = NEG_INF

    best = scores.topk(10, beam_scores)
    totals = (logits - scores.logsumexp[:, None] + beam_scores.view(12, 1)).view(4, -1)
    expected, places = totals.topk(10, dim=1)
    torch.testing.assert_close(best.rank_scores, expected, atol=1e-4, rtol=1e-4)
    assert (best.parents * 4000 + best.tokens).tolist() == places.tolist()
    torch.testing.assert_close(best.log_probs, log_probs.view(4, -1).gather(1, places), atol=1e-4, rtol=1e-4)
    assert len(set(best.parents[0].tolist())) > 1


def test_a_tiny_vocabulary_gives_fewer_candidates() -> None:
    """All tokens there are; the forbidden ones come last, and are valid ids all the same."""
    scores = LMHead(torch.eye(5)).score(torch.eye(5)[:2], [0, 4])
    best = best_of(scores, 8)
    assert best.tokens.shape == (2, 5)
    assert best.tokens[1, 0] == 1
    assert best.rank_scores.isneginf().sum(1).tolist() == [2, 2]
    assert best.tokens.max() <= 4


def test_stale_memory_is_never_taken_for_a_token() -> None:
    """The padding of the short last tile held tokens of other rows when there were more rows."""
    vocab_size = 2100
    head = LMHead(torch.randn(vocab_size, 8))
    head.release(head.score(torch.randn(6, 8)))
    scores = head.score(torch.randn(4, 8))
    every = torch.arange(vocab_size).expand(4, -1)
    scores.forbid(every, every >= 3)
    # So many that every block is searched.
    best = best_of(scores, 70)
    assert best.rank_scores.isneginf().sum(1).tolist() == [67] * 4
    assert [sorted(few) for few in best.tokens[:, :3].tolist()] == [[0, 1, 2]] * 4
    assert best.tokens.max() < vocab_size


@pytest.mark.parametrize("height", [0.0, 60.0, 200.0, 5000.0])
def test_banned_tokens(case: tuple[LMHead, torch.Tensor, torch.Tensor], height: float) -> None:
    """However high they are, the others keep their order and their scores."""
    head, states, logits = case
    banned = [int(logits[0].argmax()), head.vocab_size - 1]
    bias = torch.zeros(head.vocab_size)
    bias[banned] = height
    higher = LMHead(torch.cat((weights(head), bias[:, None]), dim=1))
    scores = higher.score(torch.cat((states, torch.ones(len(states), 2)), dim=1), banned)
    logits = logits + bias
    torch.testing.assert_close(scores.logsumexp, logits.logsumexp(1), atol=1e-3, rtol=1e-4)
    logits[:, banned] = NEG_INF
    check_best(scores, logits)


def weights(head: LMHead) -> torch.Tensor:
    """Weights and biases (V, 17) of `case`, from the logits of unit vectors."""
    unit = torch.cat((torch.zeros(1, 16), torch.eye(16)))
    logits = head.logits(unit).T
    return torch.cat((logits[:, 1:] - logits[:, :1], logits[:, :1]), dim=1)


@pytest.mark.parametrize("offset", [0.0, -300.0, 300.0])
@pytest.mark.parametrize("higher", [0.0, 50.0, 200.0])
def test_logits_of_any_height(offset: float, higher: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, states = torch.randn(5000, 16, generator=generator), torch.randn(4, 16, generator=generator)
    # In two of the rows the first tokens, which the shift is estimated from, are far below the last ones.
    weight[:, 0], states[:, 0] = 0.0, torch.tensor([0.0, 0.0, 1.0, 1.0])
    weight[4000:, 0] = higher
    bias = torch.full((5000,), offset)
    logits = states @ weight.T + bias
    scores = LMHead(weight, bias).score(states)
    torch.testing.assert_close(scores.logsumexp, logits.logsumexp(1), atol=1e-3, rtol=1e-6)
    check_best(scores, logits, tolerance=1e-6)
    assert not scores.broken.any()


def test_a_row_that_is_not_finite_is_broken() -> None:
    head = LMHead(torch.randn(3000, 8))
    states = torch.randn(4, 8)
    states[2] = float("nan")
    assert head.score(states).broken.tolist() == [False, False, True, False]


def test_released_memory_is_used_again() -> None:
    head = LMHead(torch.randn(3000, 8))
    states = torch.randn(6, 8)
    first = head.score(states)
    best = best_of(first, 3).tokens.tolist()
    first.forbid(torch.tensor([[1, 2]]).expand(6, -1), torch.ones(6, 2, dtype=torch.bool))
    head.release(first)
    fewer = head.score(states[:4])
    assert fewer.buffers.memory.data_ptr() == first.buffers.memory.data_ptr()
    assert best_of(fewer, 3).tokens.tolist() == best[:4]
    # What has not been released stays as it is.
    expected = best_of(fewer, 3).rank_scores.clone()
    assert head.score(torch.randn(4, 8)).buffers.memory.data_ptr() != fewer.buffers.memory.data_ptr()
    assert torch.equal(best_of(fewer, 3).rank_scores, expected)
    # All of it can be used again, by as many rows as at first.
    head.release(fewer)
    assert head.score(states).buffers.memory.data_ptr() == first.buffers.memory.data_ptr()


def test_released_memory_is_used_again_in_and_out_of_inference_mode() -> None:
    head = LMHead(torch.randn(3000, 8))
    states = torch.randn(6, 8)
    with torch.inference_mode():
        first = head.score(states)
        best = best_of(first, 3).tokens.tolist()
        head.release(first)
    assert best_of(head.score(states), 3).tokens.tolist() == best


def test_a_row_does_not_depend_on_the_others() -> None:
    head = LMHead(torch.randn(3000, 64))
    states = torch.randn(40, 64)
    together = best_of(head.score(states), 5).rank_scores
    for rows in (slice(0, 1), slice(3, 10), slice(8, 40)):
        torch.testing.assert_close(
            best_of(head.score(states[rows]), 5).rank_scores, together[rows], rtol=1e-6, atol=1e-6
        )
