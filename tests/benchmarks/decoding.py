"""Decoding alone: our engine compared with `generate` of transformers, with one image at a time, and with its floor.

All decode the same images with the same weights, in a different order each round, and their tokens are
compared. The floor is the matrix products that decoding cannot avoid, in the fastest form available, for
the rows that were open at each step: the layers, attention, and the output layer. On a CPU the CPU time
of one thread is measured, which other programs disturb least; on a GPU it is wall time.

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
#: All images one at a time would take a minute.
_SINGLE_IMAGES = 1
#: Tokens in a tile of the floor's output layer: the fastest of 1,024 to all of them.
_FLOOR_TILE = 4608


class Decoding:
    """One case: the same images decoded by each method."""

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
        """Tokens of each image's best caption, by our engine."""
        with self._autocast():
            stepper = self.model.stepper(self.features)
            found = decode(_Counted(stepper, self.rows), self.settings, eos_id=self.eos, banned=self.banned)
        return [list(hypotheses[0].tokens) for hypotheses in found]

    def generate(self) -> list[list[int]]:
        """Those of `generate`."""
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
        """Those of the first image, by plain beam search without a cache."""
        assert isinstance(self.model, ClipGpt2)
        prefix = self.model.prefix(self.features[:_SINGLE_IMAGES])
        return [_beam_search_alone(self.model.gpt2, image[None], self.case.beams) for image in prefix]

    def make_floor(self) -> Callable[[], None]:
        """The matrix products of the last counted run, as a function."""
        rows = list(self.rows)
        shapes = _lstm_layers(self.model) if self.case.sizes is None else _gpt2_layers(*self.case.sizes)
        layers = [Linear(torch.randn(o, i, device=self.device, dtype=self.dtype)) for o, i in shapes[:-1]]
        vocab_size, width = shapes[-1]
        tile = _FLOOR_TILE if self.device.type == "cpu" else vocab_size
        lm_head = [
            Linear(torch.randn(min(tile, vocab_size - at), width, device=self.device, dtype=self.dtype))
            for at in range(0, vocab_size, tile)
        ]
        inputs: dict[tuple[int, int], Tensor] = {}

        def run(products: Sequence[Linear], sizes: Sequence[int], count: int) -> None:
            for product, size in zip(products, sizes, strict=True):
                if (count, size) not in inputs:
                    inputs[count, size] = torch.randn(count, size, device=self.device, dtype=self.dtype)
                product(inputs[count, size])

        sizes = [i for _, i in shapes[:-1]]
        first = rows[0] * (1 if self.case.sizes is None else PREFIX)
        each = [1, *[self.case.beams] * (len(rows) - 1)]
        attentions = [
            self._make_attention(step, count, of) for step, (count, of) in enumerate(zip(rows, each, strict=True))
        ]

        def floor() -> None:
            for step, count in enumerate(rows):
                run(layers, sizes, first if step == 0 else count)
                attentions[step]()
                run(lm_head, [width] * len(lm_head), count)

        return floor

    def _make_attention(self, step: int, rows: int, each: int) -> Callable[[], None]:
        """The two products of attention for so many rows, `each` of them an image's.

        The LSTM attends to the grid, GPT-2 in every layer to the prefix and the hypothesis's tokens: as many entries
        as if the hypotheses of an image had all tokens in common.
        """
        images = rows // each

        def made(*shape: int) -> Tensor:
            return torch.randn(images, heads, *shape, device=self.device, dtype=self.dtype)

        if self.case.sizes is None:
            # In the layout that decoding has; copied into a better one they would take less.
            times, keys, values = 1, self.features.keys[:images].transpose(2, 3), self.features.values[:images]
            _, heads, size, places = keys.shape
        else:
            times, width, heads = self.case.sizes
            places, size = PREFIX + step, width // heads
            each = PREFIX if step == 0 else each
            keys, values = made(size, places), made(places, size)
        queries, weights = made(each, size), made(each, places)

        def attention() -> None:
            for _ in range(times):
                torch.matmul(queries, keys)
                torch.matmul(weights, values)

        return attention

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bf16")


class _Counted:
    """A stepper that counts its rows at each step."""

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
    """A CLIP-GPT2 of random weights; its CLIP is tiny and not used."""
    settings = ClipGpt2Settings(
        clip=ClipTower(hidden_size=8, projection_dim=64, layers=1, heads=1, image_size=32),
        gpt2=Gpt2Tower(n_embd=width, n_layer=layers, n_head=heads, vocab_size=VOCAB, n_positions=64),
    )
    preprocess = PreprocessSettings(size=32, mean=CLIP_MEAN, std=CLIP_STD)
    model = ClipGpt2(settings, Vocabulary(VOCAB, EOS, EOS), preprocess, pretrained=False).eval()
    return model.requires_grad_(False)


def _gpt2_layers(layers: int, width: int, _: int) -> list[tuple[int, int]]:
    """(out, in) of every linear layer, the output layer last."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [*block * layers, (VOCAB, width)]


def _lstm_layers(model: Any) -> list[tuple[int, int]]:
    hidden, embedding = model.settings.hidden_size, model.settings.embedding_size
    attention = [(2 * hidden, hidden), (hidden, hidden)] if model.attend is not None else []
    return [(4 * hidden, hidden), *attention, (embedding, hidden), (model.vocab_size, embedding)]


def _beam_search_alone(gpt2: Any, prefix: Tensor, beams: int) -> list[int]:
    """Beam search as in notebooks: a list of hypotheses, each run from its beginning for every token."""
    embed = gpt2.transformer.wte
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(TOKENS):
        candidates = []
        for total, tokens in running:
            embeddings = embed(torch.tensor([tokens], dtype=torch.long, device=prefix.device))
            logits = gpt2(inputs_embeds=torch.cat([prefix, embeddings], dim=1), use_cache=False).logits[0, -1]
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
    """The raw timings of one case, a dict for each round: seconds for all images, and images with equal tokens."""
    case = CASES[name]
    decoding = Decoding(case, device, images, cuda_graphs=cuda_graphs)
    with torch.inference_mode():
        decoding.ours()
        methods: dict[str, Callable[[], Any]] = {"ours": decoding.ours, "floor": decoding.make_floor()}
        if case.sizes is not None:
            methods["generate"] = decoding.generate
            decoding.generate()
        if case.single:
            methods["single"] = decoding.single
        turns = []
        for number in range(rounds):
            names = [*methods]
            found: dict[str, Any] = {}
            seconds = {}
            for method in names[number % len(names) :] + names[: number % len(names)]:
                begin = _now(device)
                found[method] = methods[method]()
                seconds[method] = _now(device) - begin
            if "single" in seconds:
                seconds["single"] *= images / _SINGLE_IMAGES
            turn = {"case": name, "round": number, "images": images, "seconds": seconds}
            for method in ("generate", "single"):
                if method in found:
                    turn[f"same_as_{method}"] = sum(a == b for a, b in zip(found["ours"], found[method], strict=False))
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
    parser.add_argument("--cuda-graphs", action="store_true", help="decode by CUDA graphs; not for the case lstm")
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
        print(name, {method: round(seconds, 4) for method, seconds in last["seconds"].items()}, flush=True)


if __name__ == "__main__":
    main()
