"""Samples → Parquet files that `datasets` and the dataset viewer read without this package.

What a file looks like depends on its samples only: row groups are cut by rows and bytes, chunks by content.
"""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_arrow.column_types import Layout, is_list_type, one_array
from llava_arrow.config_data import ConfigData
from llava_arrow.image_columns import flat_items, item_owners, with_images
from llava_arrow.image_roots import ImageRoots
from llava_arrow.images import image_format
from llava_arrow.ledger import Tally
from llava_arrow.outputs.names import is_safe_path
from llava_arrow.outputs.processes import made_ahead
from llava_arrow.paths import is_url
from llava_arrow.shards import Shard

__all__ = ["ImageStats", "PartFile", "PartRecord", "fixed_bytes", "parquet_schema", "write_part", "yaml_features"]

IMAGE_GROUP_ROWS = 100
"""The dataset viewer reads whole row groups: with images, it asks for at most this many rows …"""
GROUP_BYTES = 100_000_000
"""… and this many bytes."""
TEXT_GROUP_ROWS = 10_000
LEAF_BYTES = 280
"""What a row group costs per leaf beside the values: page headers, offsets, statistics of short texts."""
MAX_BOUND_BYTES, BOUNDS_PER_LEAF = 4_096, 6
"""Least and greatest text of a row group, in its footer and page index: how long at most, and how often."""
NUM_MEASURED = 16
"""Images of a part whose width and height are looked at, for the card."""
NUM_PREVIEWED = 3
PREVIEW_CHARACTERS = 300

OpenFile = Callable[[int], AbstractContextManager[Any]]


@dataclass
class PartFile:
    """A file of a part: its number in the part, rows and bytes."""

    number: int
    num_rows: int
    num_bytes: int


@dataclass
class ImageStats:
    """Images of one column. `sides` are (width, height) in pixels of the first of each part."""

    count: int = 0
    num_bytes: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    sides: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: ImageStats) -> None:
        """Add those of another part, in place."""
        self.count += other.count
        self.num_bytes += other.num_bytes
        self.formats = dict(Counter(self.formats) + Counter(other.formats))
        self.sides += other.sides


@dataclass
class PartRecord:
    """What became of a part: its files, the account of its rows, and what the card says of it."""

    files: list[PartFile] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    arrow_bytes: int = 0
    images: dict[str, ImageStats] = field(default_factory=dict)
    preview: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        plain = asdict(self)
        return {**plain, "tallies": {name: tally.to_json() for name, tally in self.tallies.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PartRecord:
        """The record that `to_json` wrote."""
        return cls(
            files=[PartFile(**item) for item in data["files"]],
            tallies={name: Tally.from_json(tally) for name, tally in data["tallies"].items()},
            arrow_bytes=data["arrow_bytes"],
            images={
                name: ImageStats(**{**stats, "sides": [tuple(pair) for pair in stats["sides"]]})
                for name, stats in data["images"].items()
            },
            preview=data["preview"],
        )


def parquet_schema(layout: Layout) -> pa.Schema:
    """The Arrow schema with the features for `datasets`: lists in the spelling that 2.16 knows and 5 reads."""
    features = {column: _feature(kind) for column, kind in layout.kinds.items()}
    return layout.arrow_schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: str) -> Any:
    if kind.startswith("list<"):
        return [_feature(kind[5:-1])]
    text = {"dtype": "string", "_type": "Value"}
    known: dict[str, Any] = {
        "text": text,
        "one": {"_type": "Image"},
        "many": [{"_type": "Image"}],
        "turns": [{"from": text, "value": text}],
    }
    return known.get(kind, {"dtype": kind, "_type": "Value"})


def yaml_features(layout: Layout) -> list[dict[str, Any]]:
    """The features as `dataset_info` in a README.md has them.

    >>> yaml_features(Layout({"gen_score": "list<float32>"}))
    [{'name': 'gen_score', 'list': 'float32'}]
    """
    return [{"name": column, **_yaml_feature(kind)} for column, kind in layout.kinds.items()]


def _yaml_feature(kind: str) -> dict[str, Any]:
    if kind.startswith("list<"):
        inner = _yaml_feature(kind[5:-1])
        return {"list": inner["dtype"] if set(inner) == {"dtype"} else inner}
    known: dict[str, dict[str, Any]] = {
        "text": {"dtype": "string"},
        "one": {"dtype": "image"},
        "many": {"list": "image"},
        "turns": {"list": [{"name": "from", "dtype": "string"}, {"name": "value", "dtype": "string"}]},
    }
    return known.get(kind, {"dtype": kind})


def fixed_bytes(layout: Layout) -> tuple[int, int]:
    """Bytes of a file without rows, and what each row group adds beside its values."""
    return _fixed_bytes(tuple(layout.kinds.items()))


@lru_cache(maxsize=256)
def _fixed_bytes(kinds: tuple[tuple[str, str], ...]) -> tuple[int, int]:
    schema = parquet_schema(Layout(dict(kinds)))
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema, **_writer_options(schema)).close()
    return sink.getvalue().size, LEAF_BYTES * len(list(_leaves(schema)))


