"""What can go wrong, as a tree.

    MixtureError
    ├── ConfigError       the YAML file, a builder argument or a command line is wrong
    ├── SourceError       a data file is missing, unreadable, or not what the entry says
    ├── PreprocessError   a row does not hold what the preprocess function needs
    ├── SchemaError       a sample is not a valid LLaVA sample
    ├── ImageError        an image reference leaves its root, or its bytes are missing or no image
    └── OutputError       what is to be written cannot be: disk full, the folder holds something else, no permission

Every message names the place (file, entry, row), the value, the rule and the way out. `code` is the short word under
which a row goes into the ledger when the entry says `on_error: skip`.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ImageError",
    "MixtureError",
    "OutputError",
    "PreprocessError",
    "SchemaError",
    "SourceError",
]


class MixtureError(Exception):
    """Base of all errors that this package raises on purpose.

    Args:
        message: the whole message, as the user reads it.
        code: the ledger's word for it, e.g. `null_caption`.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code

    def at(self, place: str) -> MixtureError:
        """The same error with the place in front: `data.json row 7 (entry 'chat'): …`."""
        return type(self)(f"{place}: {self.message}", code=self.code)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive the way back from a worker process by themselves.
        return (_restore, (type(self), self.message, self.code))


def _restore(cls: type[MixtureError], message: str, code: str) -> MixtureError:
    return cls(message, code=code)


class ConfigError(MixtureError):
    """The YAML file, a builder argument or a command line is wrong."""

    default_code = "config"


class SourceError(MixtureError):
    """A data file is missing, unreadable, or not what the entry says."""

    default_code = "source"


class PreprocessError(MixtureError):
    """A row does not hold what the preprocess function needs."""

    default_code = "preprocess"


class SchemaError(MixtureError):
    """A sample is not a valid LLaVA sample."""

    default_code = "schema"


class ImageError(MixtureError):
    """An image reference leaves its root, or its bytes are missing or no image."""

    default_code = "image"


class OutputError(MixtureError):
    """What is to be written cannot be: disk full, the folder holds something else, no permission."""

    default_code = "output"
