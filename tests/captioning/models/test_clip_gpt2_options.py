"""Training options of a CLIP-GPT2: text alone, scheduled sampling, LoRA, gradient checkpointing, a trained mapper."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from captioning.captioner import load_captioner
from captioning.config import build
from captioning.data.tokenizers import WordTokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError, SettingsError
from captioning.models.base import PAD_TARGET, Vocabulary
from captioning.models.checkpoint import load_model, save_checkpoint
from captioning.models.checkpoint_config import read_config
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.models.clip_gpt2_settings import ClipGpt2Settings
from captioning.models.lora_settings import LoraSettings
from tests.captioning.models.clips import (
    CAPTIONS,
    CNN,
    GPT2,
    IMAGES,
    MAPPERS,
    PIXELS,
    VOCABULARY,
    make,
    padded,
    photos,
    sharpened,
    tiny,
)

LORA = {"rank": 3, "alpha": 12.0}
TARGETS = CAPTIONS[CAPTIONS != PAD_TARGET]


def logits(model: ClipGpt2) -> Tensor:
    with torch.no_grad():
        scored: Tensor = model(model.encode(photos(3)), CAPTIONS, IMAGES).logits
    return scored


def learn(model: ClipGpt2, *, steps: int = 3, lr: float = 0.5) -> None:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(model(model.encode(photos(3)), CAPTIONS, IMAGES).logits, TARGETS).backward()
        optimiser.step()


class TestForwardText:
    @torch.no_grad()
    def test_text_follows_the_end_token_at_the_prefixs_last_position(self) -> None:
        model = sharpened(make(tiny()))
        scored = model.forward_text(CAPTIONS).logits
        inputs = torch.cat([torch.full((4, 1), 29), CAPTIONS[:, :-1].clamp(min=0)], dim=1)
        # The prefix takes positions 0 to 3; the last one predicts the first token.
        positions = torch.arange(3, 3 + inputs.shape[1])[None]
        expected = model.gpt2(inputs, position_ids=positions).logits[CAPTIONS != PAD_TARGET]
        torch.testing.assert_close(scored, expected, rtol=1e-4, atol=1e-4)
        elsewhere = model.gpt2(inputs).logits[CAPTIONS != PAD_TARGET]
        assert not torch.allclose(scored, elsewhere, atol=0.1)

    def test_only_gpt2_gets_gradients(self) -> None:
        model = make(tiny(train="gpt2")).train()
        functional.cross_entropy(model.forward_text(CAPTIONS).logits, TARGETS).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad == name.startswith("gpt2."), name

    def test_as_many_tokens_fit_as_after_a_prefix(self) -> None:
        model = make(tiny())
        longest = (model.max_positions() or 0) + 1
        model.forward_text(torch.zeros(1, longest, dtype=torch.long))
        with pytest.raises(SettingsError, match="24 positions"):
            model.forward_text(torch.zeros(1, longest + 1, dtype=torch.long))


@torch.no_grad()
def test_context_replaces_the_inputs_and_not_the_targets() -> None:
    model = sharpened(make(tiny()))
    features = model.encode(photos(3))
    caption, image = padded([[5, 6, 7, 29]]), torch.tensor([1])
    said = padded([[5, 9, 7, 29]])
    scored = model(features, caption, image, said).logits
    torch.testing.assert_close(scored, model(features, said, image).logits)
    torch.testing.assert_close(scored[:2], model(features, caption, image).logits[:2])
    assert not torch.allclose(scored[2:], model(features, caption, image).logits[2:], atol=0.01)
    # The last input precedes no target.
    torch.testing.assert_close(model(features, caption, image, padded([[5, 9, 7, 3]])).logits, scored)


class TestLora:
    def test_only_adapters_are_trained_and_have_the_rank_of_the_settings(self) -> None:
        model = make(tiny(lora=LORA)).train()
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        adapters = {name: p for name, p in learning.items() if name.startswith("gpt2.")}
        assert set(learning) - set(adapters) == {f"mapper.{name}" for name, _ in model.mapper.named_parameters()}
        # In each of two layers: 16 → 48 for queries, keys and values, 16 → 16 out.
        assert sum(p.numel() for p in adapters.values()) == 2 * 3 * ((16 + 48) + (16 + 16))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        learn(model)
        changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
        assert changed == set(learning)

    def test_other_layers_can_be_targets(self) -> None:
        model = make(tiny(lora={**LORA, "targets": ["mlp.c_fc"]}))
        assert sum(p.numel() for n, p in model.gpt2.named_parameters() if p.requires_grad) == 2 * 3 * (16 + 64)
        with pytest.raises(SettingsError, match=r"no layer 'q_proj'"):
            make(tiny(lora={**LORA, "targets": ["q_proj"]}))

    def test_adapters_change_nothing_at_first(self) -> None:
        plain, adapted = make(tiny()), make(tiny(lora=LORA))
        adapted.load_weights(plain.state_dict())
        assert torch.equal(logits(adapted), logits(plain))

    def test_dropout_applies_to_the_adapters_inputs(self) -> None:
        model = make(tiny(lora={**LORA, "dropout": 0.5}))
        learn(model)
        assert torch.equal(logits(model), logits(model))
        model.train()
        assert not torch.equal(logits(model), logits(model))

    def test_a_checkpoint_has_adapters_merged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = WordTokenizer.train(["a red disc left of a blue ring", "a white bar above a disc"], min_count=1)
        vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
        model = make(tiny(lora=LORA, gradient_checkpointing=True), vocabulary)
        captions, images = padded([[5, 6, 7, 2], [8, 2]]), torch.tensor([0, 1])
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        model(model.encode(photos(2)), captions, images).logits[:, 3].sum().backward()
        optimiser.step()
        model.eval()
        save_checkpoint(tmp_path, model, tokenizer, PIXELS, DecodingSettings(max_new_tokens=6))
        _forbid_import(monkeypatch, "peft")
        config = read_config(tmp_path)
        assert config.architecture.lora is None
        again = load_model(tmp_path, config, tokenizer).eval()
        assert isinstance(again, ClipGpt2)
        features = model.encode(photos(2))
        expected = model(features, captions, images).logits
        assert not torch.allclose(expected, make(tiny(), vocabulary)(features, captions, images).logits, atol=0.1)
        torch.testing.assert_close(again(features, captions, images).logits, expected, rtol=1e-5, atol=1e-5)
        assert load_captioner(str(tmp_path), device="cpu").caption_pixels(photos(2).numpy())

    def test_a_state_dict_keeps_adapters_apart(self) -> None:
        model = make(tiny(lora=LORA))
        learn(model)
        again = make(tiny(lora=LORA), seed=1)
        again.load_state_dict(model.state_dict())
        assert torch.equal(logits(again), logits(model))

    @pytest.mark.parametrize("after", [None, LORA, {**LORA, "alpha": 3.0}, {"rank": 2, "targets": ["mlp.c_fc"]}])
    @pytest.mark.parametrize("before", [None, LORA])
    def test_stages_convert_adapters(self, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        model = make(tiny(lora=before, dropout=0.2))
        learn(model)
        model.eval()
        following = make(tiny(lora=after), seed=1)
        following.load_weights(model.state_dict())
        torch.testing.assert_close(logits(following), logits(model), rtol=1e-4, atol=1e-5)

    def test_adapters_do_not_count_as_pretrained(self) -> None:
        settings = make(tiny()).settings
        assert ClipGpt2(settings, VOCABULARY, PIXELS, pretrained=False).pretrained_prefixes == ("clip.", "gpt2.")
        adapted = build(ClipGpt2Settings, {**_values(settings), "lora": LORA})
        assert ClipGpt2(adapted, VOCABULARY, PIXELS, pretrained=False).pretrained_prefixes == ("clip.",)

    def test_without_the_package_the_message_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _forbid_import(monkeypatch, "peft")
        with pytest.raises(SettingsError, match=r"captioning\[lora\]"):
            make(tiny(lora=LORA))

    def test_adapters_are_refused_for_a_frozen_gpt2(self) -> None:
        with pytest.raises(SettingsError, match="lora is for training GPT-2"):
            tiny(lora=LORA, train="mapper")

    def test_the_default_targets_are_attention(self) -> None:
        assert LoraSettings().targets == ("attn.c_attn", "attn.c_proj")


class TestLoadWeights:
    def test_another_model_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="size mismatch"):
            make(tiny()).load_weights(make(tiny(gpt2={**GPT2, "n_positions": 30})).state_dict())
        with pytest.raises(RuntimeError, match="Missing key"):
            make(tiny()).load_weights(make(tiny(clip=CNN)).state_dict())

    def test_tied_weights_can_be_untied_but_not_the_other_way(self) -> None:
        untied = {**GPT2, "tie_word_embeddings": False}
        model = make(tiny())
        two = make(tiny(gpt2=untied), seed=1)
        two.load_weights(model.state_dict())
        assert torch.equal(logits(two), logits(model))
        with pytest.raises(RuntimeError, match="one matrix"):
            make(tiny()).load_weights(make(tiny(gpt2=untied)).state_dict())


class TestGradientCheckpointing:
    @pytest.mark.parametrize("train", ["mapper", "decoder"])
    def test_gradients_are_the_same_and_blocks_run_twice(self, train: str) -> None:
        gradients, runs = [], []
        for checkpointing in (False, True):
            model = make(tiny(train=train, dropout=0.3, gradient_checkpointing=checkpointing)).train()
            calls: list[int] = []
            for block in model.gpt2.transformer.h:
                block.attn.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
            torch.manual_seed(7)
            functional.cross_entropy(model(model.encode(photos(3)), CAPTIONS, IMAGES).logits, TARGETS).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            runs.append(len(calls))
        assert runs == [2, 4]
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient)

    def test_forward_text_is_checkpointed_too(self) -> None:
        model = make(tiny(train="gpt2", gradient_checkpointing=True)).train()
        calls: list[int] = []
        model.gpt2.transformer.h[0].attn.register_forward_hook(lambda *_: calls.append(1))
        functional.cross_entropy(model.forward_text(CAPTIONS).logits, TARGETS).backward()
        assert len(calls) == 2

    def test_decoding_needs_evaluation_mode(self) -> None:
        model = make(tiny(gradient_checkpointing=True)).train()
        features = model.encode(photos(1))
        with pytest.raises(AssertionError):
            model.stepper(features)
        model.eval().stepper(features).start()


class TestMapperWeights:
    @pytest.fixture
    def trained(self, tmp_path: Path) -> Path:
        tokenizer = WordTokenizer.train(["a red disc left of a blue ring"], min_count=1)
        vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
        save_checkpoint(tmp_path / "before", make(tiny(), vocabulary), tokenizer, PIXELS, DecodingSettings())
        return tmp_path / "before"

    def test_mapper_weights_are_loaded_from_a_checkpoint(self, trained: Path) -> None:
        mapper = {**MAPPERS["mlp"], "weights": str(trained)}
        before, cold = make(tiny()), make(tiny(), seed=1)
        warm = make(tiny(mapper=mapper), seed=1)
        for name, value in warm.state_dict().items():
            source = before if name.startswith("mapper.") else cold
            assert torch.equal(value, source.state_dict()[name]), name
        assert warm.settings.mapper.weights is None
        ClipGpt2(warm.settings, VOCABULARY, PIXELS, pretrained=False)

    def test_another_mapper_is_refused(self, trained: Path) -> None:
        for changes, message in (({"prefix_length": 5}, "has shape"), (MAPPERS["transformer"], "lack")):
            mapper = {**MAPPERS["mlp"], **changes, "weights": str(trained)}
            with pytest.raises(CheckpointError, match=rf"model\.mapper\.weights: .*{message}"):
                make(tiny(mapper=mapper))

    def test_a_missing_checkpoint_is_named(self) -> None:
        with pytest.raises(CheckpointError, match=r"model\.mapper\.weights: .*'\./nowhere'"):
            make(tiny(mapper={**MAPPERS["mlp"], "weights": "./nowhere"}))


def _values(settings: ClipGpt2Settings) -> dict[str, Any]:
    from captioning.config import to_dict

    values: dict[str, Any] = to_dict(settings)
    return values


def _forbid_import(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
