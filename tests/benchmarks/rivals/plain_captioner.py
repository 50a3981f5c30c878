"""A captioner in plain PyTorch on our weights, which the rivals' programs run.

The encoder is eager and channels-last, an LSTM's words come from `plain_search`, GPT-2's from the `generate`
of transformers. It uses this package's network, tokenizer and preprocessing, so that the captions are the same,
but not its packed weights, decoding engine or other encoder back ends.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioning.captioner_info import inspect_captioner
from captioning.data.preprocess import Preprocess
from captioning.data.tokenizers import load_tokenizer
from captioning.models.checkpoint import load_model
from captioning.models.checkpoint_config import read_config
from captioning.models.clip_gpt2 import ClipGpt2
from tests.benchmarks.rivals.plain_search import LstmDecoder, search

#: The rivals' batch size.
BATCH = 32


class PlainCaptioner:
    """The checkpoint that `ref` names (the bundled one by default), on the CPU, with its own decoding settings."""

    def __init__(self, ref: str | None = None) -> None:
        info = inspect_captioner(ref)
        self.settings = info.decoding
        self.tokenizer = load_tokenizer(info.folder)
        self.preprocess = Preprocess(info.preprocess)
        model: Any = load_model(info.folder, read_config(info.folder), self.tokenizer)
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def pixels(self, files: list[bytes]) -> np.ndarray[Any, Any]:
        """Image files to pixels (B, S, S, 3) uint8."""
        return np.stack([self.preprocess.from_bytes(data).pixels for data in files])

    @torch.inference_mode()
    def caption(self, pixels: np.ndarray[Any, Any]) -> list[str]:
        """Pixels (B, S, S, 3) uint8 to a caption each."""
        prompt = self.tokenizer.encode(self.settings.prompt) if self.settings.prompt else []
        # Ray's batches are read-only, and PyTorch warns about that.
        features = self.model.encode(torch.from_numpy(np.array(pixels)))
        speak = self._generate if isinstance(self.model, ClipGpt2) else self._search
        return [self.tokenizer.decode([*prompt, *tokens]) for tokens in speak(features, prompt)]

    def _search(self, features: Any, prompt: list[int]) -> list[list[int]]:
        decoder = LstmDecoder(self.model, features, prompt)
        return search(decoder, self.settings, self.tokenizer.eos_id, self.tokenizer.banned_ids)

    def _generate(self, features: Tensor, prompt: list[int]) -> list[list[int]]:
        prefix, settings, end = self.model.prefix(features, prompt), self.settings, self.tokenizer.eos_id
        rows = self.model.gpt2.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
            do_sample=False,
            num_beams=settings.beam_size,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens or None,
            length_penalty=settings.length_penalty if settings.beam_size > 1 else None,
            repetition_penalty=settings.repetition_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            suppress_tokens=list(self.tokenizer.banned_ids) or None,
            early_stopping=False,
            eos_token_id=end,
            pad_token_id=end,
        ).tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]
