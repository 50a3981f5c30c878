"""Decoding alone: our engine beside `generate` of transformers, same random GPT-2, same prefixes, one thread.

The two take turns; every turn both decode the same 32 images, and their tokens are compared.

    python -m tests.benchmarks.decoding RESULT.json [--rounds R]
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.data.preprocess import PreprocessSettings
from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from captioning.models.base import Vocabulary
from captioning.models.clip_fit import CLIP_MEAN, CLIP_STD
from captioning.models.clip_gpt2 import ClipGpt2, ClipGpt2Settings
from captioning.models.towers import ClipTower, Gpt2Tower

LAYERS, WIDTH, HEADS, VOCAB, EOS = 4, 256, 4, 50257, 50256
IMAGES, TOKENS, BEAMS = 32, 20, (1, 5)


def make_model() -> ClipGpt2:
    """A CLIP-GPT2 of random weights; its CLIP is as small as can be, and is not used."""
    torch.manual_seed(0)
    settings = ClipGpt2Settings(
        clip=ClipTower(hidden_size=8, projection_dim=64, layers=1, heads=1, image_size=32),
        gpt2=Gpt2Tower(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCAB, n_positions=64),
    )
    preprocess = PreprocessSettings(size=32, mean=CLIP_MEAN, std=CLIP_STD)
    model = ClipGpt2(settings, Vocabulary(VOCAB, EOS, EOS), preprocess, pretrained=False).eval()
    return model.requires_grad_(False)


def ours(model: ClipGpt2, features: Tensor, beams: int) -> list[list[int]]:
    """Tokens of the best caption of each image."""
    settings = DecodingSettings(beam_size=beams, max_new_tokens=TOKENS)
    return [list(found[0].tokens) for found in decode(model.stepper(features), settings, eos_id=EOS)]


def theirs(model: ClipGpt2, features: Tensor, beams: int) -> list[list[int]]:
    """The same by `generate`."""
    prefix = model.prefix(features)
    found: Any = model.gpt2.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
        max_new_tokens=TOKENS,
        num_beams=beams,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return [row[: row.index(EOS)] if EOS in row else row for row in found.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = make_model()
    features = torch.randn(IMAGES, 64, generator=torch.Generator().manual_seed(1))
    turns = []
    with torch.inference_mode():
        for beams in BEAMS:
            ours(model, features[:2], beams)
            theirs(model, features[:2], beams)
        for number in range(args.rounds):
            for beams in BEAMS:
                seconds, tokens = {}, {}
                for way in (ours, theirs) if number % 2 == 0 else (theirs, ours):
                    begin = time.perf_counter()
                    tokens[way] = way(model, features, beams)
                    seconds[way] = time.perf_counter() - begin
                same = sum(a == b for a, b in zip(tokens[ours], tokens[theirs], strict=True))
                turns.append(
                    {
                        "round": number,
                        "beams": beams,
                        "images": IMAGES,
                        "ours_seconds": seconds[ours],
                        "generate_seconds": seconds[theirs],
                        "same_tokens": same,
                    }
                )
    args.result.write_text(json.dumps(turns) + "\n")


if __name__ == "__main__":
    main()
