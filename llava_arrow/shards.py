"""The unit of work: a small picklable description of a range of rows of one file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llava_arrow.entry import Entry
from llava_arrow.ledger import Tally

__all__ = ["DataFile", "Range", "Shard", "join_neighbours"]


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One data file: its path or URL, format, size in bytes, and a mark that changes when its content does (mtime or
    etag).

    `key` is its path relative to the entry's data folder: what random draws are keyed by.
    """

    path: str
    format: str
    compression: str | None
    size: int
    mark: str
    key: str


@dataclass(frozen=True)
class Range:
    """A part of a file. `start` and `stop` are rows or bytes, as the format counts; `num_rows` is None where nobody
    has counted.
    """

    start: int
    stop: int
    first_row: int
    num_rows: int | None = None


Positions: TypeAlias = range | npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A range of one file of one entry, with what sampling keeps of it.

    `keep` are positions among the rows of the shard that pass the filters (None: all). `counted` are its counts where
    planning had to count: then reading may stop early.
    """

    entry: Entry
    file: DataFile
    range: Range
    index: int
    keep: Positions | None = None
    counted: Tally | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.entry.config_name}: {self.file.path} [{self.range.start}, {self.range.stop})"


def join_neighbours(shards: Iterable[Shard]) -> list[Shard]:
    """Shards that follow each other in one file as one: a range that starts inside a row group costs what lies before
    it.
    """
    joined: list[Shard] = []
    for shard in shards:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.keep is None
            and shard.keep is None
            and last.entry == shard.entry
            and last.file == shard.file
            and last.range.stop == shard.range.start
        ):
            num_rows = None
            if last.range.num_rows is not None and shard.range.num_rows is not None:
                num_rows = last.range.num_rows + shard.range.num_rows
            both = Range(last.range.start, shard.range.stop, last.range.first_row, num_rows)
            joined[-1] = replace(last, range=both)
        else:
            joined.append(shard)
    return joined
