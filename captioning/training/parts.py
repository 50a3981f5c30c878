"""What a training run begins with: a model, its words and its preprocessing, new or from a checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from captioning.data.preprocess import PreprocessSettings
from captioning.data.shards import ShardSet, iterate_shard
from captioning.data.tokenizers import BpeTokenizer, Tokenizer, WordTokenizer, load_tokenizer
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.checkpoint import load_model, read_config
from captioning.models.hub import local_folder
from captioning.models.registry import build_model
from captioning.refs import resolve
from captioning.training.settings import TokenizerSettings, TrainSettings


@dataclass(frozen=True)
class Parts:
    """The parts of a captioner in training."""

    model: CaptionModel
    tokenizer: Tokenizer
    preprocess: PreprocessSettings


def make_tokenizer(settings: TrainSettings, shards: ShardSet) -> Tokenizer:
    """The tokenizer of `settings.init`, or one made from the train split's captions.

    Every worker must have the same one: make it once and hand it round.
    """
    if settings.init is not None:
        return load_tokenizer(resolve(settings.init)[1])
    return _new_tokenizer(settings.tokenizer, shards)


def make_parts(settings: TrainSettings, tokenizer: Tokenizer) -> Parts:
    """The model that training begins with. Weights drawn at random depend on `settings.seed` alone."""
    if settings.init is not None:
        folder = resolve(settings.init)[1]
        config = read_config(folder)
        return Parts(load_model(folder, config, tokenizer), tokenizer, config.preprocess)
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, vocabulary, settings.preprocess)
    return Parts(model, tokenizer, settings.preprocess)


def _new_tokenizer(settings: TokenizerSettings, shards: ShardSet) -> Tokenizer:
    if settings.kind == "word":
        return WordTokenizer.train(_captions(shards), min_count=settings.min_count)
    if settings.source is not None:
        return BpeTokenizer.from_pretrained_folder(local_folder(settings.source, key="tokenizer.source"))
    return BpeTokenizer.train(_captions(shards), vocab_size=settings.vocab_size)


def _captions(shards: ShardSet) -> Iterable[str]:
    for shard in shards.split("train"):
        for sample in iterate_shard(shards.location, shard.name):
            yield from sample.captions
