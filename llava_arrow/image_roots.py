"""Below which folders and URLs images may be read. What leaves in an export comes from there and from nowhere else."""

from __future__ import annotations

import hmac
import json
import os
import posixpath
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from llava_arrow.entry import Entry, image_root_of
from llava_arrow.errors import ImageError
from llava_arrow.paths import is_url, map_prefix
from llava_arrow.plan_cache import default_cache_dir

__all__ = ["ImageRoots", "forget_links"]

_DESCRIPTION_LINE = "images from: "
_LOCAL_SCHEMES = ("file://", "local://")


@dataclass(frozen=True)
class ImageRoots:
    """Folders and URL prefixes of images, the entry's `image_root` first.

    With `is_only`, a reference outside of them is refused; without, only one that a symlink leads out of its root.
    """

    roots: tuple[str, ...]
    is_only: bool = False

    @classmethod
    def of_entry(cls, entry: Entry, data_file: str, *, is_only: bool = False) -> ImageRoots:
        """The roots of an entry: its `image_root`, and where its `path_map` and `image_stores` lead."""
        root = image_root_of(entry, data_file)
        stores = [template.partition("{key}")[0] for template in entry.image_stores.values()]
        return cls.of([root, map_prefix(root, entry.path_map), *entry.path_map.values(), *stores], is_only=is_only)

    @classmethod
    def of(cls, roots: Iterable[str], *, is_only: bool = False) -> ImageRoots:
        """The given roots, each once."""
        return cls(tuple(dict.fromkeys(_local(root).rstrip("/") or "/" for root in roots)), is_only)

    @classmethod
    def of_description(cls, description: str) -> ImageRoots:
        """The roots that `describe` noted, on this machine; none where there is no note, or somebody else's: a dataset
        that was downloaded must not open this machine's folders.
        """
        for line in description.splitlines():
            if line.startswith(_DESCRIPTION_LINE):
                seal, _, text = line[len(_DESCRIPTION_LINE) :].partition(" ")
                if hmac.compare_digest(seal, _seal(text)):
                    return cls.of(json.loads(text), is_only=True)
        return cls((), is_only=True)

    def describe(self) -> str:
        """A line for the description of a dataset that holds references to images below these roots."""
        text = json.dumps(self.roots)
        return f"{_DESCRIPTION_LINE}{_seal(text)} {text}"

    def relative(self, path: str) -> str | None:
        """`path` relative to the first root that holds it, None where none does.

        >>> ImageRoots(("/data", "s3://bucket/x")).relative("s3://bucket/x/a/b.jpg")
        'a/b.jpg'
        """
        path = _local(path)
        for root in self.roots:
            prefix = root if root.endswith("/") else root + "/"
            if path.startswith(prefix):
                return path[len(prefix) :]
        return None

    def path_to_open(self, path: str) -> str:
        """The local path or URL to read for `path`; an ImageError where it may not be read."""
        opened = _local(path)
        if is_url(opened):
            has_dots = ".." in opened.replace("%2e", ".").replace("%2E", ".").split("/")
            if self.is_only and (has_dots or "::" in opened or self.relative(opened) is None):
                raise self._outside(path)
            return opened
        inside = self.relative(opened) is not None
        if self.is_only and not inside and not self._holds(_real_folder(posixpath.dirname(opened))):
            raise self._outside(path)
        return opened

    def check_real(self, path: str, *, is_link: bool) -> None:
        """An ImageError where a local file is below no root once its symlinks are followed."""
        if not self.is_only and self.relative(path) is None:
            return
        folder = posixpath.dirname(path)
        real_folder = posixpath.dirname(os.path.realpath(path)) if is_link else _real_folder(folder)
        if not self._holds(real_folder):
            raise ImageError(
                f"{path} is a link to {os.path.realpath(path)}, outside of the image root {self.roots[0]}",
                code="image_outside_root",
            )

    def _holds(self, real_folder: str) -> bool:
        for root in self.roots:
            if not is_url(root):
                real_root = _real_folder(root).rstrip("/")
                if real_folder == real_root or real_folder.startswith(real_root + "/"):
                    return True
        return False

    def _outside(self, path: str) -> ImageError:
        where = f"the image root {self.roots[0]}" if self.roots else "every image root (none is given)"
        return ImageError(
            f"{path} is outside of {where}, and an export reads images from there only: set image_root to a folder or "
            f"URL that holds them",
            code="image_outside_root",
        )


def _seal(text: str) -> str:
    """32 hex digits that only this user's programs can make: keyed with a file of the cache."""
    path = os.path.join(default_cache_dir(), "llava_mixture_plans", "key")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        except FileExistsError:
            pass
        with open(path, "rb") as file:
            key = file.read()
    except OSError:
        key = b""
    if len(key) != 32:  # no cache to write into: nobody can be told from anybody
        key = secrets.token_bytes(32)
    return hmac.new(key, text.encode(), "sha256").hexdigest()[:32]


@lru_cache(maxsize=100_000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def forget_links() -> None:
    """Look anew where folders lead; called where a piece of work begins: they may have changed since the last."""
    _real_folder.cache_clear()


def _local(path: str) -> str:
    for scheme in _LOCAL_SCHEMES:
        if path.startswith(scheme):
            return path[len(scheme) :]
    return path
