"""The errors that Captioning raises for its users.

    CaptioningError                 anything a user can act on; never a bug
    ├── UsageError                  bad usage, settings or input: exit code 2, nothing written
    │   ├── SettingsError           an unknown key, a wrong type, a value out of range
    │   ├── InputError              an archive or a dataset that cannot be read as requested
    │   ├── CheckpointError         a captioner that cannot be loaded
    │   └── RunConflictError        an output that belongs to another run
    ├── StorageError                a file that could not be read or written; has an `error_class`
    ├── ImageError                  an image that cannot be decoded; has an `error_class`
    ├── LogitsError                 logits of a model that no token can be chosen from
    ├── DivergedError               a training whose loss is NaN or infinite
    └── UnfinishedError             the work stopped or failed its check: exit code 1
        └── RunLockedError          another driver works in the OUTPUT, or has taken it over

A message says what was wrong, where, and what to do next.
"""

from collections.abc import Sequence


class CaptioningError(Exception):
    """Something a user can act on: shown without a traceback."""


class UsageError(CaptioningError, ValueError):
    """Bad usage, settings or input. The command ends with exit code 2 and has written nothing."""


class SettingsError(UsageError):
    """A setting that does not exist, or has a wrong type or value."""


class InputError(UsageError):
    """An archive, a dataset or a list that cannot be read as requested."""


class CheckpointError(UsageError):
    """A captioner that cannot be found or loaded."""


class RunConflictError(UsageError):
    """An OUTPUT that holds a run of another model, other settings or another archive."""


class UnfinishedError(CaptioningError):
    """The work is not complete, or did not pass its check. The command ends with exit code 1."""


class RunLockedError(UnfinishedError):
    """Another driver has the OUTPUT's lock, or has taken it over."""


class StorageError(CaptioningError):
    """A file or an object that could not be read or written.

    `error_class` is one of `missing`, `forbidden`, `credentials` (keys that the store does not accept),
    `region` (the bucket is in another one), `throttled`, `timeout`, `network`, `no_space`, `too_large`,
    `changed` (since it was listed), `storage`; `transient` says whether a retry can help.
    """

    def __init__(self, error_class: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message
        self.transient = transient

    def __reduce__(self) -> tuple[object, ...]:
        return _storage_error, (self.error_class, self.message, self.transient)


class LogitsError(CaptioningError):
    """The model's logits allow no token. `images` are the rows of the batch to which this applies."""

    def __init__(self, message: str, images: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.images = tuple(images)

    @classmethod
    def of(cls, images: Sequence[int]) -> "LogitsError":
        """The error for these rows of a batch."""
        rows = ", ".join(map(str, images))
        return cls(
            f"The model returned logits that are not numbers (NaN or infinite) for image {rows} of the batch, or none "
            "for any word that the decoding settings allow. Its weights or the image's features are damaged, or the "
            "precision is too low: try runtime.precision=fp32.",
            images,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return LogitsError, (str(self), self.images)


class DivergedError(CaptioningError):
    """The loss of a training is NaN or infinite."""


class ImageError(CaptioningError):
    """An image that cannot be decoded. `error_class` is the short reason in the table."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return ImageError, (self.error_class, self.message)


def _storage_error(error_class: str, message: str, transient: bool) -> StorageError:
    """Rebuild a pickled `StorageError`."""
    return StorageError(error_class, message, transient=transient)
