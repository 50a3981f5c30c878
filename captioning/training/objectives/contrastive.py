"""Contrastive training: an image's embedding is pulled towards its captions' and pushed away from other images'.

CLIP's objective (Radford et al. 2021) for images with several captions each. The text encoder is trained
with the model and then discarded. Shapes: one worker has B images and N captions, all workers together
A images and C captions; D is the length of an embedding.
"""

import math
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional

from captioning.config import settings
from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.data.shards import ShardSet
from captioning.data.tokenizers import Tokenizer
from captioning.errors import SettingsError
from captioning.models.base import PAD_TARGET, CaptionModel
from captioning.models.text_tower import TextTower
from captioning.training.batches import Batch, batched, decode_sample
from captioning.training.objectives.base import Loss, Objective
from captioning.training.objectives.gather import gather_rows
from captioning.training.objectives.token_rows import token_rows
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers

_VALIDATION_BATCH = 32
_Array = np.ndarray[Any, Any]
#: Logits are cosines times a learned scale, which CLIP bounds by this.
_MAX_SCALE = 100.0
#: Cosines that differ by less count as equal: equal captions in batches of different sizes differ in their last digits.
_TOLERANCE = 1e-5


@settings
class ContrastiveSettings:
    """The text encoder that is trained with the image tower, and which captions are compared."""

    width: Annotated[int, Gt(0)] = 256
    """Width of the text encoder."""

    layers: Annotated[int, Gt(0)] = 2
    """Transformer blocks of the text encoder."""

    heads: Annotated[int, Gt(0)] = 4
    """Attention heads of the text encoder."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Dropout in the text encoder."""

    temperature: Annotated[float, Gt(0)] = 0.07
    """The initial temperature, which cosines are divided by; it is learned."""

    captions_per_image: Annotated[int, Ge(1)] | None = None
    """Captions of an image in a step, drawn at random each time; null: all of them."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.temperature < 1 / _MAX_SCALE:
            raise ValueError(f"temperature {self.temperature} is below {1 / _MAX_SCALE}, CLIP's limit")


class TextBranch(nn.Module):
    """The modules that are trained with the image tower: the text encoder and the scale of the logits."""

    def __init__(self, tower: TextTower, temperature: float) -> None:
        super().__init__()
        self.tower = tower
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def scale(self) -> Tensor:
        """The factor of the cosines, at most `_MAX_SCALE`."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(_MAX_SCALE))
        return self.log_scale.exp()


