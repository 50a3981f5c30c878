"""CLIP-GPT2: teacher forcing, decoding, and where its weights come from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
)

from captioning.captioner import Captioner, load_captioner
from captioning.config import build, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.data.tokenizers import BpeTokenizer, WordTokenizer
from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError, SettingsError
from captioning.models.base import PAD_TARGET, Vocabulary
from captioning.models.checkpoint import save_checkpoint
from captioning.models.clip_gpt2 import ClipGpt2, MappedFeatures
from captioning.models.clip_gpt2_checks import CLIP_MEAN, CLIP_STD, resolved
from captioning.models.clip_gpt2_settings import ClipGpt2Settings
from tests.captioning.decoding.fakes import LogitsStepper
from tests.captioning.models.clips import (
    CAPTIONS,
    CLIP,
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


class TestTeacherForcing:
    @pytest.mark.parametrize("mapper", MAPPERS)
    @pytest.mark.parametrize("prompt", [None, [11, 12, 13]])
    @torch.no_grad()
    def test_logits_are_those_of_the_stepper(self, mapper: str, prompt: list[int] | None) -> None:
        model = sharpened(make(tiny(mapper)))
        features = model.encode(photos(3))
        forced = model(features, CAPTIONS, IMAGES, prompt=prompt).logits
        stepped = []
        for caption, image in zip(CAPTIONS.tolist(), IMAGES.tolist(), strict=True):
            stepper = LogitsStepper(model.stepper(features[image : image + 1], prompt))
            stepped.append(stepper.start())
            # The end token is a target, never an input.
            stepped += [stepper.advance(torch.tensor([token]), [0]) for token in caption if token not in (-100, 29)]
        torch.testing.assert_close(forced, torch.cat(stepped), rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_logits_have_one_row_a_target_in_order(self) -> None:
        model = sharpened(make(tiny()))
        features = model.encode(photos(3))
        together = model(features, CAPTIONS, IMAGES).logits
        assert together.shape == (13, 30)
        alone = [model(features, CAPTIONS[row : row + 1], IMAGES[row : row + 1]).logits for row in range(len(CAPTIONS))]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_padding_changes_nothing(self) -> None:
        model = sharpened(make(tiny()))
        features = model.encode(photos(3))
        wider = functional.pad(CAPTIONS, (0, 3), value=PAD_TARGET)
        narrow, wide = model(features, CAPTIONS, IMAGES).logits, model(features, wider, IMAGES).logits
        torch.testing.assert_close(wide, narrow, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_a_prompt_is_input_but_no_target(self) -> None:
        model = sharpened(make(tiny()))
        features = model.encode(photos(1))
        image = torch.tensor([0])
        whole = model(features, padded([[11, 12, 5, 6, 29]]), image).logits
        after_prompt = model(features, padded([[5, 6, 29]]), image, prompt=[11, 12]).logits
        torch.testing.assert_close(after_prompt, whole[2:], rtol=1e-4, atol=1e-4)

    def test_the_end_token_and_token_0_are_targets(self) -> None:
        """Token 0 is a token ("!" in GPT-2), not padding."""
        model = make(tiny())
        targets = CAPTIONS[CAPTIONS != PAD_TARGET]
        assert {0, 29} <= set(targets.tolist())
        loss = functional.cross_entropy(model(model.encode(photos(3)), CAPTIONS, IMAGES).logits, targets)
        assert loss.item() == pytest.approx(np.log(30), abs=0.3)

    def test_a_caption_beyond_the_positions_is_refused(self) -> None:
        model = make(tiny())
        features = model.encode(photos(1))
        assert model.max_positions() == 20
        model(features, torch.zeros(1, 20, dtype=torch.long), torch.tensor([0]))
        with pytest.raises(SettingsError, match=r"24 positions.*20 tokens"):
            model(features, torch.zeros(1, 22, dtype=torch.long), torch.tensor([0]))

    def test_decoding_beyond_the_positions_is_refused(self) -> None:
        model = make(tiny())
        with pytest.raises(SettingsError, match="max_new_tokens"):
            decode(model.stepper(model.encode(photos(1))), DecodingSettings(max_new_tokens=40), eos_id=99)


class TestStepper:
    @torch.no_grad()
    def test_rows_are_selected_repeated_and_dropped(self) -> None:
        model = sharpened(make(tiny()))
        features = model.encode(photos(3))
        stepper = LogitsStepper(model.stepper(features))
        stepper.start()
        stepper.advance(torch.tensor([5, 6, 7, 8]), [0, 0, 2, 1])
        logits = stepper.advance(torch.tensor([1, 2]), torch.tensor([3, 1]))
        forced = model(features, padded([[8, 1, 29], [6, 2, 29]]), torch.tensor([1, 0])).logits
        torch.testing.assert_close(logits, forced[[2, 5]], rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_hypotheses_do_not_mix_however_they_branch_and_end(self) -> None:
        """Four hypotheses an image, random parents for 14 steps, and an image that finishes halfway."""
        beams, steps = 4, 14
        model = sharpened(make(tiny())).double()
        features = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        stepper = LogitsStepper(model.stepper(features))
        stepper.start()
        chance = torch.Generator().manual_seed(6)
        images = torch.arange(3)
        said = torch.empty(3, 1, 0, dtype=torch.long)
        for step in range(steps):
            kept = torch.tensor([0, 2]) if step == 8 else torch.arange(len(images))
            parents = torch.randint(said.shape[1], (len(kept), beams), generator=chance)
            tokens = torch.randint(30, (len(kept), beams), generator=chance)
            logits = stepper.advance(tokens, kept[:, None] * said.shape[1] + parents)
            images, said = images[kept], torch.cat([said[kept[:, None], parents], tokens[:, :, None]], dim=2)
            captions = functional.pad(said.flatten(0, 1), (0, 1), value=29)
            forced = model(features[images], captions, torch.arange(len(images)).repeat_interleave(beams)).logits
            expected = forced.view(*captions.shape, -1)[:, -1]
            torch.testing.assert_close(logits, expected.float(), rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_states_are_bitwise_the_same_in_any_batch(self) -> None:
        """Alone, and beside an image whose hypotheses all live on, and so need many cache entries."""
        model = make(tiny())
        prefix = model.prefix(torch.randn(2, 12, generator=torch.Generator().manual_seed(7)))
        alone, together = (LogitsStepper(model.stepper(MappedFeatures(each))) for each in (prefix[:1], prefix))
        assert torch.equal(alone.start()[0], together.start()[0])
        chance = torch.Generator().manual_seed(8)
        for step in range(12):
            before = min(step * 4, 4) or 1
            parents = torch.stack((torch.randint(before, (4,), generator=chance), torch.arange(4) % before))
            tokens = torch.randint(30, (2, 4), generator=chance)
            first = alone.advance(tokens[:1], parents[:1])
            both = together.advance(tokens, parents + torch.tensor([[0], [before]]))
            assert torch.equal(first, both[:4]), step

    @torch.no_grad()
    def test_a_stepper_can_be_started_again(self) -> None:
        model = make(tiny())
        stepper = LogitsStepper(model.stepper(model.encode(photos(2))))
        first = stepper.start()
        stepper.advance(torch.tensor([1, 2]), [0, 1])
        torch.testing.assert_close(stepper.start(), first)

    @pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
    @pytest.mark.parametrize("beams", [1, 3, 5])
    @pytest.mark.parametrize("penalty", [1.0, 1.3])
    @pytest.mark.parametrize("prompt", [None, [5, 6, 7]])
    @torch.no_grad()
    def test_captions_are_those_of_generate(self, beams: int, penalty: float, prompt: list[int] | None) -> None:
        """20 prefixes in each of 12 settings, in float64, so that rounding breaks no ties."""
        few = Vocabulary(size=12, bos_id=11, eos_id=11)
        # Untied, since a model with random tied weights repeats its last token.
        model = sharpened(make(tiny(gpt2={**GPT2, "tie_word_embeddings": False}), few, seed=2), 8).double()
        features = 8 * torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(beams))
        settings = DecodingSettings(beam_size=beams, repetition_penalty=penalty, max_new_tokens=12)
        found = [best[0].tokens for best in decode(model.stepper(features, prompt), settings, eos_id=11)]
        assert found == generate(model, model.prefix(features, prompt or []), settings, eos_id=11)
        assert len(set(found)) > 5
        assert any(len(tokens) < 12 for tokens in found)


def generate(model: ClipGpt2, prefix: Tensor, settings: DecodingSettings, eos_id: int) -> list[tuple[int, ...]]:
    """The tokens of `transformers` for the same prefixes, up to the end token."""
    rows = model.gpt2.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
        do_sample=False,
        num_beams=settings.beam_size,
        max_new_tokens=settings.max_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    ).tolist()
    return [tuple(row[: row.index(eos_id)] if eos_id in row else row) for row in rows]


class TestTraining:
    @pytest.mark.parametrize(
        ("train", "learning"),
        [("mapper", {"mapper"}), ("decoder", {"mapper", "gpt2"}), ("all", {"mapper", "gpt2", "clip"})],
    )
    @pytest.mark.parametrize("mapper", ["mlp", "patches"])
    def test_only_what_is_trained_changes(self, train: str, learning: set[str], mapper: str) -> None:
        model = make(tiny(mapper, train=train, dropout=0.3)).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        captions = padded([[5, 6, 7, 29], [8, 29]])
        logits = model(model.encode(photos(2)), captions, torch.tensor([0, 1])).logits
        functional.cross_entropy(logits, captions[captions != PAD_TARGET]).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        optimiser.step()
        changed = {name.split(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
        assert changed == learning

    @pytest.mark.parametrize(("train", "frozen"), [("mapper", ["clip", "gpt2"]), ("decoder", ["clip"]), ("all", [])])
    def test_frozen_parts_stay_in_evaluation_mode(self, train: str, frozen: list[str]) -> None:
        model = make(tiny(train=train, dropout=0.3)).train()
        for name in ["clip", "mapper", "gpt2"]:
            part = model.get_submodule(name)
            assert {module.training for module in part.modules()} == {name not in frozen}
        assert not any(module.training for module in model.eval().modules())

    def test_frozen_features_carry_no_graph(self) -> None:
        assert not make(tiny(train="decoder")).encode(photos(1)).requires_grad
        assert make(tiny(train="all")).encode(photos(1)).requires_grad


class TestPixels:
    @torch.no_grad()
    def test_clip_sees_normalised_pixels(self) -> None:
        model = make(tiny())
        pixels = photos(2)
        mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
        seen = torch.from_numpy((pixels.numpy() / 255 - mean) / std).permute(0, 3, 1, 2).float()
        torch.testing.assert_close(
            model.encode(pixels), model.clip(pixel_values=seen).image_embeds, rtol=1e-4, atol=1e-5
        )

    def test_another_size_is_refused(self) -> None:
        with pytest.raises(SettingsError, match=r"set preprocess\.size to 16"):
            ClipGpt2(tiny(), VOCABULARY, dataclasses.replace(PIXELS, size=32), pretrained=True)


class TestCheckpoint:
    @torch.no_grad()
    @pytest.mark.parametrize("tied", [True, False])
    def test_settings_and_weights_rebuild_the_model(self, tmp_path: Path, tied: bool) -> None:
        model = make(tiny("patches", gpt2={**GPT2, "tie_word_embeddings": tied}))
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        settings = build(ClipGpt2Settings, to_dict(model.settings))
        torch.manual_seed(1)
        again = ClipGpt2(settings, VOCABULARY, PIXELS, pretrained=False).eval()
        again.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
        features = model.encode(photos(3))
        torch.testing.assert_close(again.encode(photos(3)), features, rtol=0, atol=0)
        expected = model(features, CAPTIONS, IMAGES).logits
        torch.testing.assert_close(again(features, CAPTIONS, IMAGES).logits, expected, rtol=0, atol=0)
        assert (again.gpt2.lm_head.weight is again.gpt2.transformer.wte.weight) == tied

    def test_a_captioner_is_saved_and_loaded(self, tmp_path: Path) -> None:
        tokenizer = WordTokenizer.train(["a red disc left of a blue ring", "a white bar above a disc"], min_count=1)
        vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
        model = sharpened(make(tiny(), vocabulary))
        decoding = DecodingSettings(beam_size=2, max_new_tokens=6)
        save_checkpoint(tmp_path / "tiny", model, tokenizer, PIXELS, decoding)
        again = load_captioner(str(tmp_path / "tiny"), device="cpu", encoder="eager")
        expected = Captioner(model, tokenizer, PIXELS, decoding).caption_pixels(photos(4).numpy())
        assert again.caption_pixels(photos(4).numpy()) == expected

    def test_references_need_weights(self) -> None:
        with pytest.raises(CheckpointError, match="given as sizes"):
            ClipGpt2(ClipGpt2Settings(), VOCABULARY, PIXELS, pretrained=False)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A whole CLIP, in half precision, and a GPT-2 in the hub's layout."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    whole = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(whole).half().save_pretrained(tmp_path / "clip")
    CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "vision")
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=24, vocab_size=32, bos_token_id=29, eos_token_id=29)
    GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "gpt2")
    GPT2Model(gpt2).save_pretrained(tmp_path / "bare-gpt2")
    return tmp_path


def from_folders(folder: Path, clip: str = "clip", gpt2: str = "gpt2") -> ClipGpt2Settings:
    return tiny(clip=str(folder / clip), gpt2=str(folder / gpt2))


class TestPublishedWeights:
    @torch.no_grad()
    def test_a_clip_may_give_its_projection_only_at_the_top_level(self, published: Path) -> None:
        """As LAION's do."""
        path = published / "clip" / "config.json"
        config = json.loads(path.read_text())
        assert config["vision_config"].pop("projection_dim") == config["projection_dim"] == 12
        path.write_text(json.dumps(config))
        model = make(from_folders(published))
        own = CLIPModel.from_pretrained(published / "clip").float().eval()
        embeddings = own.visual_projection(own.vision_model(model.normalise(photos(2))).pooler_output)
        torch.testing.assert_close(model.encode(photos(2)), embeddings)

    @pytest.mark.parametrize("clip", ["clip", "vision"])
    @pytest.mark.parametrize("gpt2", ["gpt2", "bare-gpt2"])
    @torch.no_grad()
    def test_weights_are_loaded_from_folders(self, published: Path, clip: str, gpt2: str) -> None:
        model = make(from_folders(published, clip, gpt2))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        own_clip = CLIPVisionModelWithProjection.from_pretrained(published / clip).float().eval()
        pixels = model.normalise(photos(2))
        torch.testing.assert_close(model.encode(photos(2)), own_clip(pixel_values=pixels).image_embeds)
        own_gpt2 = GPT2LMHeadModel.from_pretrained(published / gpt2).float().eval()
        tokens = torch.tensor([[1, 2, 3]])
        torch.testing.assert_close(model.gpt2(tokens).logits, own_gpt2(tokens).logits)

    def test_resolved_settings_do_not_need_the_folders(self, published: Path) -> None:
        model = make(from_folders(published))
        assert model.settings == resolved(model.settings, VOCABULARY)
        sizes = to_dict(model.settings)
        assert sizes["clip"]["intermediate_size"] == 24
        assert sizes["gpt2"]["vocab_size"] == 32
        again = ClipGpt2(model.settings, VOCABULARY, PIXELS, pretrained=False)
        again.load_state_dict(model.state_dict())

    def test_pretrained_towers_are_known(self, published: Path) -> None:
        """They have a learning rate of their own."""
        assert make(tiny()).pretrained_prefixes == ()
        assert make(tiny(clip=str(published / "clip"))).pretrained_prefixes == ("clip.",)
        own = ClipGpt2(make(tiny()).settings, VOCABULARY, PIXELS, pretrained=False)
        assert own.pretrained_prefixes == ("clip.", "gpt2.")

    @torch.no_grad()
    def test_a_padded_vocabulary_is_cut_to_the_tokenizers(self, published: Path) -> None:
        model = make(from_folders(published))
        features = model.encode(photos(3))
        assert model(features, CAPTIONS, IMAGES).logits.shape[1] == model.vocab_size == 30
        assert LogitsStepper(model.stepper(features)).start().shape == (3, 30)

    def test_a_larger_tokenizer_is_refused(self, published: Path) -> None:
        with pytest.raises(SettingsError, match="40 tokens, but this GPT-2 has 32"):
            make(from_folders(published), Vocabulary(40, 39, 39))

    def test_another_kind_of_model_is_refused(self, published: Path) -> None:
        with pytest.raises(CheckpointError, match=r"model\.clip: .* type 'gpt2'"):
            make(from_folders(published, clip="gpt2"))
        with pytest.raises(CheckpointError, match=r"model\.gpt2: .* type 'clip'"):
            make(from_folders(published, gpt2="clip"))

    def test_weights_that_do_not_fit_their_config_are_refused(self, published: Path) -> None:
        config = published / "gpt2" / "config.json"
        config.write_text(config.read_text().replace('"n_positions": 24', '"n_positions": 25'))
        with pytest.raises(CheckpointError, match=r"model\.gpt2: transformer\.wpe\.weight"):
            make(from_folders(published))

    def test_a_missing_folder_is_named(self, published: Path) -> None:
        with pytest.raises(CheckpointError, match=r"model\.clip: the folder .* does not exist"):
            make(from_folders(published, clip="nowhere"))

    def test_another_normalisation_gives_a_warning(self, published: Path) -> None:
        with pytest.warns(UserWarning, match=r"set preprocess\.mean to"):
            ClipGpt2(from_folders(published), VOCABULARY, PreprocessSettings(size=16), pretrained=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpt2": {**GPT2, "n_positions": 4}}, "leaves no room"),
        ({"gpt2": {**GPT2, "activation_function": "none such"}}, r"model\.gpt2"),
        ({"gpt2": {**GPT2, "n_head": 3}}, "multiple of n_head"),
        ({"clip": {**CLIP, "heads": 3}}, "multiple of heads"),
        ({"clip": {**CLIP, "patch_size": 32}}, "at least patch_size"),
        ({"clip": {**CLIP, "layer": 2}}, "'layers'"),
        ({"mapper": {"kind": "transformer", "heads": 5}}, r"mapper\.heads 5"),
        ({"train": "everything"}, "train"),
    ],
)
def test_settings_that_make_no_model_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make(tiny(**changes))


