"""An image's captions as read from a dataset, and the collector that all readers share."""

from dataclasses import dataclass

from captioning.data.problems import Problems


@dataclass(frozen=True)
class Annotation:
    """An image's cleaned captions.

    `image` is its path below the images' folder as the dataset spells it, `image_id` the dataset's own id (else the
    path), `split` None if the file names no split.
    """

    image: str
    image_id: str
    captions: tuple[str, ...]
    split: str | None = None


class Collector:
    """Groups captions by image, in the order in which images first occur, and counts problems."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._images: dict[str, tuple[str, str | None, list[str]]] = {}

    def add_image(self, image: str, *, image_id: str | None = None, split: str | None = None) -> None:
        """Add an image; no-op if it has been added."""
        self._images.setdefault(image, (image_id or image, split, []))

    def add_caption(self, image: str, text: str, where: str) -> None:
        """Add a caption of `image`, found at `where`. White space is normalised; an empty caption is skipped."""
        self.add_image(image)
        # Lone surrogates occur where a text was cut inside an emoji.
        valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if valid != text:
            self._problems.add("captions with an incomplete character, replaced", where)
            text = valid
        tidy = " ".join(text.split())
        if not tidy:
            self._problems.add("empty captions, skipped", where)
            return
        if tidy != text:
            self._problems.add("captions with stray spaces, tidied", where)
        self._images[image][2].append(tidy)

    def has(self, image: str) -> bool:
        """Whether `image` has been added."""
        return image in self._images

    def annotations(self) -> list[Annotation]:
        """All images, also those without a usable caption."""
        return [
            Annotation(image, image_id, tuple(captions), split)
            for image, (image_id, split, captions) in self._images.items()
        ]
