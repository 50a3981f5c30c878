"""The parts of the captioner that a run trains, new or from a checkpoint: model, tokenizer, preprocessing, decoding."""

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
from captioning.training.init_decoding import fit_decoding, truncation_notes
from captioning.training.settings import TrainSettings
from captioning.training.sources import captions_of, train_captions
from captioning.training.vocabulary_extension import extend_vocabulary

#: The number of captions that decide whether a decoding suits the dataset.
_SAMPLE_SIZE = 2000


@dataclass(frozen=True)
class Parts:
    """The parts of a captioner in training."""

    model: CaptionModel
    tokenizer: Tokenizer
    preprocess: PreprocessSettings
    decoding: DecodingSettings = DecodingSettings()


def make_tokenizer(settings: TrainSettings, shards: ShardSet, log: Callable[[str], None] = lambda _: None) -> Tokenizer:
    """The tokenizer of `settings.init`, or one trained on the captions of `settings.text` or the train split.

    New words of the captions extend the vocabulary of `init` if the settings say so; `log` gets a message on
    that. All workers must have the same tokenizer: make it in one and broadcast it.
    """
    options = settings.tokenizer
    if settings.init is not None:
        known = load_tokenizer(resolve(settings.init, settings.storage)[1])
        if not isinstance(known, WordTokenizer):
            return known
        captions = train_captions(shards, settings.text)
        extended = extend_vocabulary(
            known, captions, min_count=options.min_count, extend=options.extend, name=settings.init
        )
        for note in extended.notes:
            log(note)
        return extended.tokenizer
    if options.source is not None and options.kind == "bpe":
        return BpeTokenizer.from_pretrained_folder(local_folder(options.source, key="tokenizer.source"))
    captions = train_captions(shards, settings.text)
    try:
        if options.kind == "word":
            return WordTokenizer.train(captions, min_count=options.min_count)
        return BpeTokenizer.train(captions, vocab_size=options.vocab_size, lowercase=options.lowercase)
    except ValueError as error:
        raise SettingsError(f"tokenizer: {error}") from error


def longest_caption(settings: TrainSettings, model: CaptionModel) -> int:
    """The length in tokens, EOS included, to which a stage truncates captions."""
    return min(settings.max_tokens, model.max_positions() or settings.max_tokens)


def _never_truncated(settings: TrainSettings, model: CaptionModel) -> int:
    """The length in tokens, EOS included, up to which no stage truncates a caption."""
    return min(longest_caption(stage, model) for stage in settings.stage_settings())


def _sample(tokenizer: Tokenizer, shards: ShardSet) -> list[list[int]]:
    return [tokenizer.encode(caption) for caption in islice(captions_of(shards), _SAMPLE_SIZE)]


def make_parts(
    settings: TrainSettings,
    tokenizer: Tokenizer,
    shards: ShardSet | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Parts:
    """The initial parts. Random weights depend on `settings.seed` alone.

    Given `shards`, the decoding of `init` is adapted to their captions, except for what the settings set;
    `log` gets a message on each change.
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
            decoding, notes = fit_decoding(decoding, captions, longest=longest, keep=settings.decoding)
            for note in [*notes, *truncation_notes(captions, _never_truncated(settings, model))]:
                log(note)
        return Parts(model, tokenizer, config.preprocess, decoding)
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, vocabulary, settings.preprocess)
    if shards is not None:
        for note in truncation_notes(_sample(tokenizer, shards), _never_truncated(settings, model)):
            log(note)
    decoding = override_decoding(DecodingSettings(), settings.decoding)
    return Parts(model, tokenizer, settings.preprocess, decoding)
