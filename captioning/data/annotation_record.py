"""One image's captions as its dataset gives them, and what all readers of them do alike.

Knows no layout of files.
"""

from dataclasses import dataclass

from captioning.data.problems import Problems


@dataclass(frozen=True)
class Annotation:
    """An image's captions, tidied.

    `image` is its path below the images' folder as the dataset spells it, `image_id` the dataset's
    own id (the same text where it has none), `split` None where the file names no split.
    """

    image: str
    image_id: str
    captions: tuple[str, ...]
    split: str | None = None


class Collector:
    """Gathers captions by image, in the order in which the images are met, and notes what is wrong."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._images: dict[str, tuple[str, str | None, list[str]]] = {}

    def add_image(self, image: str, *, image_id: str | None = None, split: str | None = None) -> None:
        """Make an image known; nothing changes for one that is."""
        self._images.setdefault(image, (image_id or image, split, []))

    def add_caption(self, image: str, text: str, where: str) -> None:
        """Add a caption to `image`, found at `where`; spaces are tidied, an empty one is left out."""
        self.add_image(image)
        # Half a character, as texts end in that were cut inside of an emoji.
        valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if valid != text:
            self._problems.add("captions with half a character, replaced", where)
            text = valid
        tidy = " ".join(text.split())
        if not tidy:
            self._problems.add("empty captions, left out", where)
            return
        if tidy != text:
            self._problems.add("captions with stray spaces, put right", where)
        self._images[image][2].append(tidy)

    def has(self, image: str) -> bool:
        """Whether `image` is known."""
        return image in self._images

    def annotations(self) -> list[Annotation]:
        """All images; one without any usable caption has none."""
        return [
            Annotation(image, image_id, tuple(captions), split)
            for image, (image_id, split, captions) in self._images.items()
        ]
