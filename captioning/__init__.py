"""Captions for images: `load_captioner().caption([...])`. Works alone; never imports Ray.

All that it raises for a user to act on is a `CaptioningError` (`captioning.errors` has them all).
"""

from typing import TYPE_CHECKING, Any

from captioning.errors import CaptioningError, CheckpointError, ImageError, SettingsError

if TYPE_CHECKING:
    from captioning.captioner import Caption, Captioner, Explanation, load_captioner

__all__ = [
    "Caption",
    "Captioner",
    "CaptioningError",
    "CheckpointError",
    "Explanation",
    "ImageError",
    "SettingsError",
    "load_captioner",
]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import: only those who caption pay for it.
    if name in __all__:
        from captioning import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
