"""Image reference → bytes, for those who need bytes: local files and any fsspec URL, concurrently, with bounded
retries.

Bytes are never re-encoded, and they leave only if they look like an image.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava_arrow.column_types import Layout, one_array
from llava_arrow.errors import ImageError, MixtureError
from llava_arrow.image_columns import flat_items, item_owners, with_images
from llava_arrow.image_roots import ImageRoots
from llava_arrow.paths import is_url
from llava_arrow.retries import backoff_s, comes_from, retried
from llava_arrow.sources.files import filesystem

__all__ = ["checked", "embed", "image_format", "image_sizes", "read_image"]

NUM_THREADS = 32
NUM_LOCAL_TASKS = 4
"""Threads that read local files at a time: enough for a disk, few enough not to wait for each other."""
NUM_ATTEMPTS = 4
FIRST_WAIT_S = 0.5
MAX_IMAGE_BYTES = 1 << 29
"""Arrow counts the bytes of a column in 31 bits; no photo comes near."""
MAX_SAMPLE_BYTES = (1 << 31) - (1 << 20)
"""Of all images of a sample, which are in one table whatever their size."""
ANYWHERE = ImageRoots(())
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}


def image_format(data: Any) -> str | None:
    """The format by its magic number, None where it is none of an image.

    >>> image_format(b"GIF89a..."), image_format(b"<html>")
    ('GIF', None)
    """
    head = bytes(data[:12])
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"):
        return "AVIF" if head[8:11] == b"avi" else "HEIF"
    return None


def read_image(path: str, roots: ImageRoots = ANYWHERE) -> bytes:
    """The bytes of an image.

    Args:
        path: an absolute path or URL.
        roots: where it may lie.

    Raises:
        ImageError: missing, unreadable, empty, too large, no image, or not below the roots.
    """
    opened = roots.path_to_open(path)
    data = _fetch(opened) if is_url(opened) else _read_local(opened, roots)
    return checked(data, path)


def checked(data: Any, name: str) -> Any:
    """`data`; an ImageError where it does not look like an image."""
    if len(data) > MAX_IMAGE_BYTES:
        raise _too_large(name, len(data))
    if image_format(data) is None:
        what = "is empty" if not data else f"is no image (it begins with {bytes(data[:12])!r})"
        raise ImageError(f"{name} {what}", code="image_empty" if not data else "no_image")
    return data


def _too_large(name: str, num_bytes: int) -> ImageError:
    return ImageError(
        f"{name} has {num_bytes:,} bytes: an image may have at most {MAX_IMAGE_BYTES:,}", code="image_too_large"
    )


def _read_local(path: str, roots: ImageRoots) -> bytes:
    descriptor, size = _open_local(path, roots)
    try:
        data = bytearray(size)
        return bytes(memoryview(data)[: _read_into(descriptor, memoryview(data))])
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _open_local(path: str, roots: ImageRoots) -> tuple[int, int]:
    """A descriptor of a regular file that lies below its roots, and its size."""
    try:
        # A link is opened only after looking where it leads; a pipe must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        is_link = False
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) or error.errno != errno.ELOOP:
            raise _unreadable(path, error) from error
        roots.check_real(path, is_link=True)
        is_link = True
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as broken:
            raise _unreadable(path, broken) from broken
    try:
        if not is_link:
            roots.check_real(path, is_link=False)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ImageError(f"{path} is {kind}", code="image_unreadable")
        if status.st_size > MAX_IMAGE_BYTES:
            raise _too_large(path, status.st_size)
    except ImageError:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def _read_into(descriptor: int, view: memoryview) -> int:
    """Fill `view` from a file; the number of bytes there were. One read gives all, but on some network filesystems."""
    position = 0
    while position < len(view):
        count = os.readv(descriptor, [view[position:]])
        if not count:
            break
        position += count
    return position


def _unreadable(path: str, error: OSError | ValueError) -> ImageError:
    if isinstance(error, ValueError):
        return ImageError(f"{path!r} is no path: {error}", code="image_unreadable")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError(f"{path} does not exist", code="image_missing")
    return ImageError(f"{path} cannot be read: {error.strerror}", code="image_unreadable")


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
    return comes_from(error, ("aiohttp", "botocore", "httpx")) or isinstance(error, (OSError, TimeoutError))


def with_retries(call: Callable[[], bytes], path: str) -> bytes:
    """`call()`, tried again a few times after network errors; in the end an ImageError that names `path`."""
    try:
        return retried(
            call,
            num_attempts=NUM_ATTEMPTS,
            is_temporary=lambda error: (
                is_network_error(error) and not isinstance(error, (FileNotFoundError, PermissionError))
            ),
            wait=lambda attempt, _: time.sleep(backoff_s(attempt, FIRST_WAIT_S)),
        )
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist", code="image_missing") from error
    except PermissionError as error:
        raise ImageError(f"{path} may not be read: {error}", code="image_unreadable") from error
    except Exception as error:
        if not is_network_error(error):
            raise
        raise ImageError(
            f"{path} cannot be read after {NUM_ATTEMPTS} attempts: {error}", code="image_unreadable"
        ) from error


def embed(table: pa.Table, layout: Layout, *, roots: ImageRoots) -> tuple[pa.Table, dict[int, MixtureError]]:
    """The table with image bytes in place of references; samples whose image fails, by position."""
    failed: dict[int, MixtureError] = {}
    if table.num_rows == 1:  # larger tables are cut before that
        num_bytes = int(image_sizes(table, layout, 0)[0])
        if num_bytes > MAX_SAMPLE_BYTES:
            return table, {0: _too_many_bytes(num_bytes)}
    for column in layout.image_columns:
        array = one_array(table.column(column), may_be_slice=True)
        items = flat_items(array)
        data, errors = _contents(items, roots)
        if errors:
            owners = item_owners(array)
            for position, error in errors.items():
                failed.setdefault(int(owners[position]), error)
        filled = with_images(array, data, items.field("path"))
        table = table.set_column(table.column_names.index(column), table.schema.field(column), filled)
    return table, failed


def _too_many_bytes(num_bytes: int) -> ImageError:
    return ImageError(
        f"the images of the sample have {num_bytes:,} bytes together: at most {MAX_SAMPLE_BYTES:,} fit",
        code="image_too_large",
    )


def image_sizes(table: pa.Table, layout: Layout, guess: int) -> npt.NDArray[np.int64]:
    """Bytes of each sample's images, as far as that is known without reading them; `guess` for a remote one."""
    sizes = np.zeros(table.num_rows, dtype=np.int64)
    for column in layout.image_columns:
        array = one_array(table.column(column), may_be_slice=True)
        items = flat_items(array)
        lengths = pc.fill_null(pc.binary_length(items.field("bytes")), -1).to_numpy(zero_copy_only=False)
        if len(lengths) and lengths.min() < 0:
            lengths = lengths.astype(np.int64)
            paths = items.field("path")
            for i in np.flatnonzero(lengths < 0).tolist():
                path = paths[i].as_py()
                lengths[i] = 0 if path is None else guess if is_url(path) else _size(path)
        np.add.at(sizes, item_owners(array), lengths)
    return sizes


