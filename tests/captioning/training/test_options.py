"""Every option of training, each by a test that would fail if it did nothing."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from captioning.data.preprocess import Preprocess
from captioning.data.shards import Sample, ShardSet
from captioning.models.base import PAD_TARGET
from captioning.models.checkpoint import load_model
from captioning.models.checkpoint_config import read_config
from captioning.models.encoders import GridEncoder
from captioning.training.batches import Batch
from captioning.training.objectives.cross_entropy import CrossEntropy, cross_entropy_sum, replace_with_samples
from captioning.training.optim import schedule_factor
from captioning.training.parts import make_parts, make_tokenizer
from captioning.training.settings import OptimSettings
from captioning.training.stage import Stage
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers
from tests.captioning.training.runs import (
    CLIP_STAGES,
    RECIPE,
    ScriptedRun,
    assert_same,
    best_of_stage,
    copied,
    recipe,
    run_with_scores,
    start,
    weights,
)
from tests.tiny import CAPTIONS, tiny_tokenizer, write_tiny_shards

#: Nothing is random, and nothing is averaged.
EXACT = ("model.dropout=0", "model.feature_dropout=0", "label_smoothing=0", "flip=false", "optim.ema_decay=null")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 16, "val": 4})


@pytest.fixture
def stage(shards: ShardSet, tmp_path: Path) -> Any:
    """Makes the first stage of a run with some settings."""
    return lambda *overrides, text=RECIPE: start(recipe(*overrides, text=text), shards, tmp_path).start_stage(None)


def gradients(of: Stage, passes: list[Batch], step: int = 0) -> dict[str, Tensor]:
    of.gradient(passes, step)
    return {name: p.grad.clone() for name, p in of.model.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(value, other[name], rtol=1e-4, atol=1e-7) for name, value in one.items())


def first(of: Stage, epoch: int = 0) -> list[Batch]:
    """The passes of the first step."""
    return next(iter(of.epoch(epoch, start=0)))


@pytest.mark.parametrize("fused", [False, True])
def test_decoding_follows_the_weights(stage: Any, fused: bool) -> None:
    """Also with fused optimiser kernels, as on GPUs, which do not bump the weights' version."""
    made = stage(*EXACT)
    for group in made.optimizer.param_groups:
        group.update(fused=fused, foreach=not fused, peak_lr=0.05)
    for step in range(3):
        passes = first(made)
        made.model.eval()
        with torch.no_grad():
            features = passes[0].features(made.model)
            stepper = made.model.stepper(features)
            count = len(passes[0].image_index.unique())
            told = stepper.lm_head.logits(stepper.start())[:count]
            taught = made.model(features, torch.full((count, 1), 1), torch.arange(count)).logits
        torch.testing.assert_close(told, taught, rtol=1e-4, atol=1e-4)
        made.step(passes, step)


