"""Paths as mixtures write them: environment variables, `path_map`, joining, and the check that a reference stays in
its root.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence

from llava_arrow.errors import ConfigError, ImageError

__all__ = ["ImageResolver", "expand_variables", "is_url", "map_prefix", "resolve_path"]

MAX_FOLDERS = 100_000
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Whether `path` starts with a scheme: `s3://…`, `hf://…`, `piat://…`."""
    return _SCHEME.match(path) is not None


def expand_variables(path: str) -> str:
    """`path` with each `${NAME}` replaced by the environment variable; an unset one is a ConfigError."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise ConfigError(f"environment variable {match[1]} in {path!r} is not set: export {match[1]}=…")
        return found

    return _VARIABLE.sub(value, path)


def map_prefix(path: str, path_map: Mapping[str, str]) -> str:
    """`path` with the longest matching prefix of whole components replaced, once.

    >>> map_prefix("/mnt/data2/x", {"/mnt/data": "/d", "/mnt": "s3://b"})
    's3://b/data2/x'
    """
    for old in sorted(path_map, key=len, reverse=True):
        trimmed = old.rstrip("/")
        if path == trimmed or path.startswith(trimmed + "/"):
            return path_map[old].rstrip("/") + path[len(trimmed) :]
    return path


def resolve_path(path: str, *, base_dir: str, path_map: Mapping[str, str]) -> str:
    """An absolute path or URL: variables expanded, prefix mapped, relative paths joined to `base_dir`."""
    path = map_prefix(expand_variables(path), path_map)
    if is_url(path) or os.path.isabs(path):
        return path
    joined = posixpath.join(base_dir, path)
    return joined if is_url(base_dir) else os.path.normpath(joined)


class ImageResolver:
    """Image references of one entry → absolute paths or URLs.

    Relative references are joined to `image_root` and may not leave it; then `path_map` and `image_stores` apply.
    Folders repeat from row to row, so each is looked at once.
    """

    def __init__(self, *, image_root: str, path_map: Mapping[str, str], image_stores: Mapping[str, str]) -> None:
        self._root = image_root.rstrip("/") or "/"
        self._path_map = path_map
        self._stores = image_stores
        # A root that was mapped when the mixture was read is not mapped again.
        news = [new.rstrip("/") for new in path_map.values()]
        self._map_relative = not any(self._root == new or self._root.startswith(new + "/") for new in news)
        self._folders: dict[str, str] = {}

    def __call__(self, reference: str) -> str:
        """The absolute path or URL of `reference`; an ImageError where it is empty or leaves the root."""
        folder, slash, name = reference.rpartition("/")
        if not name or name in (".", "..") or "\0" in reference:
            raise ImageError(f"image reference {reference!r} names no file", code="image_no_file")
        folder += slash
        known = self._folders.get(folder)
        if known is not None:
            return known + name
        resolved = self._resolve(reference)
        may_be_mapped = any(old.startswith(self._joined(folder)) for old in self._path_map)
        if not self._stores and not may_be_mapped:  # else the file itself may be named, so its folder says nothing
            if len(self._folders) >= MAX_FOLDERS:  # a folder per image would make memory grow with the file
                self._folders.clear()
            self._folders[folder] = resolved[: len(resolved) - len(name)]
        return resolved

    def many(self, references: Sequence[str]) -> list[str]:
        """As calling it for each."""
        if "\0" in "".join(references):
            return [self(reference) for reference in references]
        folders = self._folders
        resolved = []
        for reference in references:
            end = reference.rfind("/") + 1
            known, name = folders.get(reference[:end]), reference[end:]
            # Names of one or two characters may be dots, which lead elsewhere.
            resolved.append(self(reference) if known is None or len(name) < 3 else known + name)
        return resolved

    def _joined(self, reference: str) -> str:
        return reference if is_url(reference) or reference.startswith("/") else posixpath.join(self._root, reference)

    def _resolve(self, reference: str) -> str:
        if not is_url(reference) and not reference.startswith("/"):
            inner = posixpath.normpath(reference)
            if inner == ".." or inner.startswith("../"):
                raise ImageError(
                    f"image reference {reference!r} leaves the image root {self._root}: relative references must "
                    f"stay in it",
                    code="image_outside_root",
                )
            reference = posixpath.join(self._root, inner)
            reference = map_prefix(reference, self._path_map) if self._map_relative else reference
        else:
            reference = map_prefix(reference, self._path_map)
        scheme, found, key = reference.partition("://")
        if found and scheme in self._stores:
            return self._stores[scheme].replace("{key}", key)
        return reference