def write_part(data: ConfigData, shards: list[Shard], open_file: OpenFile, *, max_file_bytes: int) -> PartRecord:
    """Write the samples of `shards` as one file, or as several where one would have more than `max_file_bytes`.

    Args:
        open_file: number of the file in the part → a context with a binary file-like object to write.
    """
    record = PartRecord(images={column: ImageStats() for column in data.layout.image_columns})
    writer = _PartWriter(data.layout, open_file, max_file_bytes, record)
    with writer:
        for shard in shards:
            tally = record.tallies.setdefault(shard.entry.config_name, Tally())
            roots = ImageRoots.of_entry(shard.entry, shard.file.path)
            # One thread reads, one looks at what was read, this one writes.
            prepared = _prepared(made_ahead(data.tables(shard, tally)), data.layout, roots, record)
            with closing(made_ahead(prepared)) as tables:
                for table, sizes in tables:
                    writer.add(table, sizes)
    return record


RowSizes: TypeAlias = tuple[list[int], list[int], list[int]]


def _prepared(
    tables: Iterator[pa.Table], layout: Layout, roots: ImageRoots, record: PartRecord
) -> Generator[tuple[pa.Table, RowSizes], None, None]:
    """Tables as they are written, with the sizes of their rows; `record` learns what the card says of them."""
    for table in tables:
        plain = _with_relative_paths(table, layout, roots)
        record.arrow_bytes += plain.nbytes
        _look_at(plain, layout, record)
        yield plain, _row_sizes(plain, layout)


class _PartWriter:
    """Cuts tables into row groups and files."""

    def __init__(self, layout: Layout, open_file: OpenFile, max_file_bytes: int, record: PartRecord) -> None:
        self._open, self._record = open_file, record
        self._schema = parquet_schema(layout)
        self._options = _writer_options(self._schema)
        self._has_image = False
        self._longest = self._file_longest = 0
        self._num_stats = BOUNDS_PER_LEAF * len(self._options["write_statistics"])
        self._max_file_bytes = max_file_bytes
        self._costs = fixed_bytes(layout)
        self._max_bytes = max(1, min(GROUP_BYTES, max_file_bytes - sum(self._costs)))
        self._pending: list[pa.Table] = []
        self._num_rows = self._num_bytes = self._num_groups = 0
        self._stack = ExitStack()
        self._file: Any = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            try:
                self._flush()
                self._close()
                return
            except BaseException:
                kind, value, trace = sys.exc_info()
        if self._writer is not None:
            self._writer.is_open = False  # it would write its footer when it is collected
        if not self._stack.__exit__(kind, value, trace):  # the file is given up, and may say more of its error
            raise value

    def add(self, table: pa.Table, sizes: RowSizes) -> None:
        """Take some more samples."""
        start = 0
        for row, (size, image_bytes, longest) in enumerate(zip(*sizes, strict=True)):
            has_image = self._has_image or image_bytes > 0
            bounds = self._num_stats * max(self._longest, longest)
            is_full = self._num_bytes + size + bounds > self._max_bytes
            if self._num_rows and (is_full or self._num_rows >= (IMAGE_GROUP_ROWS if has_image else TEXT_GROUP_ROWS)):
                if row > start:
                    self._pending.append(table.slice(start, row - start))
                self._flush()
                start = row
            self._num_rows += 1
            self._num_bytes += size
            self._has_image |= image_bytes > 0
            self._longest = max(self._longest, longest)
        self._pending.append(table.slice(start))

    def _flush(self) -> None:
        if not self._num_rows:
            return
        # A group that is one table already is not copied.
        group = self._pending[0] if len(self._pending) == 1 else pa.concat_tables(self._pending).combine_chunks()
        group = group.cast(self._schema)
        if self._writer is not None:
            footer = self._costs[0] + (self._num_groups + 1) * self._costs[1] + self._num_stats * self._file_longest
            if self._file.tell() + self._num_bytes + footer + self._num_stats * self._longest > self._max_file_bytes:
                self._close()
        if self._writer is None:
            self._file = self._stack.enter_context(self._open(len(self._record.files)))
            self._writer = pq.ParquetWriter(self._file, self._schema, **self._options)
            self._record.files.append(PartFile(len(self._record.files), 0, 0))
            self._num_groups = self._file_longest = 0
        self._writer.write_table(group, row_group_size=self._num_rows)
        self._num_groups += 1
        self._file_longest += self._longest
        self._record.files[-1].num_rows += self._num_rows
        self._pending, self._num_rows, self._num_bytes, self._has_image, self._longest = [], 0, 0, False, 0

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._record.files[-1].num_bytes = self._file.tell()
            self._stack.close()
            self._writer = None


