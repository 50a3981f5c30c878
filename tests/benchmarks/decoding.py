"""Decoding alone: our engine beside `generate` of transformers, beside one image at a time, and beside its floor.

All decode the same images with the same weights, in turn, in another order each round, and their
tokens are compared. The floor is the products that decoding cannot do without, in the fastest form at
hand, for the rows that were open at each step: the layers, what attention looks at, and the vocabulary.
On a CPU one thread's CPU time is counted, which other programs disturb least; on a GPU it is time by
the clock.

    python -m tests.benchmarks.decoding RESULT.json [--rounds R] [--device cuda [--cuda-graphs]] [--case NAME]…
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning import load_captioner
from captioning.data.preprocess import PreprocessSettings
from captioning.decoding.linear import Linear
from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.models.clip_gpt2_checks import CLIP_MEAN, CLIP_STD
from captioning.models.clip_gpt2_settings import ClipGpt2Settings
from captioning.models.tower_settings import ClipTower, Gpt2Tower
from tests.benchmarks.decoding_cases import CASES, Case

VOCAB, EOS, PREFIX = 50257, 50256, 10
IMAGES, TOKENS = 32, 20
#: One at a time takes a minute for all of them.
_SINGLE_IMAGES = 1
#: Words at once in the floor: of 1,024 to all of them what takes least.
_FLOOR_PIECE = 4608


class Decoding:
    """One case: the same images decoded in each way."""

    def __init__(self, case: Case, device: torch.device, images: int, *, cuda_graphs: bool) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.settings = DecodingSettings(beam_size=case.beams, max_new_tokens=TOKENS)
        self.dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        self.eos, self.banned = EOS, ()
        if case.sizes is None:
            captioner = load_captioner("flickr-lstm", device=str(device))
            self.model: CaptionModel = captioner.model
            self.eos, self.banned = captioner.tokenizer.eos_id, captioner.tokenizer.banned_ids
            size = captioner.preprocess.settings.size
            pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8)
            with torch.no_grad():
                self.features: Any = self.model.encode(pixels.to(device))
        else:
            self.model = make_gpt2(*case.sizes).to(device)
            self.features = torch.randn(images, 64, generator=torch.Generator().manual_seed(1)).to(device)
        if cuda_graphs:
            self.model.enable_cuda_graphs()
        self.rows: list[int] = []

    def ours(self) -> list[list[int]]:
        """Tokens of the best caption of each image, by the engine."""
        with self._autocast():
            stepper = self.model.stepper(self.features)
            found = decode(_Counted(stepper, self.rows), self.settings, eos_id=self.eos, banned=self.banned)
        return [list(hypotheses[0].tokens) for hypotheses in found]

    def generate(self) -> list[list[int]]:
        """The same by `generate`."""
        assert isinstance(self.model, ClipGpt2)
        with self._autocast():
            prefix = self.model.prefix(self.features)
            found: Any = self.model.gpt2.generate(
                inputs_embeds=prefix,
                attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=self.device),
                max_new_tokens=TOKENS,
                num_beams=self.case.beams,
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=EOS,
            )
        return [row[: row.index(EOS)] if EOS in row else row for row in found.tolist()]

    def single(self) -> list[list[int]]:
        """The same for the first image alone, all that was said being read again for each word."""
        assert isinstance(self.model, ClipGpt2)
        prefix = self.model.prefix(self.features[:_SINGLE_IMAGES])
        return [_beam_search_alone(self.model.gpt2, image[None], self.case.beams) for image in prefix]

    def make_floor(self) -> Callable[[], None]:
        """The products of the run just counted."""
        rows = list(self.rows)
        shapes = _lstm_layers(self.model) if self.case.sizes is None else _gpt2_layers(*self.case.sizes)
        layers = [Linear(torch.randn(o, i, device=self.device, dtype=self.dtype)) for o, i in shapes[:-1]]
        words, width = shapes[-1]
        piece = _FLOOR_PIECE if self.device.type == "cpu" else words
        vocabulary = [
            Linear(torch.randn(min(piece, words - at), width, device=self.device, dtype=self.dtype))
            for at in range(0, words, piece)
        ]
        given: dict[tuple[int, int], Tensor] = {}

        def run(products: Sequence[Linear], sizes: Sequence[int], count: int) -> None:
            for product, size in zip(products, sizes, strict=True):
                if (count, size) not in given:
                    given[count, size] = torch.randn(count, size, device=self.device, dtype=self.dtype)
                product(given[count, size])

        sizes = [i for _, i in shapes[:-1]]
        first = rows[0] * (1 if self.case.sizes is None else PREFIX)
        each = [1, *[self.case.beams] * (len(rows) - 1)]
        looks = [self._make_look(step, count, of) for step, (count, of) in enumerate(zip(rows, each, strict=True))]

        def floor() -> None:
            for step, count in enumerate(rows):
                run(layers, sizes, first if step == 0 else count)
                looks[step]()
                run(vocabulary, [width] * len(vocabulary), count)

        return floor

    def _make_look(self, step: int, rows: int, each: int) -> Callable[[], None]:
        """The two products of attention for so many rows, `each` of them an image's.

        The LSTM looks at the grid, GPT-2 in every layer at the prefix and at what its hypothesis has said: as many
        places as if the hypotheses of an image had said the same.
        """
        images = rows // each

        def made(*shape: int) -> Tensor:
            return torch.randn(images, heads, *shape, device=self.device, dtype=self.dtype)

        if self.case.sizes is None:
            # As they lie in memory: laid out anew for the product they would take less.
            times, keys, values = 1, self.features.keys[:images].transpose(2, 3), self.features.values[:images]
            _, heads, size, places = keys.shape
        else:
            times, width, heads = self.case.sizes
            places, size = PREFIX + step, width // heads
            each = PREFIX if step == 0 else each
            keys, values = made(size, places), made(places, size)
        queries, weights = made(each, size), made(each, places)

        def look() -> None:
            for _ in range(times):
                torch.matmul(queries, keys)
                torch.matmul(weights, values)

        return look

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bf16")


class _Counted:
    """A stepper whose rows are counted step by step."""

    def __init__(self, stepper: Any, rows: list[int]) -> None:
        self._stepper, self._rows, self.lm_head = stepper, rows, stepper.lm_head

    def start(self) -> Tensor:
        self._rows.clear()
        states: Tensor = self._stepper.start()
        self._rows.append(len(states))
        return states

    def advance(self, tokens: Tensor, rows: Any) -> Tensor:
        states: Tensor = self._stepper.advance(tokens, rows)
        self._rows.append(len(states))
        return states


def make_gpt2(layers: int, width: int, heads: int) -> ClipGpt2:
    """A CLIP-GPT2 of random weights; its CLIP is as small as can be, and is not used."""
    settings = ClipGpt2Settings(
        clip=ClipTower(hidden_size=8, projection_dim=64, layers=1, heads=1, image_size=32),
        gpt2=Gpt2Tower(n_embd=width, n_layer=layers, n_head=heads, vocab_size=VOCAB, n_positions=64),
    )
    preprocess = PreprocessSettings(size=32, mean=CLIP_MEAN, std=CLIP_STD)
    model = ClipGpt2(settings, Vocabulary(VOCAB, EOS, EOS), preprocess, pretrained=False).eval()
    return model.requires_grad_(False)


def _gpt2_layers(layers: int, width: int, _: int) -> list[tuple[int, int]]:
    """(out, in) of every product a row, the vocabulary last."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [*block * layers, (VOCAB, width)]


