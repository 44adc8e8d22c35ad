"""The reader of each format: the one place that knows them all. A new format is a module with these functions and a
line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import pyarrow as pa

from llava_arrow.select import RowFilter
from llava_arrow.shards import DataFile, Range
from llava_arrow.sources import arrow, delimited, json_array, json_lines, parquet
from llava_arrow.sources.records import OnBadRow

__all__ = ["Reader", "columns_of", "reader_of"]


class Reader(Protocol):
    """What a format's module offers. It may also have `columns(file)`, name → type, where the file says so before it
    is read.
    """

    def num_default_shards(self, file: DataFile) -> int:
        """How many shards suit the file's size."""
        ...

    def cut(self, file: DataFile, num_shards: int) -> list[Range]:
        """Ranges of about equal size that cover the file, each starting at a row."""
        ...

    def read(
        self,
        file: DataFile,
        part: Range,
        *,
        columns: Sequence[str] | None,
        filters: Sequence[RowFilter],
        on_bad_row: OnBadRow,
    ) -> Iterator[pa.Table]:
        """The rows of a range, in order: the columns asked for and those that filters compare, and `ROW`."""
        ...


_READERS = {
    "parquet": parquet,
    "arrow": arrow,
    "csv": delimited,
    "tsv": delimited,
    "json": json_array,
    "jsonl": json_lines,
}


def reader_of(file: DataFile) -> Reader:
    """The module that reads this file's format."""
    return cast(Reader, _READERS[file.format])


def columns_of(file: DataFile) -> dict[str, pa.DataType] | None:
    """Columns and types that the file declares; None for JSON, whose records may differ."""
    module = _READERS[file.format]
    return module.columns(file) if hasattr(module, "columns") else None
