"""Contrastive training: its loss, its gradient over several workers, and what retrieval it leads to."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from captioning.config import build
from captioning.data.preprocess import Preprocess
from captioning.errors import SettingsError
from captioning.models.base import PAD_TARGET, Vocabulary
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.training.batches import Batch, decode_sample
from captioning.training.objectives.contrastive import Contrastive, ContrastiveSettings, recalls
from captioning.training.objectives.token_rows import token_rows
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers
from tests.captioning.models.clips import CNN, tiny
from tests.tiny import CAPTIONS, PREPROCESS, tiny_model, tiny_tokenizer, write_tiny_shards

TOKENIZER = tiny_tokenizer()


def model(clip: dict[str, Any] = CNN) -> ClipGpt2:
    torch.manual_seed(0)
    vocabulary = Vocabulary(TOKENIZER.vocab_size, TOKENIZER.bos_id, TOKENIZER.eos_id)
    return ClipGpt2(tiny(train="clip", clip=clip), vocabulary, PREPROCESS, pretrained=True)


def contrastive(made: Any, workers: Workers | None = None, **settings: Any) -> Contrastive:
    values = {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0, **settings}
    return Contrastive(
        build(ContrastiveSettings, values),
        made,
        TOKENIZER,
        split="val",
        workers=workers or Workers(),
        preprocess=PREPROCESS,
        max_tokens=12,
        seed=3,
    )


def batch(first: int, captions_each: list[int]) -> Batch:
    """Noise images with captions of the toy world, numbered from `first`."""
    images = [at for at, count in enumerate(captions_each) for _ in range(count)]
    said = [CAPTIONS[(first + at + number) % len(CAPTIONS)] for number, at in enumerate(images)]
    pixels = [
        torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(first + at))
        for at in range(len(captions_each))
    ]
    keys = tuple(str(first + at) for at in range(len(captions_each)))
    return Batch(keys, torch.stack(pixels), token_rows(said, TOKENIZER, 12), torch.tensor(images))


def joined(one: Batch, other: Batch) -> Batch:
    assert one.pixels is not None
    assert other.pixels is not None
    width = max(one.captions.shape[1], other.captions.shape[1])
    captions = [functional.pad(b.captions, (0, width - b.captions.shape[1]), value=PAD_TARGET) for b in (one, other)]
    images = torch.cat([one.image_index, other.image_index + len(one.keys)])
    return Batch(one.keys + other.keys, torch.cat([one.pixels, other.pixels]), torch.cat(captions), images)


ONE, OTHER = batch(0, [3, 1, 2]), batch(3, [1, 2])


def embeddings(objective: Contrastive, made: ClipGpt2, of: Batch) -> tuple[Tensor, Tensor]:
    assert of.pixels is not None
    assert objective.extra is not None
    images = functional.normalize(made.embed_images(made.stem(of.pixels)), dim=1)
    texts: Tensor = objective.extra.get_submodule("tower")(of.captions)
    return images, functional.normalize(texts, dim=1)


def test_the_loss_is_cross_entropy_both_ways_without_rivalry_among_siblings() -> None:
    made = model()
    objective = contrastive(made, temperature=0.1)
    with torch.no_grad():
        loss = objective.loss(made, ONE)
        images, texts = embeddings(objective, made, ONE)
    likeness = (images @ texts.T / 0.1).exp()
    owners = ONE.image_index.tolist()
    total = 0.0
    for image in range(3):
        own = [text for text, owner in enumerate(owners) if owner == image]
        others = sum(float(likeness[image, text]) for text, owner in enumerate(owners) if owner != image)
        to_texts = [-np.log(float(likeness[image, t]) / (float(likeness[image, t]) + others)) for t in own]
        to_images = [-np.log(float(likeness[image, t]) / float(likeness[:, t].sum())) for t in own]
        total += (np.mean(to_texts) + np.mean(to_images)) / 2
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert loss.metrics == {"loss": pytest.approx(total, rel=1e-4)}
    assert objective.units(ONE) == 3


def test_a_lone_image_teaches_nothing() -> None:
    made = model()
    loss = contrastive(made).loss(made, batch(0, [3]))
    assert loss.metrics["loss"] == pytest.approx(0, abs=1e-6)
    loss.total.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_cosines_keep_their_digits_in_half_precision() -> None:
    made = model()
    objective = contrastive(made, temperature=0.01)
    images, texts = (t.detach() for t in embeddings(objective, made, ONE))
    exact = objective._loss(images, texts, ONE.image_index).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective._loss(images, texts, ONE.image_index).total, exact)


@pytest.mark.parametrize("limit", [1, 2])
def test_captions_are_drawn_anew(limit: int) -> None:
    objective = contrastive(model(), captions_per_image=limit)
    images = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        drawn = objective._select_captions(images)
        assert images[drawn].bincount().tolist() == [limit, 1, limit]
        seen.add(tuple(drawn.tolist()))
    assert len(seen) > 6
    torch.manual_seed(1)
    again = objective._select_captions(images)
    torch.manual_seed(1)
    assert torch.equal(objective._select_captions(images), again)


def test_drawn_captions_are_what_is_compared() -> None:
    made = model()
    few, whole = contrastive(made, captions_per_image=1), contrastive(made)
    torch.manual_seed(2)
    drawn = few._select_captions(ONE.image_index)
    part = Batch(ONE.keys, ONE.pixels, ONE.captions[drawn], ONE.image_index[drawn])
    torch.manual_seed(2)
    assert few.loss(made, ONE).metrics == pytest.approx(whole.loss(made, part).metrics, rel=1e-5)


def test_the_scale_stays_below_its_bound() -> None:
    made = model()
    objective = contrastive(made)
    assert objective.extra is not None
    scale = dict(objective.extra.named_parameters())["log_scale"]
    assert float(scale.detach().exp()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.fill_(9.0)
    objective.loss(made, ONE).total.backward()  # type: ignore[no-untyped-call]
    assert float(scale.detach().exp()) == pytest.approx(100)
    assert scale.grad is not None
    assert scale.grad.any()


def test_workers_begin_alike_and_nobody_elses_draws_are_touched() -> None:
    made = model()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    states = []
    for _ in range(2):
        extra = contrastive(made).extra
        assert extra is not None
        states.append(extra.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_model_without_image_embeddings_is_refused() -> None:
    with pytest.raises(SettingsError, match="cnn_lstm has no image embedding"):
        contrastive(tiny_model())


@pytest.mark.parametrize(
    ("values", "message"), [({"heads": 3}, "multiple of heads"), ({"temperature": 0.001}, "limit")]
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        contrastive(model(), **values)


def test_retrieval_is_counted_both_ways() -> None:
    images = np.eye(12)[:, :11]
    images[11] = images[0]
    texts = np.concatenate([images[:11], images[1:2]])
    # The last text belongs to image 0 and resembles image 1.
    found = recalls(images, texts, np.array([*range(11), 0]))
    assert found["text_to_image_r1"] == pytest.approx(100 * 11 / 12)
    assert found["text_to_image_r5"] == pytest.approx(100)
    # Image 11 has no text; every other image has one that is closest to it.
    assert found["image_to_text_r1"] == pytest.approx(100 * 11 / 12)
    assert found["score"] == pytest.approx(np.mean([value for name, value in found.items() if name != "score"]))


def test_training_leads_to_retrieval(tmp_path: Path) -> None:
    """Unseen squares in four colours and two positions: eight images find eight captions."""
    shards = write_tiny_shards(tmp_path, {"train": 32, "val": 8})
    # A randomly initialised encoder must learn its batch statistics too.
    made = model({**CNN, "encoder": {**CNN["encoder"], "tune_from": "all", "norm_statistics": "learned"}})
    objective = contrastive(made)
    before = objective.validate(made, shards, Workers())
    assert objective.extra is not None
    parameters = [p for p in [*made.parameters(), *objective.extra.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    samples = list(epoch_samples(shards, "train", epoch=0, seed=0, rank=0, world_size=1, shuffle=False))
    pixels = torch.stack([torch.from_numpy(decode_sample(sample, Preprocess(PREPROCESS))) for sample in samples])
    captions = token_rows([sample.captions[0] for sample in samples], TOKENIZER, 12)
    made.train()
    for step in range(120):
        rows = slice(step % 4 * 8, step % 4 * 8 + 8)
        shown = Batch(tuple("12345678"), pixels[rows], captions[rows], torch.arange(8))
        optimiser.zero_grad()
        (objective.loss(made, shown).total / 8).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    after = objective.validate(made, shards, Workers())
    assert before["text_to_image_r1"] < 50
    assert after["text_to_image_r1"] > 80
    assert after["score"] > before["score"]
    assert objective.extra.training


def test_workers_give_the_gradient_of_the_joint_batch(tmp_path: Path) -> None:
    """Uneven slices, and a worker without images while the other has a full pass."""
    made = model().train()
    objective = contrastive(made)
    expected = _gradients(made, objective, [joined(ONE, OTHER)], units=5)
    shards = write_tiny_shards(tmp_path / "shards", {"val": 11})
    scores = objective.validate(made, shards, Workers())
    torch.save({"shares": [[ONE, OTHER], [joined(ONE, OTHER), None]], "shards": shards}, tmp_path / "work.pt")
    mp.spawn(_worker, (2, _free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True)
        assert found["scores"] == pytest.approx(scores)
        for gradients in found["gradients"]:
            assert gradients.keys() == expected.keys()
            for name, gradient in expected.items():
                scale = float(gradient.abs().max())
                assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * scale + 1e-9, name


def _gradients(made: ClipGpt2, objective: Contrastive, passes: list[Batch | None], *, units: int) -> dict[str, Tensor]:
    """As in a stage: summed over workers and divided by all units."""
    assert objective.extra is not None
    parts = {"model": made, "extra": objective.extra}
    learning = {f"{part}.{n}": p for part, m in parts.items() for n, p in m.named_parameters() if p.requires_grad}
    for parameter in learning.values():
        parameter.grad = None
    for batch in passes:
        loss = objective.loss_without_batch(made) if batch is None else objective.loss(made, batch)
        (loss.total / units).backward()  # type: ignore[no-untyped-call]
    objective._workers.sum_gradients(learning.values())
    return {name: p.grad.clone() for name, p in learning.items() if p.grad is not None}


def _worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    work = torch.load(Path(folder) / "work.pt", weights_only=False)
    workers = Workers.from_process_group()
    made = model().train()
    objective = contrastive(made, workers)
    gradients = [_gradients(made, objective, [share[rank]], units=5) for share in work["shares"]]
    scores = objective.validate(made, work["shards"], workers)
    torch.save({"gradients": gradients, "scores": scores}, Path(folder) / f"found-{rank}.pt")
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