class TestLoss:
    def test_label_smoothing(self, stage: Any) -> None:
        made = stage(*EXACT, "label_smoothing=0.2", "model.attention_penalty=0", "images_per_pass=4")
        passes = first(made)
        found = gradients(made, passes)
        facts = made.gradient(passes)
        batch = passes[0]
        made.optimizer.zero_grad()
        scored = made.model(batch.features(made.model), batch.captions, batch.image_index)
        targets = batch.captions[batch.captions != PAD_TARGET]
        functional.cross_entropy(scored.logits, targets, label_smoothing=0.2).backward()
        assert same(found, {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None})
        # The reported loss is without smoothing.
        assert facts.loss == pytest.approx(functional.cross_entropy(scored.logits, targets).item(), rel=1e-5)
        assert not same(found, gradients(stage(*EXACT, "model.attention_penalty=0"), passes))

    def test_attention_penalty(self, stage: Any) -> None:
        # 32 pixels give a single cell, with all the attention.
        cells = (*EXACT, "preprocess.size=64")
        plain, with_term = (stage(*cells, f"model.attention_penalty={weight}") for weight in (0, 0.7))
        for made in (plain, with_term):
            with torch.no_grad():
                # With random weights, attention is uniform.
                made.model.attend.query.weight.mul_(20)
                made.model.attend.keys_values.weight.mul_(20)
        batch = first(plain)[0]
        losses = [made.objective.loss(made.model, batch) for made in (plain, with_term)]
        model = with_term.model
        term = model(batch.features(model), batch.captions, batch.image_index).penalty.sum()
        assert term.item() > 0.1
        assert (losses[1].total - losses[0].total).item() == pytest.approx(term.item(), rel=1e-3)
        assert losses[1].metrics == pytest.approx(losses[0].metrics)
        assert not same(gradients(plain, [batch]), gradients(with_term, [batch]))

    def test_dropout(self, stage: Any) -> None:
        """In training only, and random in every step."""
        for dropout in ("model.dropout", "model.feature_dropout"):
            made = stage(*EXACT, f"{dropout}=0.5")
            passes = first(made)
            assert same(gradients(made, passes, 1), gradients(made, passes, 1))
            assert not same(gradients(made, passes, 1), gradients(made, passes, 2))
        made = stage(*EXACT)
        assert same(gradients(made, passes, 1), gradients(made, passes, 2))

    def test_max_tokens(self, stage: Any) -> None:
        tokenizer = tiny_tokenizer()
        whole = {tuple(tokenizer.encode(text)) for text in CAPTIONS}
        assert len(next(iter(whole))) == 6
        for limit in (4, 40):
            made = stage(f"max_tokens={limit}")
            rows = [row[row != PAD_TARGET].tolist() for batch in first(made) for row in batch.captions]
            assert rows
            # A truncated caption has no EOS.
            for row in rows:
                assert any(row == [*words, tokenizer.eos_id][:limit] for words in whole)


