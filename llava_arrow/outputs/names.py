"""File names for images: the original relative path where it is safe, else one made from the sample's id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import xxhash

__all__ = ["ImageNames", "identity_of", "is_safe_path", "safe_name"]

MAX_GENERATED_PER_FOLDER = 10_000
MAX_NAME_BYTES = 120
"""Of a generated name, without what makes it unique; filesystems take 255."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._()=,+@-]")
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
"""What some filesystem refuses in a name."""


def safe_name(text: str) -> str:
    """One path component made of `text`: itself where it is safe, else its safe characters and 10 digits of a hash.

    >>> safe_name("000123"), safe_name("a/../b")
    ('000123', 'a_.._b-900ea8b7e0')
    """
    name = _UNSAFE.sub("_", text)[:MAX_NAME_BYTES]
    if name and name == text and not name.startswith((".", "-")) and not name.endswith("."):
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{name.strip('._-') or 'x'}-{digest}"


def is_safe_path(path: str) -> bool:
    """Whether a relative path can be kept as it is: below its folder on any filesystem, and encodable.

    >>> is_safe_path("coco/train2017/1.jpg"), is_safe_path("../1.jpg"), is_safe_path("/1.jpg")
    (True, False, False)
    """
    if not path or len(path) > 800 or _FORBIDDEN.search(path):
        return False
    try:
        parts = path.encode("utf-8").split(b"/")
    except UnicodeEncodeError:
        return False
    return all(part not in (b"", b".", b"..") and len(part) <= 200 for part in parts)


def identity_of(content: Any) -> int:
    """128 bits that tell images apart: of an image's bytes, or of its reference."""
    return int(
        xxhash.xxh3_128_intdigest(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    )


class ImageNames:
    """Gives each image its name, one after the other; the same images in the same order get the same names.

    A name that is given stays with the image (its identity), so an image that many samples use has one. About 200
    bytes of memory per image.
    """

    def __init__(self) -> None:
        self._owners: dict[str, int] = {}
        self._folders: set[str] = set()
        self._open: set[str] = set()
        self._shared: dict[int, tuple[str, bool]] = {}
        self._counts: dict[str, int] = {}
        self._repeats: dict[str, int] = {}
        self._source_folders: dict[str, str] = {}

    def folder_of(self, data_source: str) -> str:
        """The folder of a data source; another one for each."""
        known = self._source_folders.get(data_source)
        if known is None:
            known = self._source_folders[data_source] = safe_name(data_source)
        return known

    def name(
        self, folder: str, original: str | None, stem: str, identity: int, *, is_shared: bool
    ) -> tuple[str, bool]:
        """The name of an image, below the image folder.

        Args:
            folder: of its data source.
            original: its own relative path, None where it has none.
            stem: what a name is made of where the original cannot be kept: it is unsafe, or another image has it.
            identity: of its content or reference, from `identity_of`.
            is_shared: equal identities share one name, in whatever folder the first one put it.

        Returns:
            The name, and whether it lacks the extension that the image's format asks for.
        """
        if is_shared and identity in self._shared:
            return self._shared[identity]
        given: tuple[str, bool] | None = None
        if original is not None and is_safe_path(original):
            name = f"{folder}/{original}"
            owner = self._owners.get(name)
            if owner is None and self._is_free(name):
                self._take_folders(name)
                owner = self._owners[name] = identity
            if owner == identity:
                given = name, False
        if given is None:
            given = self._generate(folder, stem), True
        if is_shared:
            self._shared[identity] = given
        return given

    def _generate(self, folder: str, stem: str) -> str:
        count = self._counts[folder] = self._counts.get(folder, 0) + 1
        number, mark = (count - 1) // MAX_GENERATED_PER_FOLDER, ""
        while not self._can_be_folder(inner := f"{folder}/{number:05d}{mark}"):  # a file has that name
            mark += "-"
        while True:
            repeat = self._repeats[f"{folder}/{stem}"] = self._repeats.get(f"{folder}/{stem}", 0) + 1
            name = f"{inner}/{stem}" if repeat == 1 else f"{inner}/{stem}-{repeat}"
            # An original path may look like a generated one, with any extension.
            is_taken = any(other in self._owners or other in self._folders for other in _with_extensions(name))
            if not is_taken and name not in self._open:
                self._take_folders(name)
                self._open.add(name)
                return name

    def _is_free(self, name: str) -> bool:
        """Whether a file can have this name: no file or folder has it, and no file that of one of its folders."""
        return (
            name not in self._folders and not self._is_generated(name) and self._can_be_folder(name.rpartition("/")[0])
        )

    def _can_be_folder(self, name: str) -> bool:
        if name in self._folders:
            return True
        return not any(part in self._owners or self._is_generated(part) for part in (name, *_parents(name)))

    def _is_generated(self, name: str) -> bool:
        """Whether an image may be called so whose extension is still open."""
        stem, dot, extension = name.rpartition(".")
        return bool(dot) and stem in self._open and f".{extension}" in _ALL_EXTENSIONS

    def _take_folders(self, name: str) -> None:
        for parent in _parents(name):
            if parent in self._folders:
                break
            self._folders.add(parent)


def _parents(name: str) -> Iterable[str]:
    """The folders of a path, the innermost first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


EXTENSIONS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "HEIF": ".heic",
}
"""By format, as `image_format` names them."""


_ALL_EXTENSIONS = frozenset(EXTENSIONS.values())


def _with_extensions(name: str) -> Iterable[str]:
    return (name, *(name + extension for extension in EXTENSIONS.values()))
