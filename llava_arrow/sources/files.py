"""The data files of an entry: a file, directory, glob or list; local or any fsspec URL."""

from __future__ import annotations

import glob
import gzip
import io
import os
import posixpath
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from llava_arrow.entry import Entry
from llava_arrow.errors import SourceError
from llava_arrow.paths import is_url
from llava_arrow.shards import DataFile

__all__ = ["data_files", "open_binary", "open_random_access", "stem_of"]

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MARKS = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created", "oid")
"""What filesystems call that which changes with a file's content: S3, HTTP, the Hub, Google, memory."""
_MAY_BE_COMPRESSED = ("csv", "tsv", "json", "jsonl")


def data_files(entry: Entry) -> list[DataFile]:
    """The files of the entry in the order of `json_path`; those of a directory or glob sorted by name.

    Raises:
        SourceError: nothing there, an empty file, or a file of no known format.
    """
    found: list[DataFile] = []
    for path in entry.json_path:
        for item, folder in _expand(path, entry):
            found.append(_describe(item, folder, entry))
    return found


def _expand(path: str, entry: Entry) -> list[tuple[str, str]]:
    """(file, folder that its key is relative to)."""
    path = path.removeprefix("file://")
    if "::" in path:
        raise SourceError(f"{entry.label}: chained URLs are not supported: {path!r}")
    if is_url(path):
        return _expand_url(path, entry)
    if os.path.isdir(path):
        return [(item, path) for item in _of_one_format(_walk(path), path, entry)]
    if not os.path.exists(path) and glob.has_magic(path):
        matches = sorted(item for item in glob.glob(path, recursive=True) if os.path.isfile(item))
        if not matches:
            raise SourceError(f"{entry.label}: json_path {path!r} matches no file")
        return [(item, _fixed_part(path)) for item in matches]
    return [(path, os.path.dirname(path))]


