"""Image reference → bytes, for those who need bytes: local files and any fsspec URL, concurrently, with bounded
retries.

Bytes are never re-encoded, and they leave only if they look like an image.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from llava_arrow.column_types import IMAGE_TYPE, Layout, one_array
from llava_arrow.errors import ImageError, MixtureError
from llava_arrow.paths import is_url
from llava_arrow.sources.files import filesystem

__all__ = ["embed", "image_format", "read_image"]

NUM_THREADS = 32
NUM_ATTEMPTS = 4
FIRST_WAIT_S = 0.5
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}


def image_format(data: bytes) -> str | None:
    """The format by its magic number, None where it is none of an image.

    >>> image_format(b"GIF89a..."), image_format(b"<html>")
    ('GIF', None)
    """
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"):
        return "AVIF" if data[8:11] == b"avi" else "HEIF"
    return None


def read_image(path: str, *, root: str | None = None) -> bytes:
    """The bytes of an image.

    Args:
        path: an absolute path or URL.
        root: a local file below it must stay below it when its symlinks are followed.

    Raises:
        ImageError: missing, unreadable, empty, or no image.
    """
    data = _fetch(path) if is_url(path) else _read_local(path, root)
    if image_format(data) is None:
        what = "is empty" if not data else f"is no image (it begins with {data[:12]!r})"
        raise ImageError(f"{path} {what}", code="image_empty" if not data else "no_image")
    return data


def _read_local(path: str, root: str | None) -> bytes:
    if root is not None and path.startswith(root.rstrip("/") + "/"):
        real, real_root = os.path.realpath(path), os.path.realpath(root)
        if os.path.commonpath([real, real_root]) != real_root:
            raise ImageError(
                f"{path} is a link to {real}, outside of the image root {root}", code="image_outside_root"
            )
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist", code="image_missing") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", code="image_unreadable") from error


def _fetch(path: str) -> bytes:
    try:
        fs, inner = filesystem(path)
    except MixtureError as error:
        raise ImageError(
            f"{path} has no store: {error.message} (see `image_stores`)", code="image_no_store"
        ) from error
    return with_retries(lambda: bytes(fs.cat_file(inner)), path)


def is_network_error(error: Exception) -> bool:
    """Whether it is worth another attempt: what the system, a timeout, or an HTTP client raises."""
    clients = ("aiohttp", "botocore", "httpx")
    is_http = any(base.__module__.partition(".")[0] in clients for base in type(error).__mro__)
    return is_http or isinstance(error, (OSError, TimeoutError))


def with_retries(call: Callable[[], bytes], path: str) -> bytes:
    """`call()`, tried again a few times after network errors, with growing waits that differ from process to
    process.
    """
    for attempt in range(NUM_ATTEMPTS):
        try:
            return call()
        except FileNotFoundError as error:
            raise ImageError(f"{path} does not exist", code="image_missing") from error
        except PermissionError as error:
            raise ImageError(f"{path} may not be read: {error}", code="image_unreadable") from error
        except Exception as error:
            if not is_network_error(error):
                raise
            if attempt == NUM_ATTEMPTS - 1:
                raise ImageError(
                    f"{path} cannot be read after {NUM_ATTEMPTS} attempts: {error}", code="image_unreadable"
                ) from error
            time.sleep(FIRST_WAIT_S * 2**attempt * (0.5 + random.random()))  # jitter: no sample depends on it
    raise AssertionError("unreachable")


def embed(table: pa.Table, layout: Layout, *, root: str) -> tuple[pa.Table, dict[int, MixtureError]]:
    """The table with image bytes in place of references; samples whose image fails, by position."""
    failed: dict[int, MixtureError] = {}
    for column, kind in layout.image_columns.items():
        array = one_array(table.column(column))
        items = array.values if kind == "many" else array
        owners = (
            np.repeat(np.arange(len(array)), np.diff(array.offsets.to_numpy()))
            if kind == "many"
            else np.arange(len(array))
        )
        data, errors = _contents(items, root)
        for position, error in errors.items():
            failed.setdefault(int(owners[position]), error)
        filled = pa.StructArray.from_arrays(
            [pa.array(data, pa.binary()), items.field("path")], fields=list(IMAGE_TYPE), mask=items.is_null()
        )
        column_array = pa.ListArray.from_arrays(array.offsets, filled) if kind == "many" else filled
        table = table.set_column(table.column_names.index(column), table.schema.field(column), column_array)
    return table, failed


def _contents(items: pa.StructArray, root: str) -> tuple[list[bytes | None], dict[int, MixtureError]]:
    errors: dict[int, MixtureError] = {}

    def content(position: int, data: bytes | None, path: str | None) -> bytes | None:
        try:
            if data is not None:
                if image_format(data) is None:
                    raise ImageError(
                        f"embedded image {path or ''} is no image (it begins with {data[:12]!r})", code="no_image"
                    )
                return data
            return None if path is None else read_image(path, root=root)
        except MixtureError as error:
            errors[position] = error
            return None

    values = list(
        zip(range(len(items)), items.field("bytes").to_pylist(), items.field("path").to_pylist(), strict=True)
    )
    if len(values) < 2:
        return [content(*value) for value in values], errors
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(lambda value: content(*value), values)), errors
