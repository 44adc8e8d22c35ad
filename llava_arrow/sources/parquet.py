"""Parquet: projection and filters reach the row groups; a shard is a range of rows, cut at row-group borders where it
can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_arrow.errors import SourceError
from llava_arrow.paths import is_url
from llava_arrow.select import RowFilter
from llava_arrow.shards import DataFile, Range
from llava_arrow.sources import BATCH_BYTES, MAX_BATCH_ROWS, ROW, SHARD_BYTES
from llava_arrow.sources.files import open_random_access
from llava_arrow.sources.records import OnBadRow

__all__ = ["columns", "cut", "num_default_shards", "read"]

BUFFER_BYTES = 1 << 20
MAX_SHARD_ROWS = 1 << 18
"""Rows of a shard where nobody asks for more shards: what a resumed stream has to pass over at most."""


def _open(file: DataFile) -> pq.ParquetFile:
    try:
        if is_url(file.path):
            return pq.ParquetFile(open_random_access(file))
        # Read piece by piece: memory-mapped, or with whole column chunks fetched ahead, memory grows with the file.
        return pq.ParquetFile(pa.OSFile(file.path), buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{file.path}: this is no readable Parquet file (truncated?): {error}", code="truncated"
        ) from error


def columns(file: DataFile) -> dict[str, pa.DataType]:
    """Top-level columns and their types."""
    with _open(file) as parquet:
        return {field.name: field.type for field in parquet.schema_arrow}


def num_default_shards(file: DataFile) -> int:
    """How many shards suit the file's size."""
    with _open(file) as parquet:
        by_rows = -(-parquet.metadata.num_rows // MAX_SHARD_ROWS)
        return max(1, min(by_rows, parquet.metadata.num_rows), -(-file.size // (4 * SHARD_BYTES)))


def cut(file: DataFile, num_shards: int) -> list[Range]:
    """`num_shards` ranges of about as many rows; a border goes to a row group's where one is near."""
    with _open(file) as parquet:
        num_rows = parquet.metadata.num_rows
        borders = np.cumsum([0] + [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)])
    part = num_rows / num_shards
    cuts = [0]
    for i in range(1, num_shards):
        wanted = round(i * part)
        nearest = int(borders[np.argmin(np.abs(borders - wanted))])
        cuts.append(nearest if abs(nearest - wanted) <= part / 4 else wanted)
    cuts.append(num_rows)
    return [Range(a, b, a, b - a) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]


def read(
    file: DataFile, part: Range, *, columns: Sequence[str] | None, filters: Sequence[RowFilter], on_bad_row: OnBadRow
) -> Iterator[pa.Table]:
    """The rows of `part`. Of a row group in which statistics say that nothing passes, only the filters' columns are
    read.
    """
    with _open(file) as parquet:
        wanted = list(columns) if columns is not None else [field.name for field in parquet.schema_arrow]
        compared = list(dict.fromkeys(column for row_filter in filters for column in row_filter.columns))
        start = 0
        for index in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(index)
            stop = start + group.num_rows
            first, last = max(start, part.start), min(stop, part.stop)
            if first < last:
                can_pass = all(row_filter.can_pass(_bounds(group, compared)) for row_filter in filters)
                names = wanted if can_pass else compared
                yield from _read_group(file, parquet, index, names, range(first - start, last - start), start)
            start = stop


def _read_group(
    file: DataFile, parquet: pq.ParquetFile, index: int, names: list[str], rows: range, first_row: int
) -> Iterator[pa.Table]:
    group = parquet.metadata.row_group(index)
    batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
    try:
        position = 0
        for batch in parquet.iter_batches(batch_rows, row_groups=[index], columns=names, use_threads=True):
            first, last = max(position, rows.start), min(position + batch.num_rows, rows.stop)
            if first < last:
                table = pa.Table.from_batches([batch.slice(first - position, last - first)])
                yield plain_columns(table).append_column(ROW, pa.array(np.arange(first_row + first, first_row + last)))
            position += batch.num_rows
            if position >= rows.stop:
                return
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{file.path}: row group {index} cannot be read (truncated?): {error}", code="truncated"
        ) from error


def plain_columns(table: pa.Table) -> pa.Table:
    """Dictionary-encoded columns (pandas' categories) as what they stand for."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(field.type.value_type))
    return table


def _bounds(group: pq.RowGroupMetaData, compared: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """(min, max) per column, where the row group has statistics of numbers."""
    bounds = {}
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema in compared and column.is_stats_set and column.statistics.has_min_max:
            low, high = column.statistics.min, column.statistics.max
            if isinstance(low, (int, float)) and isinstance(high, (int, float)):
                dtype = np.float32 if column.physical_type == "FLOAT" else type(low)
                bounds[column.path_in_schema] = (dtype(low), dtype(high))
    return bounds