def _fixed_part(pattern: str) -> str:
    parts: list[str] = []
    for part in pattern.split("/")[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return "/".join(parts)


def _walk(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [os.path.join(parent, name) for name in names if not name.startswith((".", "_"))]
    return sorted(found)


def _of_one_format(paths: list[str], folder: str, entry: Entry) -> list[str]:
    by_format: dict[str, list[str]] = {}
    for path in paths:
        kind = detect_format(path)[0]
        if kind is not None:
            by_format.setdefault(kind, []).append(path)
    if not by_format:
        raise SourceError(f"{entry.label}: the directory {folder!r} holds no data file ({', '.join(FORMATS)})")
    if len(by_format) > 1:
        counts = ", ".join(f"{len(items)} {kind}" for kind, items in sorted(by_format.items()))
        raise SourceError(
            f"{entry.label}: the directory {folder!r} holds several formats ({counts}): say which, as in *.parquet"
        )
    return next(iter(by_format.values()))


def _expand_url(path: str, entry: Entry) -> list[tuple[str, str]]:
    fs, inner = filesystem(path)
    scheme = path.partition("://")[0]
    try:
        if glob.has_magic(inner) and not fs.exists(inner):
            matches = sorted(fs.glob(inner))
            folder = _fixed_part(path)
        elif fs.isdir(inner):
            names = sorted(name for name in fs.find(inner) if not posixpath.basename(name).startswith((".", "_")))
            matches, folder = _of_one_format(names, path, entry), path
        else:
            matches, folder = [inner], posixpath.dirname(path)
    except OSError as error:
        raise SourceError(f"{entry.label}: {path!r} cannot be listed: {error}") from error
    if not matches:
        raise SourceError(f"{entry.label}: json_path {path!r} matches no file")
    return [
        (path if item == inner else f"{scheme}://{item.removeprefix(scheme + '://').lstrip('/')}", folder)
        for item in matches
    ]


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path inside it; a SourceError where its package is not installed."""
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(path))
    except (ImportError, ValueError) as error:
        raise SourceError(f"{path!r} cannot be opened: {error}") from error


def detect_format(path: str) -> tuple[str | None, str | None]:
    """Format and compression by file name.

    >>> detect_format("a/b.jsonl.gz")
    ('jsonl', 'gzip')
    """
    stem, extension = posixpath.splitext(path.lower())
    compression = COMPRESSIONS.get(extension)
    if compression is not None:
        extension = posixpath.splitext(stem)[1]
    kind = FORMATS.get(extension)
    return (kind, compression) if compression is None or kind in _MAY_BE_COMPRESSED else (None, compression)


def stem_of(file: DataFile) -> str:
    """The file's name without the extensions that say its format: `a.v1` of `x/a.v1.jsonl.gz`."""
    stem, extension = posixpath.splitext(posixpath.basename(file.path))
    return posixpath.splitext(stem)[0] if extension.lower() in COMPRESSIONS else stem


def _describe(path: str, folder: str, entry: Entry) -> DataFile:
    try:
        size, mark = stat(path)
    except FileNotFoundError as error:
        raise SourceError(f"{entry.label}: the data file {path!r} does not exist{_nearest(path)}") from error
    except OSError as error:
        raise SourceError(f"{entry.label}: the data file {path!r} cannot be read: {error}") from error
    kind, compression = detect_format(path)
    if kind is None:
        raise SourceError(
            f"{entry.label}: {path!r} is of no known format: {', '.join(FORMATS)}; {', '.join(_MAY_BE_COMPRESSED)} "
            f"also with .gz or .zst"
        )
    if size == 0:
        raise SourceError(f"{entry.label}: the data file {path!r} is empty (0 bytes)")
    if kind == "json" and _has_record_per_line(path, compression):
        kind = "jsonl"
    key = path[len(folder) :].lstrip("/") if path.startswith(folder) else posixpath.basename(path)
    return DataFile(path=path, format=kind, compression=compression, size=size, mark=mark, key=key)


def _has_record_per_line(path: str, compression: str | None) -> bool:
    """Whether a `.json` file starts with a record instead of an array, as many that hold one record per line do."""
    file = DataFile(path=path, format="json", compression=compression, size=0, mark="", key="")
    with open_binary(file) as stream:
        head = read_chunk(stream, 1 << 12, file)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _nearest(path: str) -> str:
    """` (the folder … exists)`, so that a typo in the middle of a path is seen."""
    parent = os.path.dirname(path)
    while parent and parent != "/" and not is_url(path):
        if os.path.isdir(parent):
            return f" (the folder {parent!r} does)"
        parent = os.path.dirname(parent)
    return ""


def stat(path: str) -> tuple[int, str]:
    """Bytes of a file, and a mark that changes when its content does."""
    if not is_url(path):
        status = os.stat(path)
        return status.st_size, str(status.st_mtime_ns)
    fs, inner = filesystem(path)
    info = fs.info(inner)
    for name in MARKS:
        if info.get(name):
            return int(info.get("size") or 0), str(info[name])
    return int(info.get("size") or 0), ""


def open_random_access(file: DataFile) -> pa.NativeFile:
    """The file for readers that seek; memory-mapped where it is local."""
    try:
        if not is_url(file.path):
            return pa.memory_map(file.path)
        fs, inner = filesystem(file.path)
        return pa.PythonFile(fs.open(inner, "rb"), mode="r")
    except OSError as error:
        raise SourceError(f"the data file {file.path!r} cannot be opened: {error}") from error


@contextmanager
def open_binary(file: DataFile, start: int = 0) -> Iterator[BinaryIO]:
    """The uncompressed bytes of the file from byte `start` on (of a compressed file: from its beginning)."""
    try:
        if is_url(file.path):
            fs, inner = filesystem(file.path)
            raw = cast(BinaryIO, fs.open(inner, "rb"))
        else:
            raw = open(file.path, "rb", buffering=0)
    except OSError as error:
        raise SourceError(f"the data file {file.path!r} cannot be opened: {error}") from error
    with raw:
        if file.compression == "gzip":
            yield cast(BinaryIO, gzip.GzipFile(fileobj=io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)))
        elif file.compression == "zstd":
            yield cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
        else:
            raw.seek(start)
            yield raw


def read_chunk(stream: BinaryIO, num_bytes: int, file: DataFile) -> bytes:
    """Up to `num_bytes` bytes, b"" at the end; a SourceError where the file is broken."""
    try:
        return stream.read(num_bytes)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise SourceError(f"{file.path}: the file is truncated or damaged: {error}", code="truncated") from error
