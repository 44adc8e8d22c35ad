"""Entry → shards: files are cut into ranges, rows are counted where sampling depends on how many there are, positions
are chosen.

The plan is a function of the entry, its files and `num_shards`; which rows are kept does not depend on `num_shards`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from llava_arrow.entry import Entry
from llava_arrow.errors import ConfigError, MixtureError, SourceError
from llava_arrow.ledger import LedgerLine, Tally, sum_tallies
from llava_arrow.plan_cache import PlanCache
from llava_arrow.select import RowFilter, filter_mask, nothing_left
from llava_arrow.shards import DataFile, Range, Shard
from llava_arrow.sources.columns import check_record_keys, read_spec
from llava_arrow.sources.files import data_files
from llava_arrow.sources.formats import reader_of
from llava_arrow.sources.records import OnBadRow

__all__ = ["Plan", "apportion", "count_range", "named", "plan_shards"]

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The shards of an entry, in file order, and the counts of ranges of which nothing is kept."""

    shards: list[Shard]
    unread: Tally = field(default_factory=Tally)


def plan_shards(
    entry: Entry,
    *,
    num_shards: int | None = None,
    cache: PlanCache | None = None,
    files: Sequence[DataFile] | None = None,
) -> Plan:
    """Cut the entry's files into shards.

    Args:
        num_shards: how many; files are never joined, so there may be more. None: as many as suit the sizes.
        cache: where counts are remembered; None is the default place.
        files: the entry's files, when the caller has listed them already.

    Raises:
        SourceError: a file is missing, broken or lacks a column. ConfigError: more rows are asked for than there are,
            or none is left.
    """
    cache = cache or PlanCache()
    files = data_files(entry) if files is None else files
    for file in files:
        read_spec(entry, file)
    check_record_keys(entry, files, cache)
    ranges = _cut(files, num_shards, cache)
    if not ranges:
        raise _no_rows(entry, files)
    if not entry.sampling_strategy.needs_count:
        _check_something_passes(entry, files, ranges, cache)
        return Plan([Shard(entry=entry, file=f, range=part, index=i) for i, (f, part) in enumerate(ranges)])
    tallies = [_counted(entry, file, part, cache) for file, part in ranges]
    return _sampled(entry, ranges, tallies, cache)


def _cut(files: Sequence[DataFile], num_shards: int | None, cache: PlanCache) -> list[tuple[DataFile, Range]]:
    ranges: list[tuple[DataFile, Range]] = []
    for i, file in enumerate(files):
        if num_shards is None:
            wanted = reader_of(file).num_default_shards(file)
        else:
            wanted = apportion([file.size for file in files], num_shards)[i]
        parts: list[Range] = cache.remember(("cut", file, wanted), partial(reader_of(file).cut, file, wanted))
        ranges += [(file, part) for part in parts]
    return ranges


def apportion(sizes: Sequence[int], num_shards: int) -> list[int]:
    """`num_shards` spread over files (or entries) by size, one each at least; the largest remainders get the rest.

    >>> apportion([10, 30], 8)
    [2, 6]
    """
    exact = [num_shards * size / max(1, sum(sizes)) for size in sizes]
    shares = [max(1, int(share)) for share in exact]
    while sum(shares) < num_shards:
        shares[max(range(len(sizes)), key=lambda i: exact[i] - shares[i])] += 1
    while sum(shares) > max(num_shards, len(sizes)):
        larger = [i for i, share in enumerate(shares) if share > 1]
        shares[min(larger, key=lambda i: exact[i] - shares[i])] -= 1
    return shares


def count_range(entry: Entry, file: DataFile, part: Range, *, stop_at_first: bool = False) -> Tally:
    """Count the rows of a range by filter, reading only the filters' columns. `delivered` is the number of rows that
    pass.
    """
    spec = read_spec(entry, file)
    tally = Tally()
    if not spec.filters and part.num_rows is not None:
        tally.rows = tally.delivered = part.num_rows
        return tally
    compared = list(dict.fromkeys(column for row_filter in spec.filters for column in row_filter.columns))
    columns = None if spec.columns is None else compared or [spec.columns[0]]
    on_bad_row = bad_row_handler(entry, file, tally)
    filtered: dict[str, int] = {}
    for table in read_range(entry, file, part, columns, spec.filters, on_bad_row):
        mask = locate_errors(entry, file, lambda table=table: filter_mask(table, spec.filters, filtered, tally.best))
        tally.rows += table.num_rows
        tally.delivered += table.num_rows if mask is None else int(np.count_nonzero(mask))
        if stop_at_first and tally.delivered:
            break
    tally.rows += len(tally.ledger)
    tally.filtered.update({name: count for name, count in filtered.items() if count})
    return tally


