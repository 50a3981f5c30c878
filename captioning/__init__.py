"""Captions for images: `load_captioner().caption([...])`. Works alone; never imports Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioning.captioner import Caption, Captioner, Explanation, load_captioner

__all__ = ["Caption", "Captioner", "Explanation", "load_captioner"]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import: only those who caption pay for it.
    if name in __all__:
        from captioning import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
