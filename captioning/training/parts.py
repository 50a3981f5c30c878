"""What a training run begins with: a model, its words and its preprocessing, new or from a checkpoint."""

from dataclasses import dataclass

import torch

from captioning.data.preprocess import PreprocessSettings
from captioning.data.shards import ShardSet
from captioning.data.tokenizers import BpeTokenizer, Tokenizer, WordTokenizer, load_tokenizer
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.checkpoint import load_model, read_config
from captioning.models.hub import local_folder
from captioning.models.registry import build_model
from captioning.refs import resolve
from captioning.training.settings import TrainSettings
from captioning.training.sources import train_captions


@dataclass(frozen=True)
class Parts:
    """The parts of a captioner in training."""

    model: CaptionModel
    tokenizer: Tokenizer
    preprocess: PreprocessSettings


def make_tokenizer(settings: TrainSettings, shards: ShardSet) -> Tokenizer:
    """The tokenizer of `settings.init`, or one made from the captions of `settings.text` or the train split.

    Every worker must have the same one: make it once and hand it round.
    """
    if settings.init is not None:
        return load_tokenizer(resolve(settings.init)[1])
    words = settings.tokenizer
    if words.source is not None and words.kind == "bpe":
        return BpeTokenizer.from_pretrained_folder(local_folder(words.source, key="tokenizer.source"))
    captions = train_captions(shards, settings.text)
    if words.kind == "word":
        return WordTokenizer.train(captions, min_count=words.min_count)
    return BpeTokenizer.train(captions, vocab_size=words.vocab_size, lowercase=words.lowercase)


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