def read_range(
    entry: Entry,
    file: DataFile,
    part: Range,
    columns: Sequence[str] | None,
    filters: Sequence[RowFilter],
    on_bad_row: OnBadRow,
) -> Iterator[pa.Table]:
    """The tables of a range; what is wrong with the file itself names the entry, too."""
    try:
        yield from reader_of(file).read(file, part, columns=columns, filters=filters, on_bad_row=on_bad_row)
    except SourceError as error:
        raise error if entry.label in error.message else error.at(entry.label) from error.__cause__


def named(entry: Entry, call: Callable[[], T]) -> T:
    """`call()`; an error that does not name the entry is made to."""
    try:
        return call()
    except MixtureError as error:
        if entry.label in error.message:
            raise
        raise error.at(entry.label) from error.__cause__


def bad_row_handler(entry: Entry, file: DataFile, tally: Tally) -> OnBadRow:
    """What sources call for a row that cannot be read: an error that names it, or a ledger line."""

    def on_bad_row(row: int, error: MixtureError) -> None:
        if entry.on_error == "raise":
            raise error.at(f"{file.path} row {row} ({entry.label})") from None
        tally.ledger.append(LedgerLine(file.path, row, None, error.code, error.message))

    return on_bad_row


def locate_errors(entry: Entry, file: DataFile, call: Any) -> Any:
    """`call()`, its errors with the file and entry in front."""
    try:
        return call()
    except MixtureError as error:
        raise error.at(f"{file.path} ({entry.label})") from None
    except pa.ArrowException as error:
        raise SourceError(f"{file.path} ({entry.label}): {error}") from error


def _counted(entry: Entry, file: DataFile, part: Range, cache: PlanCache) -> Tally:
    spec = read_spec(entry, file)
    question = ("count", file, part, spec.filters, entry.on_error)
    return cache.remember(question, lambda: count_range(entry, file, part))


def _check_something_passes(
    entry: Entry, files: Sequence[DataFile], ranges: list[tuple[DataFile, Range]], cache: PlanCache
) -> None:
    """An entry whose filters keep nothing is an error before it is built; usually the first rows show that it does not
    come to that.
    """
    filters = [row_filter for file in files for row_filter in read_spec(entry, file).filters]
    if not filters and any(part.num_rows for _, part in ranges):
        return
    question = ("passes", tuple(ranges), tuple(filters), entry.on_error)
    total = cache.remember(question, lambda: _count_until_one_passes(entry, ranges))
    _check_readable(entry, files, total)
    if not total.delivered:
        raise ConfigError(
            f"{entry.label}: {nothing_left(total.filtered, total.best, list(dict.fromkeys(filters)), total.rows)}"
        )


def _check_readable(entry: Entry, files: Sequence[DataFile], total: Tally) -> None:
    """An error where the files hold no rows, or none that can be read."""
    if not total.rows:
        raise _no_rows(entry, files)
    if len(total.ledger) == total.rows:
        first = total.ledger[0]
        raise SourceError(
            f"{entry.label}: none of its {total.rows:,} rows can be read, the first: row {first.row}: {first.reason}"
        )


def _no_rows(entry: Entry, files: Sequence[DataFile]) -> SourceError:
    return SourceError(f"{entry.label}: {', '.join(file.path for file in files)}: there are no rows")


def _count_until_one_passes(entry: Entry, ranges: list[tuple[DataFile, Range]]) -> Tally:
    total = Tally()
    for file, part in ranges:
        total.add(count_range(entry, file, part, stop_at_first=True))
        if total.delivered:
            break
    return total


def _sampled(entry: Entry, ranges: list[tuple[DataFile, Range]], tallies: list[Tally], cache: PlanCache) -> Plan:
    num_passed = sum(tally.delivered for tally in tallies)
    total = sum_tallies(tallies)
    if not num_passed:
        _check_readable(entry, [file for file, _ in ranges], total)
        filters = list(dict.fromkeys(f for file, _ in ranges for f in read_spec(entry, file).filters))
        raise ConfigError(f"{entry.label}: {nothing_left(total.filtered, total.best, filters, total.rows)}")
    try:
        positions = cache.remember(
            ("positions", str(entry.sampling_strategy), num_passed, entry.seed),
            lambda: entry.sampling_strategy.positions(num_passed, seed=entry.seed),
        )
    except ConfigError as error:
        raise error.at(entry.label) from None
    shards: list[Shard] = []
    unread = Tally()
    first = 0
    for (file, part), tally in zip(ranges, tallies, strict=True):
        keep = _slice(positions, first, first + tally.delivered)
        first += tally.delivered
        if len(keep):
            shards.append(Shard(entry=entry, file=file, range=part, index=len(shards), keep=keep, counted=tally))
        else:
            unread.add(replace(tally, delivered=0, not_sampled=tally.delivered))
    return Plan(shards, unread)


def _slice(positions: Any, first: int, stop: int) -> Any:
    """The positions in [first, stop), counted from `first`."""
    if isinstance(positions, range):
        return range(
            max(positions.start, first) - first, max(positions.start, first, min(positions.stop, stop)) - first
        )
    low, high = np.searchsorted(positions, [first, stop])
    return positions[low:high] - first