class TestScheduledSampling:
    def test_the_share_of_words_replaced_rises_to_what_is_asked(
        self, stage: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = stage(*EXACT, "scheduled_sampling=0.6", "epochs=100", "optim.warmup_steps=0", "optim.lr=1e-9")
        read: list[Tensor | None] = []
        forward = type(made.model).forward

        def heard(model: Any, features: Any, captions: Tensor, images: Tensor, said: Tensor | None = None) -> Any:
            read.append(said)
            return forward(model, features, captions, images, said)

        monkeypatch.setattr(type(made.model), "forward", heard)
        with torch.no_grad():
            # The model always samples a word that no caption has, so replacements are visible.
            strange = next(i for i in range(made.model.vocab_size) if not any(i in b.captions for b in first(made)))
            made.model.bias[strange] = 1e4
        passes = first(made)
        words = sum(batch.num_targets for batch in passes)
        assert made.total_steps == 400
        # Twelve steps, each with new samples, from the first or the last on.
        for step, share in ((0, 0.0), (100, 0.15), (200, 0.3), (388, 0.6)):
            replaced = 0
            for again in range(12):
                read.clear()
                made.step(passes, step + again)
                for batch, said in zip(passes, [given for given in read if given is not None], strict=False):
                    replaced += int((said == strange).sum())
                    kept = said != strange
                    assert torch.equal(said[kept], batch.captions[kept])
            # Of about 600 words, 3 standard deviations.
            assert replaced / (12 * words) == pytest.approx(share, abs=0.06)

    def test_targets_stay_and_what_is_read_changes_the_loss(self, stage: Any) -> None:
        made = stage(*EXACT)
        batch = first(made)[0]
        objective = CrossEntropy(scheduled_sampling=0.8)
        objective.progress = 1.0
        torch.manual_seed(3)
        found = objective.loss(made.model, batch)
        torch.manual_seed(3)
        features = batch.features(made.model)
        said = replace_with_samples(made.model, features, batch, 0.8)
        assert not torch.equal(said, batch.captions)
        assert torch.equal(said == PAD_TARGET, batch.captions == PAD_TARGET)
        scored = made.model(features, batch.captions, batch.image_index, said)
        expected, plain = cross_entropy_sum(scored, batch.captions, label_smoothing=0.0)
        assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
        assert found.metrics["loss"] == pytest.approx(plain.item(), rel=1e-5)
        assert found.total.item() != pytest.approx(CrossEntropy().loss(made.model, batch).total.item(), rel=1e-5)

    def test_guesses_are_drawn_from_what_the_model_would_say(self, stage: Any) -> None:
        model = stage(*EXACT).model.eval()
        with torch.no_grad():
            model.bias.normal_(std=1.5)
        one = torch.tensor([[*tiny_tokenizer().encode(CAPTIONS[0])[:3], tiny_tokenizer().eos_id]])
        count = 4000
        pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        batch = Batch(("a",), pixels, one.expand(count, -1), torch.zeros(count, dtype=torch.long))
        features = batch.features(model)
        torch.manual_seed(0)
        said = replace_with_samples(model, features, batch, 1.0)
        with torch.no_grad():
            expected = model(features, one, torch.zeros(1, dtype=torch.long)).logits.softmax(-1)
        for place in range(4):
            shares = said[:, place].bincount(minlength=model.vocab_size) / count
            # Half the summed difference of two distributions; of 4,000 draws it is about 0.02.
            assert float((shares - expected[place]).abs().sum()) / 2 < 0.05
            assert float((shares - 1 / model.vocab_size).abs().sum()) / 2 > 0.1


class TestOptimiser:
    def test_rates_of_parts(self, stage: Any) -> None:
        """The learning rate of each part, from warm-up to the end of the schedule."""
        made = stage("optim={lr: 0.01, pretrained_lr: 0.003, encoder_lr: 0.0002, warmup_steps: 4}")
        assert rates(made, "encoder.") == {0.0002}
        assert rates(made, "") == {0.0002, 0.01}
        assert rates(stage("optim={lr: 0.01, pretrained_lr: 0.003}"), "encoder.") == {0.01}  # its weights are random
        # CLIP is pretrained, GPT-2 random.
        with_clip = stage("stages=[]", "optim={lr: 0.01, pretrained_lr: 0.003, encoder_lr: 0.0002}", text=CLIP_STAGES)
        assert rates(with_clip, "clip.encoder.") == {0.0002}
        assert rates(with_clip, "clip.visual_projection") | rates(with_clip, "mapper.") == {0.01}
        made.step(first(made), 0)
        assert {group["lr"] for group in made.optimizer.param_groups} == {0.01 / 5, 0.0002 / 5}

    def test_a_rate_of_nothing_teaches_nothing(self, stage: Any) -> None:
        made = stage("optim={lr: 0.01, encoder_lr: 1.0e-30, weight_decay: 0, warmup_steps: 0}")
        before = copied(made.model.state_dict())
        made.step(first(made), 3)
        changes = {name: (value - before[name]).abs().max().item() for name, value in made.model.state_dict().items()}
        assert changes["embed.weight"] > 1e-3
        assert max(change for name, change in changes.items() if name.startswith("encoder.")) < 1e-25

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("cosine", [0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25]),
            ("linear", [0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25]),
            ("constant", [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]),
        ],
    )
    def test_warm_up_and_schedule(self, schedule: Any, expected: list[float]) -> None:
        settings = OptimSettings(warmup_steps=4, schedule=schedule)
        total = 8 if schedule != "cosine" else 10
        found = [schedule_factor(settings, step, total) for step in range(total)]
        if schedule == "cosine":
            # At a third, a half and two thirds of what comes after the warm-up.
            found = [*found[:5], found[6], found[7], found[8]]
        assert found == pytest.approx(expected)
        # A stage shorter than its warm-up warms up in its first half.
        short = [schedule_factor(OptimSettings(warmup_steps=100), step, 6) for step in range(6)]
        assert max(short) == short[3] == 1

    def test_weight_decay_is_for_matrices(self, stage: Any) -> None:
        made = stage("optim={lr: 0.5, weight_decay: 0.1, warmup_steps: 0}")
        before = copied(made.model.state_dict())
        for group in made.optimizer.param_groups:
            group["lr"] = group["peak_lr"]
        for parameter in made.trained:
            parameter.grad = torch.zeros_like(parameter)
        made.optimizer.step()
        after = made.model.state_dict()
        torch.testing.assert_close(after["lstm.weight_hh_l0"], before["lstm.weight_hh_l0"] * (1 - 0.5 * 0.1))
        for name in ("embed.weight", "bias", "lstm.bias_hh_l0"):
            assert after[name].equal(before[name])

    def test_the_gradient_is_cut_to_its_norm(self, stage: Any) -> None:
        norms, clipped = [], []
        for limit in (1e9, 0.01):
            made = stage(*EXACT, f"optim.clip_norm={limit}")
            norms.append(made.step(first(made), 0).gradient_norm)
            clipped.append({n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None})
        # The reported norm is before clipping.
        assert norms[0] == pytest.approx(norms[1])
        assert norms[0] > 0.1
        whole = torch.cat([gradient.flatten() for gradient in clipped[0].values()])
        assert float(whole.norm()) == pytest.approx(norms[0], rel=1e-4)
        assert same(clipped[1], {name: value * 0.01 / norms[0] for name, value in clipped[0].items()})


