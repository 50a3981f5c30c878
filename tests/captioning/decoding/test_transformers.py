"""The search gives the same tokens as transformers' `generate`.

Both decode the same small random GPT-2 from prefix embeddings, like those a mapper makes from an
image. The weights are scaled so that logits are peaked and captions end at many lengths.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GPT2Config, GPT2LMHeadModel

from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from tests.captioning.decoding.fakes import identity_head

EOS, VOCAB, WIDTH, PREFIX = 96, 97, 32, 4
PROMPT = [5, 17, 8]
NUM_PREFIXES = 24


class Gpt2Stepper:
    """GPT-2 over prefix embeddings (B, P, D), with transformers' own cache."""

    lm_head = identity_head(VOCAB)

    def __init__(self, model: GPT2LMHeadModel, prefix: Tensor) -> None:
        self.model, self.prefix = model, prefix

    def start(self) -> Tensor:
        self.cache = DynamicCache()
        return self._logits(inputs_embeds=self.prefix)

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        self.cache.reorder_cache(torch.as_tensor(rows).flatten())
        return self._logits(input_ids=tokens.reshape(-1, 1))

    def _logits(self, **inputs: Tensor) -> Tensor:
        output = self.model(**inputs, past_key_values=self.cache, use_cache=True)
        logits: Tensor = output.logits[:, -1]
        return logits.float()


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(20)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=48, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=EOS, eos_token_id=EOS
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(8 if "wte" not in name else 12)
        # The end token's row leans on the mean direction of the hidden states, so that it comes often.
        model.transformer.ln_f.bias.fill_(0.3)
        model.transformer.wte.weight[EOS] += 0.2
    # In double precision both get the same float32 logits, however rows are batched: no tie in the last
    # digit is broken differently.
    return model.double()


CASES: dict[str, dict[str, float]] = {
    "plain": {},
    "no length penalty": {"length_penalty": 0.0},
    "long wanted": {"length_penalty": 2.0},
    "short wanted": {"length_penalty": -1.0},
    "repetition penalised": {"repetition_penalty": 1.3},
    "repetition rewarded": {"repetition_penalty": 0.8},
    "no bigram twice": {"no_repeat_ngram_size": 2},
    "no word twice": {"no_repeat_ngram_size": 1},
    "not too short": {"min_new_tokens": 6},
    "all": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 3, "length_penalty": 0.7},
}


def generate(
    model: GPT2LMHeadModel, prefix: Tensor, settings: DecodingSettings, banned: list[int]
) -> list[list[list[int]]]:
    """Tokens of `generate` up to the end token, by image and rank."""
    config = GenerationConfig(
        num_beams=settings.beam_size,
        num_return_sequences=settings.num_captions,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens or None,
        length_penalty=settings.length_penalty if settings.beam_size > 1 else None,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        suppress_tokens=banned or None,
        do_sample=False,
        early_stopping=False,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    found = model.generate(
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long), generation_config=config
    ).tolist()
    cut = [row[: row.index(EOS)] if EOS in row else row for row in found]
    each = settings.num_captions
    return [cut[at : at + each] for at in range(0, len(cut), each)]


@pytest.mark.filterwarnings("ignore:Passing `:UserWarning")
@pytest.mark.parametrize("prompted", [False, True], ids=["prefix", "prefix and prompt"])
@pytest.mark.parametrize("beam_size", [1, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_same_tokens(model: GPT2LMHeadModel, case: str, beam_size: int, prompted: bool) -> None:
    settings = DecodingSettings(beam_size=beam_size, num_captions=beam_size, max_new_tokens=16, **CASES[case])  # type: ignore[arg-type]
    banned = [3, 40] if case == "all" else []
    # Other prefixes for every case: 480 in all, each decoded with every number of beams.
    seed = 2 * list(CASES).index(case) + prompted
    prefix = torch.randn(NUM_PREFIXES, PREFIX, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    if prompted:
        prompt = model.transformer.wte(torch.tensor(PROMPT)).detach()
        prefix = torch.cat((prefix, prompt.expand(NUM_PREFIXES, -1, -1)), dim=1)
    ours = decode(Gpt2Stepper(model, prefix), settings, eos_id=EOS, banned=banned)
    tokens = [[list(hypothesis.tokens) for hypothesis in image] for image in ours]
    assert tokens == generate(model, prefix, settings, banned)
    if case == "plain":
        # If all were of one length, little would be compared.
        assert len({image[0].num_tokens for image in ours}) > 1
