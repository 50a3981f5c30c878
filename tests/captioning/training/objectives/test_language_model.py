"""Training a decoder on captions alone: the loss, and validation by perplexity."""

import math
from pathlib import Path

import pytest
import torch

from captioning.models.base import Vocabulary
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.training.batches import Batch
from captioning.training.objectives.language_model import LanguageModel
from captioning.training.objectives.token_rows import token_rows
from captioning.training.workers import Workers
from tests.captioning.models.clips import tiny
from tests.tiny import CAPTIONS, PREPROCESS, tiny_tokenizer, write_tiny_shards

TOKENIZER = tiny_tokenizer()


def model() -> ClipGpt2:
    torch.manual_seed(0)
    vocabulary = Vocabulary(TOKENIZER.vocab_size, TOKENIZER.bos_id, TOKENIZER.eos_id)
    sizes = {"hidden_size": 16, "projection_dim": 12, "layers": 1, "heads": 2, "image_size": 32, "patch_size": 16}
    return ClipGpt2(tiny(train="gpt2", clip=sizes), vocabulary, PREPROCESS, pretrained=True).eval()


def text(captions: list[str]) -> Batch:
    return Batch((), None, token_rows(captions, TOKENIZER, 12), torch.arange(len(captions)))


def test_the_loss_is_that_of_every_token_and_smoothing_is_not_told() -> None:
    made, batch = model(), text(CAPTIONS[:3])
    plain = LanguageModel(TOKENIZER, split="val", max_tokens=12)
    loss = plain.loss(made, batch)
    assert plain.units(batch) == sum(len(TOKENIZER.encode(caption)) + 1 for caption in CAPTIONS[:3])
    assert float(loss.total.detach()) == pytest.approx(loss.metrics["loss"])
    assert loss.metrics["loss"] / plain.units(batch) == pytest.approx(math.log(TOKENIZER.vocab_size), rel=0.1)
    smoothed = LanguageModel(TOKENIZER, split="val", max_tokens=12, label_smoothing=0.3).loss(made, batch)
    assert smoothed.metrics["loss"] == pytest.approx(loss.metrics["loss"])
    assert abs(float((smoothed.total - loss.total).detach())) > 1e-3


def test_it_is_judged_by_the_perplexity_of_the_splits_captions(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path, {"train": 3, "val": 6})
    made = model()
    objective = LanguageModel(TOKENIZER, split="val", max_tokens=12, label_smoothing=0.3)
    scores = objective.validate(made, shards, Workers())
    said = [CAPTIONS[_kind(n)] for n in range(3, 9) for _ in range(1 + n % 3)]
    expected = objective.loss(made, text(said))
    mean = expected.metrics["loss"] / objective.units(text(said))
    assert scores == {
        "loss": pytest.approx(mean, rel=1e-5),
        "perplexity": pytest.approx(math.exp(mean), rel=1e-5),
        "score": pytest.approx(-mean, rel=1e-5),
    }


def _kind(number: int) -> int:
    """The index of the caption of the toy shards' image with this number."""
    return number % 4 * 2 + number // 4 % 2


def test_training_makes_the_captions_likely(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path, {"train": 3, "val": 8})
    made = model()
    objective = LanguageModel(TOKENIZER, split="val", max_tokens=12)
    before = objective.validate(made, shards, Workers())["perplexity"]
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    batch = text(CAPTIONS)
    for _ in range(40):
        optimiser.zero_grad()
        (objective.loss(made.train(), batch).total / objective.units(batch)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    after = objective.validate(made, shards, Workers())["perplexity"]
    assert before > 10
    # Four colours and two positions in seven words and EOS: 8 ** (1 / 8) = 1.3 at best.
    assert 1.25 < after < 1.5
