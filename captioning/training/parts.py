"""What a training run begins with: a model, its words, preprocessing and decoding, new or from a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch

from captioning.captioner_info import override_decoding
from captioning.data.preprocess import PreprocessSettings
from captioning.data.shards import ShardSet
from captioning.data.tokenizers import BpeTokenizer, Tokenizer, WordTokenizer, load_tokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.errors import SettingsError
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.checkpoint import load_model
from captioning.models.checkpoint_config import read_config
from captioning.models.hub import local_folder
from captioning.models.registry import build_model
from captioning.refs import resolve
from captioning.training.init_decoding import cut_lines, fit_decoding
from captioning.training.new_words import take_in
from captioning.training.settings import TrainSettings
from captioning.training.sources import captions_of, train_captions

#: So many captions say whether a decoding suits them.
_SAMPLE = 2000


@dataclass(frozen=True)
class Parts:
    """The parts of a captioner in training."""

    model: CaptionModel
    tokenizer: Tokenizer
    preprocess: PreprocessSettings
    decoding: DecodingSettings = DecodingSettings()


def make_tokenizer(
    settings: TrainSettings, shards: ShardSet, tell: Callable[[str], None] = lambda _: None
) -> Tokenizer:
    """The tokenizer of `settings.init`, or one made from the captions of `settings.text` or the train split.

    To the words of `init` those of the captions are added, if the settings say so; `tell` hears which.
    Every worker must have the same one: make it once and hand it round.
    """
    words = settings.tokenizer
    if settings.init is not None:
        known = load_tokenizer(resolve(settings.init, settings.storage)[1])
        if not isinstance(known, WordTokenizer):
            return known
        captions = train_captions(shards, settings.text)
        found = take_in(known, captions, min_count=words.min_count, extend=words.extend, name=settings.init)
        for line in found.lines:
            tell(line)
        return found.tokenizer
    if words.source is not None and words.kind == "bpe":
        return BpeTokenizer.from_pretrained_folder(local_folder(words.source, key="tokenizer.source"))
    captions = train_captions(shards, settings.text)
    try:
        if words.kind == "word":
            return WordTokenizer.train(captions, min_count=words.min_count)
        return BpeTokenizer.train(captions, vocab_size=words.vocab_size, lowercase=words.lowercase)
    except ValueError as error:
        raise SettingsError(f"tokenizer: {error}") from error


def longest_caption(settings: TrainSettings, model: CaptionModel) -> int:
    """Tokens of a caption, its end among them, that a stage learns from: longer ones are cut."""
    return min(settings.max_tokens, model.max_positions() or settings.max_tokens)


def _learned_whole(settings: TrainSettings, model: CaptionModel) -> int:
    """Tokens of a caption, its end among them, up to which every stage learns it whole."""
    return min(longest_caption(stage, model) for stage in settings.in_stages())


def _sample(tokenizer: Tokenizer, shards: ShardSet) -> list[list[int]]:
    return [tokenizer.encode(caption) for caption in islice(captions_of(shards), _SAMPLE)]


def make_parts(
    settings: TrainSettings,
    tokenizer: Tokenizer,
    shards: ShardSet | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Parts:
    """The model that training begins with. Weights drawn at random depend on `settings.seed` alone.

    Given the `shards`, the decoding of `init` gives up the rules that their captions break (unless the
    settings ask for them); `tell` hears of it.
    """
    if settings.init is not None:
        folder = resolve(settings.init, settings.storage)[1]
        config = read_config(folder)
        decoding = override_decoding(config.decoding, settings.decoding)
        model = load_model(folder, config, load_tokenizer(folder))
        if tokenizer.vocab_size > model.vocab_size:
            model.grow_vocabulary(tokenizer.vocab_size)
        if shards is not None:
            captions = _sample(tokenizer, shards)
            longest = longest_caption(settings, model)
            decoding, lines = fit_decoding(decoding, captions, longest=longest, keep=settings.decoding)
            for line in [*lines, *cut_lines(captions, _learned_whole(settings, model))]:
                tell(line)
        return Parts(model, tokenizer, config.preprocess, decoding)
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, vocabulary, settings.preprocess)
    if shards is not None:
        for line in cut_lines(_sample(tokenizer, shards), _learned_whole(settings, model)):
            tell(line)
    decoding = override_decoding(DecodingSettings(), settings.decoding)
    return Parts(model, tokenizer, settings.preprocess, decoding)
