"""The page's sample photos: those of the demo that are on this machine, scaled down."""

import importlib.util
import io
from pathlib import Path

from PIL import Image

from jobs.demo import PHOTOS

#: Pixels of the longer side.
_SIDE = 640


class Samples:
    """Photos by name. Each is scaled down when it is first requested, and cached."""

    def __init__(self) -> None:
        self._paths = {
            Path(name).stem + ".jpg": path for package, place, name in PHOTOS if (path := _find(package, place))
        }
        self._kept: dict[str, bytes] = {}

    @property
    def names(self) -> list[str]:
        """The names of the available photos."""
        return list(self._paths)

    def jpeg(self, name: str) -> bytes | None:
        """A photo as JPEG; None where there is none of that name."""
        if name in self._paths and name not in self._kept:
            with Image.open(self._paths[name]) as photo:
                photo.draft("RGB", (_SIDE, _SIDE))
                small = photo.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            file = io.BytesIO()
            small.save(file, "JPEG", quality=88)
            self._kept[name] = file.getvalue()
        return self._kept.get(name)


def _find(package: str, place: str) -> Path | None:
    spec = importlib.util.find_spec(package)  # without importing it, which takes seconds
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / place
    return path if path.is_file() else None
