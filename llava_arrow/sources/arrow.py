"""Arrow IPC files and streams (`.arrow`, Feather version 2): a shard is a range of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from llava_arrow.errors import SourceError
from llava_arrow.select import RowFilter
from llava_arrow.shards import DataFile, Range
from llava_arrow.sources import MAX_BATCH_ROWS, ROW
from llava_arrow.sources.files import open_random_access
from llava_arrow.sources.parquet import MAX_SHARD_ROWS, plain_columns
from llava_arrow.sources.records import OnBadRow

__all__ = ["columns", "cut", "num_default_shards", "read"]

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The continuation mark and a length of 0, by which the IPC streaming format ends."""


def _batches(file: DataFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    source = open_random_access(file)
    try:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:  # `datasets` writes its own files as streams
            _check_end(source, file)
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            return stream.schema, iter(stream)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{file.path}: this is no readable Arrow file (truncated?): {error}", code="truncated"
        ) from error
    return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def _check_end(source: pa.NativeFile, file: DataFile) -> None:
    """A stream that stops between two batches looks whole but for the mark that every writer leaves when it is
    closed.
    """
    source.seek(max(0, file.size - len(END_OF_STREAM)))
    if source.read(len(END_OF_STREAM)) != END_OF_STREAM:
        source.seek(0)
        pa.ipc.open_stream(source)  # where it is no stream at all, this says so
        raise SourceError(
            f"{file.path}: the Arrow stream has no end mark: the file is truncated, or its writer was not closed",
            code="truncated",
        )


def columns(file: DataFile) -> dict[str, pa.DataType]:
    """Columns and their types."""
    schema, _ = _batches(file)
    return {field.name: field.type for field in schema}


def _num_rows(file: DataFile) -> int:
    try:
        return sum(batch.num_rows for batch in _batches(file)[1])
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file.path}: the file is truncated or damaged: {error}", code="truncated") from error


def num_default_shards(file: DataFile) -> int:
    """How many shards suit the file's size."""
    return max(1, -(-_num_rows(file) // MAX_SHARD_ROWS))


def cut(file: DataFile, num_shards: int) -> list[Range]:
    """`num_shards` ranges of as many rows."""
    num_rows = _num_rows(file)
    cuts = [round(i * num_rows / num_shards) for i in range(num_shards + 1)]
    return [Range(a, b, a, b - a) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]


def read(
    file: DataFile, part: Range, *, columns: Sequence[str] | None, filters: Sequence[RowFilter], on_bad_row: OnBadRow
) -> Iterator[pa.Table]:
    """The rows of `part`; batches before it are passed over, which costs nothing where they are not compressed."""
    schema, batches = _batches(file)
    names = list(columns) if columns is not None else schema.names
    position = 0
    try:
        for batch in batches:
            first, last = max(position, part.start), min(position + batch.num_rows, part.stop)
            for low in range(first, last, MAX_BATCH_ROWS):
                high = min(low + MAX_BATCH_ROWS, last)
                table = pa.Table.from_batches([batch.slice(low - position, high - low)]).select(names)
                yield plain_columns(table).append_column(ROW, pa.array(np.arange(low, high)))
            position += batch.num_rows
            if position >= part.stop:
                return
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file.path}: the file is truncated or damaged: {error}", code="truncated") from error