def rates(of: Stage, beginning: str) -> set[float]:
    """Peak rates of the parameters whose names start with this."""
    named = {id(parameter) for name, parameter in of.model.named_parameters() if name.startswith(beginning)}
    groups = of.optimizer.param_groups
    return {group["peak_lr"] for group in groups for parameter in group["params"] if id(parameter) in named}


class TestAverage:
    def test_it_is_the_moving_average_of_the_steps(self, stage: Any) -> None:
        made = stage("optim={ema_decay: 0.6, lr: 0.01}")
        assert made.average is not None
        expected = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
        for step in range(9):
            made.step(first(made), step)
            # The decay is lower at first: after the first step a tenth of the old weights is left.
            decay = min(0.6, (1 + step) / (10 + step))
            for name, parameter in made.model.named_parameters():
                expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
        assert_same(made.average.weights, expected)
        assert not same(expected, {name: p.detach() for name, p in made.model.named_parameters()})

    def test_it_is_what_is_validated_and_saved_and_training_goes_on_from_the_weights(
        self, shards: ShardSet, tmp_path: Path
    ) -> None:
        runs = {}
        for decay in ("0.9", "null"):
            folder = tmp_path / decay
            run = run_with_scores(recipe(f"optim.ema_decay={decay}", "epochs=2"), shards, folder, {4: 1.0, 8: 2.0})
            about = read_config(folder / "best")
            kept = load_model(folder / "best", about, tiny_tokenizer()).state_dict()
            assert_same(kept, run.validated[8])
            assert_same(best_of_stage(folder, 0), run.validated[8])
            runs[decay] = run
        # The same training, but other weights are validated.
        assert_same(weights(runs["0.9"]), weights(runs["null"]))
        assert_same(runs["null"].validated[8], weights(runs["null"]))
        assert not same(runs["0.9"].validated[8], weights(runs["0.9"]))


