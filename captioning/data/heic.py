"""HEIC and HEIF, for which Pillow needs the extra `heic`. Knows whether it is there; nothing of pixels."""

import functools

#: Pillow's name for the format, once there is a reader for it.
FORMAT = "HEIF"

INSTALL = 'pip install "captioning[heic]"'


@functools.cache
def has_heic() -> bool:
    """Whether HEIC images can be read; makes Pillow know of them if they can."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True