class Contrastive(Objective):
    """Symmetric InfoNCE over the images of all workers, each with its captions. The units are images.

    From caption to image: cross entropy over all images. From image to captions: for each of its captions, the
    cross entropy of that one among it and the captions of other images, averaged. The image's other captions
    are left out, not used as negatives: in SupCon (Khosla et al. 2020) they compete, and one that fits well is
    pushed away. All captions are used, not a random one: with few images each counts in every step.

    Validated by retrieval on the split: `score` is the mean of recall at 1, 5 and 10 in both directions.
    """

    scored_by_captions = False
    collective = True

    def __init__(
        self,
        settings: ContrastiveSettings,
        model: CaptionModel,
        tokenizer: Tokenizer,
        *,
        split: str,
        workers: Workers,
        preprocess: PreprocessSettings,
        max_tokens: int,
        seed: int,
    ) -> None:
        size = getattr(model, "embedding_size", None)
        if size is None:
            raise SettingsError(f"objective contrastive: model.kind {model.settings.kind} has no image embedding.")
        self._settings = settings
        self._tokenizer = tokenizer
        self._split = split
        self._workers = workers
        self._preprocess = Preprocess(preprocess)
        self._max_tokens = max_tokens
        self._size: int = size
        with torch.random.fork_rng(devices=[]):
            # The same initial weights in all workers.
            torch.manual_seed(seed)
            tower = TextTower(
                vocab_size=tokenizer.vocab_size,
                max_tokens=max_tokens,
                width=settings.width,
                layers=settings.layers,
                heads=settings.heads,
                dropout=settings.dropout,
                embedding_size=size,
            )
        self._texts = TextBranch(tower, settings.temperature)
        self.extra = self._texts

    def units(self, batch: Batch) -> int:
        """Images."""
        return len(batch.keys)

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """The loss of this worker's images and captions among those of all workers. Called equally often by all."""
        selected = self._select_captions(batch.image_index)
        images = model.embed_images(batch.stem_of(model))
        texts = self._texts.tower(self._with_eos(batch.captions[selected]))
        return self._loss(images, texts, batch.image_index[selected])

    def _with_eos(self, captions: Tensor) -> Tensor:
        """Captions (N, T) with EOS, where the tower reads its output, as the last token of truncated ones."""
        last = captions[:, -1:]
        truncated = (last != PAD_TARGET) & (last != self._tokenizer.eos_id)
        return torch.cat([captions[:, :-1], torch.where(truncated, self._tokenizer.eos_id, last)], dim=1)

    def loss_without_batch(self, model: CaptionModel) -> Loss:
        """Take part in the gathering of embeddings without contributing any."""
        empty = torch.zeros(0, self._size, device=model.device, requires_grad=True)
        return self._loss(empty, empty, torch.zeros(0, dtype=torch.long, device=model.device))

    def _loss(self, images: Tensor, texts: Tensor, image_index: Tensor) -> Loss:
        """The loss of `images` (B, D) and `texts` (N, D); `image_index` (N,) is the row of each text's image."""
        # In fp32: cosines times a hundred need more digits than bfloat16 has.
        with torch.autocast(images.device.type, enabled=False):
            return self._loss_in_fp32(images, texts, image_index)

    def _loss_in_fp32(self, images: Tensor, texts: Tensor, image_index: Tensor) -> Loss:
        scale = self._texts.scale()
        rows = torch.cat([functional.normalize(part.float(), dim=1) for part in (images, texts)])
        # The number of images of each worker, and its `image_index`.
        layout: list[tuple[int, list[int]]] = self._workers.gather((len(images), image_index.tolist()))
        parts = gather_rows(rows, [count + len(theirs) for count, theirs in layout], self._workers)
        all_images = torch.cat([part[:count] for part, (count, _) in zip(parts, layout, strict=True)])
        all_texts = torch.cat([part[count:] for part, (count, _) in zip(parts, layout, strict=True)])
        offsets = np.cumsum([0, *(count for count, _ in layout)])
        all_index = [int(offset) + row for offset, (_, theirs) in zip(offsets, layout, strict=False) for row in theirs]
        own = parts[self._workers.rank]
        own_images, own_texts = own[: len(images)], own[len(images) :]
        offset = int(offsets[self._workers.rank])
        to_texts = self._image_to_texts(
            scale * own_images @ all_texts.T, torch.tensor(all_index, device=rows.device), offset
        )
        to_images = functional.cross_entropy(scale * own_texts @ all_images.T, image_index + offset, reduction="none")
        captions_each = image_index.bincount(minlength=len(images))[image_index]
        total = (to_texts.sum() + (to_images / captions_each).sum()) / 2
        return Loss(total, {"loss": float(total.detach())})

    @staticmethod
    def _image_to_texts(logits: Tensor, image_index: Tensor, offset: int) -> Tensor:
        """(B,): the mean over an image's captions of the cross entropy of one among it and the other images' captions.

        `logits` is (B, C), `image_index` (C,) the image of each caption; the first row is image number `offset`.
        """
        own = image_index == torch.arange(len(logits), device=logits.device)[:, None] + offset
        # Finite, because a single image has no negatives and must get a loss of 0.
        negatives = logits.masked_fill(own, -1e4).logsumexp(1, keepdim=True)
        losses = functional.softplus(negatives - logits) * own
        return losses.sum(1) / own.sum(1).clamp(min=1)

    def _select_captions(self, image_index: Tensor) -> Tensor:
        """A mask (N,) of the captions to compare: a random `captions_per_image` of each image."""
        limit = self._settings.captions_per_image
        if limit is None:
            return torch.ones_like(image_index, dtype=torch.bool)
        # Shuffle, sort by image, and keep the first `limit` of each image.
        order = torch.randperm(len(image_index)).to(image_index.device)
        order = order[image_index[order].argsort(stable=True)]
        counts = image_index.bincount()
        starts = (counts.cumsum(0) - counts)[image_index[order]]
        ranks = torch.arange(len(image_index), device=image_index.device) - starts
        selected = torch.zeros_like(image_index, dtype=torch.bool)
        selected[order] = ranks < limit
        return selected

    @torch.no_grad()
    def validate(self, model: CaptionModel, shards: ShardSet, workers: Workers) -> dict[str, float]:
        """Retrieval recall on the split in both directions, in percent, and the mean, `score`."""
        model.eval()
        self._texts.eval()
        images: list[_Array] = []
        texts: list[_Array] = []
        image_index: list[int] = []
        place = {"rank": workers.rank, "world_size": workers.world_size}
        stream = epoch_samples(shards, self._split, epoch=0, seed=0, shuffle=False, **place)
        for samples in batched(stream, _VALIDATION_BATCH):
            first = len(images)
            pixels = np.stack([decode_sample(sample, self._preprocess) for sample in samples])
            stem = model.stem(torch.from_numpy(pixels).to(workers.device))
            images += list(functional.normalize(model.embed_images(stem).float(), dim=1).cpu().numpy())
            captions = [caption for sample in samples for caption in sample.captions]
            rows = token_rows(captions, self._tokenizer, self._max_tokens).to(workers.device)
            texts += list(functional.normalize(self._texts.tower(rows).float(), dim=1).cpu().numpy())
            image_index += [first + at for at, sample in enumerate(samples) for _ in sample.captions]
        self._texts.train()
        gathered = workers.gather((images, texts, image_index))
        offsets = np.cumsum([0, *(len(theirs[0]) for theirs in gathered)])
        return recalls(
            np.stack([image for theirs in gathered for image in theirs[0]]),
            np.stack([text for theirs in gathered for text in theirs[1]]),
            np.array(
                [int(offset) + row for offset, theirs in zip(offsets, gathered, strict=False) for row in theirs[2]]
            ),
        )


def recalls(images: _Array, texts: _Array, image_index: _Array) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent in both directions, and their mean, `score`.

    `images` (A, D) and `texts` (C, D) are unit vectors, `image_index` (C,) is the row of each text's image.
    An image counts as found at k if any of its captions is among the first k.
    """
    similarity = texts @ images.T
    own = similarity[np.arange(len(texts)), image_index]
    image_rank = (similarity > own[:, None] + _TOLERANCE).sum(1)
    best = np.full(len(images), -np.inf)
    np.maximum.at(best, image_index, own)
    text_rank = (similarity > best[None] + _TOLERANCE).sum(0)
    recall = {f"text_to_image_r{k}": 100 * float((image_rank < k).mean()) for k in (1, 5, 10)}
    recall |= {f"image_to_text_r{k}": 100 * float((text_rank < k).mean()) for k in (1, 5, 10)}
    return {**recall, "score": sum(recall.values()) / len(recall)}