def _size(path: str) -> int:
    try:
        return min(os.stat(path).st_size, MAX_IMAGE_BYTES)
    except (OSError, ValueError):
        return 0  # reading it will say what is wrong


def _contents(items: pa.StructArray, roots: ImageRoots) -> tuple[pa.Array, dict[int, MixtureError]]:
    """The bytes of images, null where there is no image or it fails; errors by position."""
    given, paths = items.field("bytes"), items.field("path").to_pylist()
    if given.null_count == len(given) and all(path is not None and not is_url(path) for path in paths):
        local = _local_contents(paths, roots)
        if local is not None:
            return local
    errors: dict[int, MixtureError] = {}

    def content(position: int, data: bytes | None, path: str | None) -> bytes | None:
        try:
            if data is not None:
                return checked(data, f"embedded image {path or ''}".rstrip())
            return None if path is None else read_image(path, roots)
        except MixtureError as error:
            errors[position] = error
            return None

    values = list(zip(range(len(items)), given.to_pylist(), paths, strict=True))
    if len(values) < 2 or all(path is None or data is not None for _, data, path in values):
        found = [content(*value) for value in values]
    else:
        found = list(_pool().map(lambda value: content(*value), values))
    num_bytes = sum(len(data) for data in found if data is not None)
    if num_bytes > MAX_SAMPLE_BYTES:  # of remote images nobody knew before
        return pa.nulls(len(found), pa.binary()), {i: _too_many_bytes(num_bytes) for i in range(len(found))}
    return pa.array(found, pa.binary()), errors


def _local_contents(paths: list[str], roots: ImageRoots) -> tuple[pa.Array, dict[int, MixtureError]] | None:
    """The bytes of local files, read into one buffer without a copy in between; None where a file fails or changes
    meanwhile, so that each has to be looked at.
    """
    ends = np.cumsum([0, *(_size(path) for path in paths)])
    if int(ends[-1]) > MAX_SAMPLE_BYTES:
        return None
    buffer = pa.allocate_buffer(int(ends[-1]))
    view = memoryview(buffer)
    borders = ends.tolist()

    def read(positions: range) -> bool:
        for i in positions:
            part = view[borders[i] : borders[i + 1]]
            try:
                descriptor, size = _open_local(roots.path_to_open(paths[i]), roots)
            except MixtureError:
                return False
            try:
                if size != len(part) or _read_into(descriptor, part) != size or image_format(part) is None:
                    return False
            except OSError:
                return False
            finally:
                os.close(descriptor)
        return True

    step = max(1, -(-len(paths) // NUM_LOCAL_TASKS))
    tasks = [range(start, min(start + step, len(paths))) for start in range(0, len(paths), step)]
    if not all([read(task) for task in tasks] if len(tasks) == 1 else list(_pool().map(read, tasks))):
        return None
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), len(paths), [None, offsets, buffer]), {}


def _pool() -> ThreadPoolExecutor:
    """The threads that read images, one set per process: starting them anew for each table costs as much as reading
    it.
    """
    global _threads
    if _threads is None or _threads[0] != os.getpid():
        _threads = (os.getpid(), ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="images"))
    return _threads[1]


_threads: tuple[int, ThreadPoolExecutor] | None = None
