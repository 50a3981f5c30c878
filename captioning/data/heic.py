"""HEIC and HEIF support, which needs the extra `heic`."""

import functools

#: Pillow's name for the format, once a reader is registered.
FORMAT = "HEIF"

INSTALL = 'pip install "captioning[heic]"'


@functools.cache
def has_heic() -> bool:
    """Whether HEIC images can be read; registers the reader with Pillow if so."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True