@pytest.fixture(scope="module")
def real_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/32 and GPT-2 small in the hub's layout, with tokenizer files and random weights."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig()).save_pretrained(folder / "clip")
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / "gpt2")
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"word{number}" for number in range(50256 - len(alphabet))), "<|endoftext|>"]
    (folder / "gpt2" / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "gpt2" / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_real_sizes_caption_a_photo_as_generate_does(real_sizes: Path) -> None:
    from sklearn.datasets import load_sample_image

    tokenizer = BpeTokenizer.from_pretrained_folder(real_sizes / "gpt2")
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    preprocess = PreprocessSettings(size=224, mean=CLIP_MEAN, std=CLIP_STD)
    settings = ClipGpt2Settings(clip=str(real_sizes / "clip"), gpt2=str(real_sizes / "gpt2"))
    model = ClipGpt2(settings, vocabulary, preprocess, pretrained=True)
    decoding = DecodingSettings(beam_size=3, max_new_tokens=8, repetition_penalty=1.2)
    captioner = Captioner(model, tokenizer, preprocess, decoding)
    photo = load_sample_image("china.jpg")
    [caption] = captioner.caption([photo])
    assert caption.text
    assert 1 <= caption.num_tokens <= 8
    with torch.no_grad():
        pixels = np.stack([captioner.preprocess(part) for part in (photo, photo[::-1], photo[:, :300])])
        features = model.encode(torch.from_numpy(pixels))
        found = [best[0].tokens for best in decode(model.stepper(features), decoding, eos_id=tokenizer.eos_id)]
        assert found == generate(model, model.prefix(features), decoding, tokenizer.eos_id)
    assert tokenizer.decode(found[0]) == caption.text