def _writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Images are compressed already; the rest is text. Statistics of images or answers would be images or answers."""
    leaves = list(_leaves(schema))
    plain = [leaf for leaf in leaves if not leaf.endswith(".bytes")]
    options: dict[str, Any] = {
        "compression": {leaf: "NONE" if leaf.endswith(".bytes") else "ZSTD" for leaf in leaves},
        "use_dictionary": plain,
        "write_statistics": [leaf for leaf in plain if not leaf.startswith("conversations.")],
        "write_page_index": True,
    }
    if "use_content_defined_chunking" in inspect.signature(pq.ParquetWriter.__init__).parameters:
        options["use_content_defined_chunking"] = True
    return options


def _leaves(schema: pa.Schema) -> Iterator[str]:
    def below(name: str, kind: pa.DataType) -> Iterator[str]:
        if is_list_type(kind):
            yield from below(f"{name}.list.element", kind.value_type)
        elif pa.types.is_struct(kind):
            for i in range(kind.num_fields):
                yield from below(f"{name}.{kind.field(i).name}", kind.field(i).type)
        else:
            yield name

    for item in schema:
        yield from below(item.name, item.type)


def _row_sizes(table: pa.Table, layout: Layout) -> RowSizes:
    """Per row: its bytes (those of its images exactly, of the rest its share), those of its images, and the longest of
    the texts that statistics keep the bounds of.
    """
    images = np.zeros(table.num_rows, dtype=np.int64)
    longest = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.column_names:
        array = one_array(table.column(column), may_be_slice=True)
        items = flat_items(array)
        if column in layout.image_columns:
            np.add.at(images, item_owners(array), _lengths(items.field("bytes")))
            np.maximum.at(longest, item_owners(array), _lengths(items.field("path")))
        elif pa.types.is_string(items.type):
            np.maximum.at(longest, item_owners(array), _lengths(items))
    rest = max(0, table.nbytes - int(images.sum())) // max(1, table.num_rows)
    return (images + rest).tolist(), images.tolist(), np.minimum(longest, MAX_BOUND_BYTES).tolist()


def _lengths(array: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _with_relative_paths(table: pa.Table, layout: Layout, roots: ImageRoots) -> pa.Table:
    """Paths of images relative to their root: where they lay on this machine is nobody's business."""
    for column in layout.image_columns:
        array = one_array(table.column(column), may_be_slice=True)
        items = flat_items(array)
        paths = [None if path is None else _relative(path, roots) for path in items.field("path").to_pylist()]
        made = with_images(array, items.field("bytes"), pa.array(paths, pa.string()))
        table = table.set_column(table.column_names.index(column), table.schema.field(column), made)
    return table


def _relative(path: str, roots: ImageRoots) -> str:
    inner = roots.relative(path) if path.startswith("/") or is_url(path) else path
    return inner if inner is not None and is_safe_path(inner) else re.split(r"[/\\]", path.partition("?")[0])[-1]


def _look_at(table: pa.Table, layout: Layout, record: PartRecord) -> None:
    for column in layout.image_columns:
        items = flat_items(one_array(table.column(column), may_be_slice=True)).field("bytes").drop_null()
        stats = record.images[column]
        stats.count += len(items)
        stats.num_bytes += int(pc.sum(pc.binary_length(items)).as_py() or 0)
        formats = Counter(image_format(item.as_buffer()[:12]) or "?" for item in items)
        stats.formats = dict(Counter(stats.formats) + formats)
        for item in items[: max(0, NUM_MEASURED - len(stats.sides))]:
            size = _sides(item.as_py())
            stats.sides += [] if size is None else [size]
    wanted = NUM_PREVIEWED - len(record.preview)
    if wanted > 0:
        record.preview += [_shortened(sample) for sample in table.slice(0, wanted).to_pylist()]


def _sides(data: bytes) -> tuple[int, int] | None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, or of many pixels, which nobody decodes here
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except (OSError, ValueError, RuntimeError, SyntaxError, LookupError, TypeError, Image.DecompressionBombError):
        return None  # decoders raise anything; a picture that only few can read is written all the same


def _shortened(value: Any) -> Any:
    """A sample for the card: images by name, size and format, long texts cut."""
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        sides = _sides(value["bytes"]) if value["bytes"] is not None else None
        size = "" if sides is None else f", {sides[0]} × {sides[1]}"
        return f"{value['path'] or 'no name'} ({image_format(value['bytes'] or b'') or 'no image'}{size})"
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value[:20]]
    if isinstance(value, str) and len(value) > PREVIEW_CHARACTERS:
        return value[:PREVIEW_CHARACTERS] + " …"
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
