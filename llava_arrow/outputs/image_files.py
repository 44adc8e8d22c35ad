"""Images of a table as files of a folder: each gets its name, and is written unless it is there."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llava_arrow.column_types import is_list_type, one_array
from llava_arrow.errors import ImageError, MixtureError, OutputError
from llava_arrow.image_columns import flat_items
from llava_arrow.image_roots import ImageRoots, forget_links
from llava_arrow.images import checked, image_format, read_image
from llava_arrow.outputs.names import EXTENSIONS, ImageNames, identity_of, safe_name
from llava_arrow.outputs.target import writing
from llava_arrow.paths import is_url
from llava_arrow.sources import ROW

__all__ = ["ImageFile", "ImageFolder", "images_of", "lines_of", "name_images"]

NUM_THREADS = 32
LOCAL_TASKS = 4
"""Tasks in which the images of a table are written where nothing is waited for but the disk."""


@dataclass
class ImageFile:
    """One image of a sample: where it is in the table, what it is, and what it is to be called.

    `data` are its bytes where they are there already, `path` its reference or original path. When `is_open`, `name`
    still lacks its extension; when `is_unnamed`, it could not be read when names were given.
    """

    row: int
    column: str
    suffix: str
    data: Any
    path: str | None
    name: str = ""
    is_open: bool = False
    is_unnamed: bool = False
    error: MixtureError | None = None


def images_of(table: pa.Table, image_columns: Collection[str]) -> list[ImageFile]:
    """All images of a table, sample by sample, in the order of its columns."""
    found: list[list[ImageFile]] = [[] for _ in range(table.num_rows)]
    for column in table.column_names:
        if column not in image_columns:
            continue
        array = one_array(table.column(column), may_be_slice=True)
        is_list, items = is_list_type(array.type), flat_items(array)
        data, paths = items.field("bytes"), items.field("path").to_pylist()
        lengths = array.value_lengths().fill_null(0).to_pylist() if is_list else [1] * len(array)
        is_there = items.is_valid().to_pylist()
        base = "" if column == "image" else f"-{column}"
        position = 0
        for row, length in enumerate(lengths):
            for k in range(length):
                suffix = f"{base}-{k}" if length > 1 else base
                if is_there[position]:
                    found[row].append(ImageFile(row, column, suffix, data[position].as_buffer(), paths[position]))
                elif is_list:  # a shorter list would not fit the placeholders
                    error = ImageError(f"image {k} of {column!r} is null", code="image_missing")
                    found[row].append(ImageFile(row, column, suffix, None, None, error=error))
                position += 1
    return list(itertools.chain.from_iterable(found))


def name_images(
    images: Sequence[ImageFile], table: pa.Table, names: ImageNames, roots: ImageRoots, *, by_bytes: bool
) -> None:
    """Give each image its name. By bytes, references are read for it."""
    sources = table.column("data_source").to_pylist() if "data_source" in table.column_names else None
    ids = table.column("id").to_pylist() if "id" in table.column_names else None
    rows = table.column(ROW).to_pylist()
    identities = _identities([image for image in images if image.data is None], roots) if by_bytes else {}
    for image in images:
        if image.error is not None:
            continue
        row = image.row
        own = ids[row] if ids is not None else None
        if image.data is None:
            original = None if image.path is None else roots.relative(image.path)
            identity = identities.get(id(image), 0) if by_bytes else identity_of(image.path or "")
        else:
            identity = identity_of(image.data)
            original = image.path
            if original is not None and (original.startswith("/") or is_url(original)):
                original = roots.relative(original)
        image.name, image.is_open = names.name(
            names.folder_of("default" if sources is None or sources[row] is None else str(sources[row])),
            original,
            safe_name(f"{rows[row]:09d}" if own is None else str(own)) + image.suffix,
            identity,
            is_shared=by_bytes or image.data is None,
        )


def _identities(images: Sequence[ImageFile], roots: ImageRoots) -> dict[int, int]:
    """By `id` of each reference, what its bytes are; some are in memory at a time. Those that fail get their error."""

    def identity(image: ImageFile) -> tuple[int, int]:
        try:
            return id(image), 0 if image.path is None else identity_of(read_image(image.path, roots))
        except MixtureError as error:
            image.error = error
            return id(image), 0

    if not images:
        return {}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return dict(pool.map(identity, images))


class ImageFolder:
    """Writes images below `folder`; `temporary` is a folder on the same filesystem.

    A file appears under its name when all of it is there, so one that is there need not be written again.
    """

    def __init__(self, folder: str, temporary: str, roots: ImageRoots) -> None:
        forget_links()
        self.folder, self._roots = folder, roots
        os.makedirs(temporary, exist_ok=True)
        self._prefix = os.path.join(temporary, f"{os.getpid()}-")
        self._numbers = itertools.count()
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="image-files")
        self._lock = threading.Lock()
        self.num_written = 0

    def store(self, images: Sequence[ImageFile]) -> None:
        """Write those that are not there. Afterwards each has its whole name, or its error."""
        is_waiting = any(image.data is None and image.path is not None and is_url(image.path) for image in images)
        num_tasks = NUM_THREADS if is_waiting else LOCAL_TASKS
        chunks = [images[i::num_tasks] for i in range(min(num_tasks, len(images)))]
        for _ in self._pool.map(self._store_some, chunks):
            pass

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _store_some(self, images: Sequence[ImageFile]) -> None:
        for image in images:
            if image.error is None:
                try:
                    self._store(image)
                except OutputError:
                    raise
                except MixtureError as error:
                    image.error = error

    def _store(self, image: ImageFile) -> None:
        if image.data is None:
            if image.path is None:
                raise ImageError("an image has neither bytes nor a path", code="image_missing")
            known = None if image.is_unnamed else self._existing(image)
            if known is not None:
                image.name, image.is_open = known, False
                return
            data: Any = read_image(image.path, self._roots)
            if image.is_unnamed:
                raise ImageError(f"{image.path} could not be read a moment ago", code="image_unreadable")
        else:
            data = checked(image.data, f"embedded image {image.path or ''}".rstrip())
        if image.is_open:
            image.name += EXTENSIONS[image_format(data) or "JPEG"]
            image.is_open = False
        if image.name.startswith("/") or ".." in image.name.split("/"):  # names are made safe; this is the last door
            raise ImageError(f"{image.name!r} is no name for an image", code="unsafe_name")
        path = os.path.join(self.folder, image.name)
        try:
            if os.stat(path).st_size == len(data):
                return
        except FileNotFoundError:
            pass
        self._write(path, data)

    def _existing(self, image: ImageFile) -> str | None:
        """The name under which a reference was written before."""
        for extension in EXTENSIONS.values() if image.is_open else ("",):
            try:  # an empty file is what a power failure leaves
                if os.stat(os.path.join(self.folder, image.name + extension)).st_size > 0:
                    return image.name + extension
            except FileNotFoundError:
                continue
        return None

    def _write(self, path: str, data: Any) -> None:
        temporary = f"{self._prefix}{next(self._numbers)}"
        with writing(path):
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                try:
                    _write_all(descriptor, data)
                finally:
                    os.close(descriptor)
                try:
                    os.rename(temporary, path)
                except FileNotFoundError:
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    os.rename(temporary, path)
            except OSError:
                _remove(temporary)
                raise
        with self._lock:
            self.num_written += 1


def _write_all(descriptor: int, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _remove(path: str) -> None:
    try:
        os.remove(path)
    except OSError:
        pass


def lines_of(names: Sequence[ImageFile], image_dir: str) -> Iterator[str]:
    """The files that are about to be written, as `Target.log_files` takes them; `.?` where an extension is open."""
    for image in names:
        if image.error is None:
            yield f"{image_dir}/{image.name}{'.?' if image.is_open else ''}"