def _lstm_layers(model: Any) -> list[tuple[int, int]]:
    hidden, embedding = model.settings.hidden_size, model.settings.embedding_size
    attention = [(2 * hidden, hidden), (hidden, hidden)] if model.attend is not None else []
    return [(4 * hidden, hidden), *attention, (embedding, hidden), (model.vocab_size, embedding)]


def _beam_search_alone(gpt2: Any, prefix: Tensor, beams: int) -> list[int]:
    """Beam search as notebooks write it: a list of hypotheses, read from the beginning for every word."""
    words = gpt2.transformer.wte
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(TOKENS):
        candidates = []
        for total, tokens in running:
            said = words(torch.tensor([tokens], dtype=torch.long, device=prefix.device))
            logits = gpt2(inputs_embeds=torch.cat([prefix, said], dim=1), use_cache=False).logits[0, -1]
            best = functional.log_softmax(logits.float(), 0).topk(2 * beams)
            for score, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append((total + score, [*tokens, token]))
        candidates.sort(key=lambda each: -each[0])
        ended += [each for each in candidates[:beams] if each[1][-1] == EOS]
        running = [each for each in candidates if each[1][-1] != EOS][:beams]
    best_of_all = max([*ended, *running], key=lambda each: each[0] / len(each[1]))
    return [token for token in best_of_all[1] if token != EOS]


def measure(
    name: str, *, rounds: int, device: torch.device, images: int = IMAGES, cuda_graphs: bool = False
) -> list[dict[str, Any]]:
    """The raw timings of one case, a dict a round: seconds for all images, and images with the same tokens."""
    case = CASES[name]
    decoding = Decoding(case, device, images, cuda_graphs=cuda_graphs)
    with torch.inference_mode():
        decoding.ours()
        ways: dict[str, Callable[[], Any]] = {"ours": decoding.ours, "floor": decoding.make_floor()}
        if case.sizes is not None:
            ways["generate"] = decoding.generate
            decoding.generate()
        if case.single:
            ways["single"] = decoding.single
        turns = []
        for number in range(rounds):
            names = [*ways]
            found: dict[str, Any] = {}
            seconds = {}
            for way in names[number % len(names) :] + names[: number % len(names)]:
                begin = _now(device)
                found[way] = ways[way]()
                seconds[way] = _now(device) - begin
            if "single" in seconds:
                seconds["single"] *= images / _SINGLE_IMAGES
            turn = {"case": name, "round": number, "images": images, "seconds": seconds}
            for way in ("generate", "single"):
                if way in found:
                    turn[f"same_as_{way}"] = sum(a == b for a, b in zip(found["ours"], found[way], strict=False))
            turns.append(turn)
    return turns


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--cuda-graphs", action="store_true", help="ours by recorded steps; not for the case lstm")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; can be repeated")
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    turns = []
    for name in args.case or CASES:
        device = torch.device(args.device)
        turns += measure(name, rounds=args.rounds, device=device, images=args.images, cuda_graphs=args.cuda_graphs)
        args.result.write_text(json.dumps(turns) + "\n")
        last = turns[-1]
        print(name, {way: round(seconds, 4) for way, seconds in last["seconds"].items()}, flush=True)


if __name__ == "__main__":
    main()