class TestSteps:
    def test_accumulation_is_the_large_batch(self, shards: ShardSet, tmp_path: Path) -> None:
        found, passes = [], []
        for images in (8, 3, 1):
            settings = recipe(*EXACT, "images_per_step=8", f"images_per_pass={images}", "epochs=2")
            run = start(settings, shards, tmp_path / str(images))
            passes.append(len(first(run.start_stage(None))))
            run.run()
            assert run.progress.step == 4
            found.append(weights(run))
        assert passes == [1, 3, 8]
        for other in found[1:]:
            for name, value in found[0].items():
                torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)

    def test_gradients_are_summed_over_workers_once_a_step(
        self, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Independent of the number of passes, as with DDP's `no_sync`."""
        calls: Counter[str] = Counter()
        numbers = []

        def counted(name: str) -> Any:
            def call(*args: Any, **_: Any) -> None:
                calls[name] += 1
                if name == "all_reduce":
                    numbers.append(args[0].numel())
                    if args[0].dtype == torch.int32:
                        args[0].fill_(1)
                elif name == "all_gather_object":
                    args[0][:] = [args[1]] * len(args[0])

            return call

        for name in ("all_reduce", "all_gather_object", "broadcast_object_list"):
            monkeypatch.setattr(dist, name, counted(name))
        found = []
        for images in (4, 1):
            settings = recipe("workers=2", "images_per_step=8", f"images_per_pass={images}")
            parts = make_parts(settings, make_tokenizer(settings, shards))
            from captioning.storage import Location

            workers = Workers(rank=0, world_size=2)
            run = ScriptedRun(settings, parts, shards, Location.parse(str(tmp_path)), workers)
            made = run.start_stage(None)
            passes = first(made)
            assert len(passes) == 4 // images
            calls.clear()
            numbers.clear()
            made.step(passes, 0)
            found.append(dict(calls))
            trained = sum(parameter.numel() for parameter in made.trained)
            assert sorted(numbers) == [3, len(made.trained), trained]
        assert found[0] == found[1] == {"all_reduce": 3, "all_gather_object": 1}

    def test_weights_that_nobody_has_a_gradient_for_are_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With zero gradients, weight decay would shrink them."""
        monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: None)
        learning, resting = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        learning.grad = torch.ones(2)
        Workers(rank=0, world_size=2).sum_gradients([learning, resting])
        assert learning.grad.tolist() == [1, 1]
        assert resting.grad is None

    def test_the_seed_decides(self, shards: ShardSet, tmp_path: Path) -> None:
        runs = []
        for name, seed in (("one", 5), ("same", 5), ("other", 6)):
            run = start(recipe("epochs=1", f"seed={seed}"), shards, tmp_path / name)
            run.run()
            runs.append(weights(run))
        assert_same(runs[0], runs[1])
        assert not same(runs[0], runs[2])

    def test_half_precision_is_felt_and_learns(self, shards: ShardSet, tmp_path: Path) -> None:
        losses = {}
        for precision in ("fp32", "bf16"):
            settings = recipe(*EXACT, f"precision={precision}", "epochs=12", "log_every_steps=4", "save_every_steps=99")
            run = run_with_scores(settings, shards, tmp_path / precision, dict.fromkeys(range(99), 1.0))
            losses[precision] = [r["loss"] for r in run.progress.history if r["kind"] == "step"]
        exact, half = losses["fp32"], losses["bf16"]
        assert half != exact
        assert half[0] == pytest.approx(exact[0], rel=0.02)
        assert half[-1] < 0.5 * half[0]

    def test_half_precision_is_for_validation_too(self, stage: Any) -> None:
        logits = []
        for precision in ("fp32", "bf16"):
            made = stage(*EXACT, f"precision={precision}")
            batch = first(made)[0]
            with torch.no_grad(), made.autocast():
                logits.append(made.model.eval()(batch.features(made.model), batch.captions, batch.image_index).logits)
        assert not torch.equal(*logits)
        torch.testing.assert_close(logits[0].float(), logits[1].float(), rtol=0.1, atol=0.1)


class TestViews:
    def pixels(self, of: Stage, epochs: int = 1) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
        """The pixels of each image in each epoch."""
        found = {}
        for epoch in range(epochs):
            for batch in itertools.chain.from_iterable(of.epoch(epoch, start=0)):
                assert batch.pixels is not None
                found |= {(key, epoch): row for key, row in zip(batch.keys, batch.pixels.numpy(), strict=True)}
        return found

    def plain(self, shards: ShardSet) -> dict[str, np.ndarray[Any, Any]]:
        preprocess = Preprocess(recipe().preprocess)
        return {sample.key: preprocess.from_bytes(sample.image).pixels for sample in samples(shards)}

    def test_flips_reach_the_batches(self, stage: Any, shards: ShardSet) -> None:
        plain = self.plain(shards)
        assert all((row == plain[key]).all() for (key, _), row in self.pixels(stage("flip=false")).items())
        mirrored = {}
        for (key, epoch), row in self.pixels(stage("flip=true"), epochs=3).items():
            mirrored[key, epoch] = (row == plain[key][:, ::-1]).all()
            assert mirrored[key, epoch] or (row == plain[key]).all()
        assert 0.25 < np.mean(list(mirrored.values())) < 0.75
        # Different in each epoch.
        assert any(mirrored[key, 0] != mirrored[key, 1] for key in plain)

    def test_crops_reach_the_batches(self, stage: Any, shards: ShardSet) -> None:
        plain = self.plain(shards)
        cropped = self.pixels(stage("flip=false", "crop=0.3"), epochs=2)
        other = [(row != plain[key]).any() for (key, _), row in cropped.items()]
        assert np.mean(other) > 0.9
        assert any((cropped[key, 0] != cropped[key, 1]).any() for key in plain)

    def test_a_photo_is_not_mirrored_whose_caption_says_left(
        self, stage: Any, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from captioning.training import sources

        def told(*args: Any, **more: Any) -> Any:
            for sample in epoch_samples(*args, **more):
                yield Sample(sample.key, sample.image, ("a square on the left", *sample.captions), sample.split)

        monkeypatch.setattr(sources, "epoch_samples", told)
        plain = self.plain(shards)
        for (key, _), row in self.pixels(stage("flip=true"), epochs=3).items():
            assert (row == plain[key]).all()


def samples(shards: ShardSet) -> list[Sample]:
    return list(epoch_samples(shards, "train", epoch=0, seed=0, rank=0, world_size=1, shuffle=False))


class TestFeatureCache:
    FROZEN = (*EXACT, "model.encoder.tune_from=null", "epochs=2")

    def test_the_frozen_encoder_runs_once(
        self, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Training on cached features equals training on images, without running the encoder."""
        seen: Counter[str] = Counter()
        stem, found = GridEncoder.stem, {}

        def counted(encoder: GridEncoder, pixels: Tensor) -> Tensor:
            seen[name] += len(pixels)
            return stem(encoder, pixels)

        monkeypatch.setattr(GridEncoder, "stem", counted)
        for name in ("null", "auto", "again"):
            place = "null" if name == "null" else str(tmp_path / "kept") if name == "again" else "auto"
            settings = recipe(*self.FROZEN, f"feature_cache={place}", "views=1")
            run = run_with_scores(settings, shards, tmp_path / name, {4: 1.0, 8: 1.0})
            found[name] = weights(run)
            if name == "auto":
                (tmp_path / "auto" / "features").rename(tmp_path / "kept")
        # Two epochs of 16 images; each image once; not at all.
        assert seen == {"null": 32, "auto": 16}
        assert_same(found["again"], found["auto"])
        for key, value in found["null"].items():
            torch.testing.assert_close(found["auto"][key], value, rtol=0.02, atol=0.02)

    def test_epochs_take_one_of_the_views(self, shards: ShardSet, tmp_path: Path) -> None:
        kept: dict[int, dict[str, set[bytes]]] = {}
        for views in (1, 3):
            settings = recipe(*self.FROZEN, "feature_cache=auto", f"views={views}", "flip=true", "crop=0.5")
            made = start(settings, shards, tmp_path / str(views)).start_stage(None)
            stems: dict[str, set[bytes]] = {sample.key: set() for sample in samples(shards)}
            for epoch in range(9):
                for batch in itertools.chain.from_iterable(made.epoch(epoch, start=0)):
                    assert batch.stem is not None
                    for key, stem in zip(batch.keys, batch.stem, strict=True):
                        stems[key].add(stem.numpy().tobytes())
            kept[views] = stems
        assert {len(found) for found in kept[1].values()} == {1}
        counts = [len(found) for found in kept[3].values()]
        assert max(counts) == 3
        assert np.mean(counts) > 2
        assert all(kept[1][key] <= kept[3][key] for key in kept[1] if len(kept[3][key]) == 3)

    def test_of_an_encoder_that_learns_in_part_the_rest_still_learns(self, shards: ShardSet, tmp_path: Path) -> None:
        settings = recipe("model.encoder.tune_from=blocks.3", "feature_cache=auto", "epochs=1")
        run = start(settings, shards, tmp_path)
        before = weights(run)
        run.run()
        changed = {name for name, value in weights(run).items() if not value.equal(before[name])}
        learned = {name for name in changed if name.startswith("encoder.")}
        assert learned
        assert all("blocks.0" not in name and "blocks.2" not in name and "conv_stem" not in name for name in learned)


class TestObjectives:
    def stage(self, name: str, *overrides: str) -> str:
        start, _, _ = CLIP_STAGES.partition("stages:")
        line = next(line for line in CLIP_STAGES.splitlines() if f"name: {name}" in line)
        return f"{start}stages:\n{line.replace('epochs: 1', 'epochs: 14')}\n"

    @pytest.mark.parametrize(("name", "below"), [("contrastive", 0.9), ("language", 0.6)])
    def test_pretraining_learns(self, shards: ShardSet, tmp_path: Path, name: str, below: float) -> None:
        settings = recipe("log_every_steps=4", "save_every_steps=99", text=self.stage(name))
        run = start(settings, shards, tmp_path)
        before = weights(run)
        run.run()
        losses = [record["loss"] for record in run.progress.history if record["kind"] == "step"]
        assert losses[-1] < below * losses[0]
        validations = [record for record in run.progress.history if record["kind"] == "validation"]
        assert validations[-1]["score"] > validations[0]["score"]
        part = "clip." if name == "contrastive" else "gpt2."
        changed = {key for key, value in weights(run).items() if not value.equal(before[key])}
        assert changed
        assert all(key.startswith(part) for key in changed)

    def test_the_text_tower_learns_beside_the_images(self, shards: ShardSet, tmp_path: Path) -> None:
        made = start(recipe(text=self.stage("contrastive")), shards, tmp_path).start_stage(None)
        assert made.objective.extra is not None
        before = copied(made.objective.extra.state_dict())
        made.step(first(made), 20)
        assert all(not value.equal(before[name]) for name, value in made.objective.extra.state_dict().items())
        assert "extra" in made.tensors()

    def test_text_alone_is_read_from_its_file(self, shards: ShardSet, tmp_path: Path) -> None:
        said = [f"a {word} lies there" for word in ("cat", "dog", "cow", "pig") for _ in range(8)]
        (tmp_path / "said.txt").write_text("\n".join(said))
        place = f"text={tmp_path / 'said.txt'}"
        run = start(recipe(place, text=self.stage("language")), shards, tmp_path / "run")
        made = run.start_stage(None)
        assert made.steps_per_epoch == len(said) // 8
        rows = [row for batch in itertools.chain.from_iterable(made.epoch(0, start=0)) for row in batch.captions]
        read = {run.tokenizer.decode(row[row != PAD_TARGET].tolist()[:-1]) for row in rows}
        assert read == set(said)
        assert len(rows) == len(said)


def test_the_number_format_of_the_checkpoint(shards: ShardSet, tmp_path: Path) -> None:
    for name in ("float32", "float16"):
        run_with_scores(recipe("epochs=1", f"save_dtype={name}"), shards, tmp_path / name, {4: 1.0})
        kept = load_file(tmp_path / name / "best" / "model.safetensors")
        assert {value.dtype for value in kept.values() if value.is_floating_point()} == {getattr(torch, name)}
        # States are always saved in full precision.
        states = load_file(next((tmp_path / name / "state").glob("step-*/model.safetensors")))
        assert {value.dtype for value in states.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(("beams", "expected"), [("1", 1), ("3", 3), ("null", 2)])
def test_beams_in_validation(shards: ShardSet, tmp_path: Path, beams: str, expected: int) -> None:
    run = start(recipe("decoding.beam_size=2", f"validation.beam_size={beams}"), shards, tmp_path)
    assert run.captioner().decoding.beam_size == expected


@pytest.mark.parametrize("samples", [0, 3])
def test_samples_are_shown(shards: ShardSet, tmp_path: Path, samples: int) -> None:
    run = start(recipe("epochs=1", f"validation.samples={samples}"), shards, tmp_path)
    run.run()
    (record,) = [record for record in run.progress.history if record["kind"] == "validation"]
    assert len(record["samples"]) == samples
