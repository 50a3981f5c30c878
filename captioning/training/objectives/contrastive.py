"""Contrastive training: an image's embedding near its captions', and far from those of other images.

CLIP's objective (Radford et al. 2021) for images that have several captions each. The text encoder
learns beside the model, and is thrown away. Shapes: B images and N captions of one worker, over
all workers A images and C captions; D length of an embedding.
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
from captioning.training.batches import Batch, decode_sample, grouped
from captioning.training.objectives.base import Loss, Objective
from captioning.training.objectives.gather import gather_rows
from captioning.training.objectives.token_rows import token_rows
from captioning.training.stream import epoch_samples
from captioning.training.workers import Workers

_IMAGES_AT_ONCE = 32
_Array = np.ndarray[Any, Any]
#: Logits are cosines times a learned scale, which may not grow beyond CLIP's bound.
_MAX_SCALE = 100.0
#: Cosines that differ by less are equal: in batches of other sizes equal captions differ in their last digits.
_EQUAL = 1e-5


@settings
class ContrastiveSettings:
    """The text encoder that learns beside the image tower, and what is compared."""

    width: Annotated[int, Gt(0)] = 256
    """Width of the text encoder."""

    layers: Annotated[int, Gt(0)] = 2
    """Transformer blocks of the text encoder."""

    heads: Annotated[int, Gt(0)] = 4
    """Attention heads of the text encoder."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Dropout in the text encoder."""

    temperature: Annotated[float, Gt(0)] = 0.07
    """What cosines are divided by at first; it is learned."""

    captions_per_image: Annotated[int, Ge(1)] | None = None
    """Captions of an image in a step, drawn anew each time; null: all that it has."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.temperature < 1 / _MAX_SCALE:
            raise ValueError(f"temperature {self.temperature} is below {1 / _MAX_SCALE}, CLIP's bound")


class TextSide(nn.Module):
    """What learns beside the image tower: the text encoder, and the scale of the logits."""

    def __init__(self, tower: TextTower, temperature: float) -> None:
        super().__init__()
        self.tower = tower
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(_MAX_SCALE))
        return self.log_scale.exp()


class Contrastive(Objective):
    """Symmetric InfoNCE over the images of all workers, each with its captions. The units are images.

    From caption to image: cross entropy over all images. From image to captions: for each of its
    captions, the cross entropy of that one among it and the captions of other images, averaged.
    The image's other captions are left out rather than made rivals (as they are in SupCon, Khosla
    et al. 2020, where a caption that fits well is pushed away for its siblings' sake), and nothing
    is drawn by lot: with few images every caption teaches in every step.

    Judged by retrieval on the split: `score` is the mean of recall at 1, 5 and 10 both ways.
    """

    judged_by_captions = False
    joint = True

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
            # All workers begin alike.
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
        self._texts = TextSide(tower, settings.temperature)
        self.extra = self._texts

    def units(self, batch: Batch) -> int:
        """Images."""
        return len(batch.keys)

    def loss(self, model: CaptionModel, batch: Batch) -> Loss:
        """The loss of this worker's images and captions among those of all workers, which must call it as often."""
        drawn = self._draw(batch.images)
        images = model.embed_images(batch.stem_of(model))
        return self._loss(images, self._texts.tower(self._ended(batch.captions[drawn])), batch.images[drawn])

    def _ended(self, captions: Tensor) -> Tensor:
        """Captions (N, T) with the end token, at which the tower looks, in the last place where they were cut."""
        ends = captions[:, -1:]
        cut = (ends != PAD_TARGET) & (ends != self._tokenizer.eos_id)
        return torch.cat([captions[:, :-1], torch.where(cut, self._tokenizer.eos_id, ends)], dim=1)

    def absent(self, model: CaptionModel) -> Loss:
        """What a worker without a batch does while the others have one: it takes part in comparing theirs."""
        nothing = torch.zeros(0, self._size, device=model.device, requires_grad=True)
        return self._loss(nothing, nothing, torch.zeros(0, dtype=torch.long, device=model.device))

    def _loss(self, images: Tensor, texts: Tensor, owners: Tensor) -> Loss:
        """`images` (B, D), `texts` (N, D), `owners` (N,) the row of the image that each text belongs to."""
        # Cosines times a hundred want more digits than bfloat16 has.
        with torch.autocast(images.device.type, enabled=False):
            return self._compared(images, texts, owners)

    def _compared(self, images: Tensor, texts: Tensor, owners: Tensor) -> Loss:
        scale = self._texts.scale()
        rows = torch.cat([functional.normalize(part.float(), dim=1) for part in (images, texts)])
        counts: list[tuple[int, list[int]]] = self._workers.gather((len(images), owners.tolist()))
        parts = gather_rows(rows, [count + len(their) for count, their in counts], self._workers)
        every_image = torch.cat([part[:count] for part, (count, _) in zip(parts, counts, strict=True)])
        every_text = torch.cat([part[count:] for part, (count, _) in zip(parts, counts, strict=True)])
        firsts = np.cumsum([0, *(count for count, _ in counts)])
        every_owner = [int(at) + owner for at, (_, their) in zip(firsts, counts, strict=False) for owner in their]
        own = parts[self._workers.rank]
        own_images, own_texts = own[: len(images)], own[len(images) :]
        first = int(firsts[self._workers.rank])
        to_texts = self._image_to_texts(
            scale * own_images @ every_text.T, torch.tensor(every_owner, device=rows.device), first
        )
        to_images = functional.cross_entropy(scale * own_texts @ every_image.T, owners + first, reduction="none")
        captions_each = owners.bincount(minlength=len(images))[owners]
        total = (to_texts.sum() + (to_images / captions_each).sum()) / 2
        return Loss(total, {"loss": float(total.detach())})

    @staticmethod
    def _image_to_texts(logits: Tensor, owners: Tensor, first: int) -> Tensor:
        """(B,): the mean over an image's captions of the cross entropy of one among it and the other images' captions.

        `logits` is (B, C), `owners` (C,) the image of each caption, that of the first row being number `first`.
        """
        own = owners == torch.arange(len(logits), device=logits.device)[:, None] + first
        # Not minus infinity: a lone image has no others, and its loss is nothing.
        others = logits.masked_fill(own, -1e4).logsumexp(1, keepdim=True)
        losses = functional.softplus(others - logits) * own
        return losses.sum(1) / own.sum(1).clamp(min=1)

    def _draw(self, images: Tensor) -> Tensor:
        """Which captions (N,) of the `images` (N,) are compared, as a mask."""
        limit = self._settings.captions_per_image
        if limit is None:
            return torch.ones_like(images, dtype=torch.bool)
        # A random order; then by image; then the place of each among its image's.
        order = torch.randperm(len(images)).to(images.device)
        order = order[images[order].argsort(stable=True)]
        counts = images.bincount()
        places = torch.arange(len(images), device=images.device) - (counts.cumsum(0) - counts)[images[order]]
        drawn = torch.zeros_like(images, dtype=torch.bool)
        drawn[order] = places < limit
        return drawn

    @torch.no_grad()
    def validate(self, model: CaptionModel, shards: ShardSet, workers: Workers) -> dict[str, float]:
        """Recall in percent of the split's captions for its images and the other way round, and their mean, `score`."""
        model.eval()
        self._texts.eval()
        images, texts, owners = [], [], []
        place = {"rank": workers.rank, "world": workers.world}
        samples = epoch_samples(shards, self._split, epoch=0, seed=0, shuffle=False, **place)
        for some in grouped(samples, _IMAGES_AT_ONCE):
            pixels = np.stack([decode_sample(sample, self._preprocess) for sample in some])
            stem = model.stem(torch.from_numpy(pixels).to(workers.device))
            images += list(functional.normalize(model.embed_images(stem).float(), dim=1).cpu().numpy())
            captions = [caption for sample in some for caption in sample.captions]
            rows = token_rows(captions, self._tokenizer, self._max_tokens).to(workers.device)
            texts += list(functional.normalize(self._texts.tower(rows).float(), dim=1).cpu().numpy())
            first = len(images) - len(some)
            owners += [first + at for at, sample in enumerate(some) for _ in sample.captions]
        self._texts.train()
        shares = workers.gather((images, texts, owners))
        firsts = np.cumsum([0, *(len(share[0]) for share in shares)])
        return recalls(
            np.stack([image for share in shares for image in share[0]]),
            np.stack([text for share in shares for text in share[1]]),
            np.array([int(at) + owner for at, share in zip(firsts, shares, strict=False) for owner in share[2]]),
        )


def recalls(images: _Array, texts: _Array, owners: _Array) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent both ways, and their mean, `score`.

    `images` (A, D) and `texts` (C, D) have length one, `owners` (C,) is the row of each text's image.
    An image has found its captions when the best-placed of them is among the first k.
    """
    likeness = texts @ images.T
    own = likeness[np.arange(len(texts)), owners]
    image_rank = (likeness > own[:, None] + _EQUAL).sum(1)
    best = np.full(len(images), -np.inf)
    np.maximum.at(best, owners, own)
    text_rank = (likeness > best[None] + _EQUAL).sum(0)
    found = {f"text_to_image_r{k}": 100 * float((image_rank < k).mean()) for k in (1, 5, 10)}
    found |= {f"image_to_text_r{k}": 100 * float((text_rank < k).mean()) for k in (1, 5, 10)}
    return {**found, "score": sum(found.values()) / len(found)}
