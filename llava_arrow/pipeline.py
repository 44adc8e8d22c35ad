"""The path of a row: sources → select → preprocess → schema. Nothing else moves rows."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llava_arrow.column_types import Layout
from llava_arrow.entry import DEFAULT_AES_CUTOFF, Entry, image_root_of
from llava_arrow.errors import MixtureError, SchemaError
from llava_arrow.image_roots import ImageRoots, forget_links
from llava_arrow.images import embed, image_sizes
from llava_arrow.ledger import LedgerLine, Tally
from llava_arrow.paths import ImageResolver
from llava_arrow.plan import bad_row_handler, locate_errors, read_range
from llava_arrow.preprocess.apply import Samples, plain_records, to_samples
from llava_arrow.randomness import file_key, row_keys
from llava_arrow.schema import assemble, widen
from llava_arrow.select import filter_mask
from llava_arrow.shards import Shard
from llava_arrow.sources import MAX_BATCH_ROWS, ROW
from llava_arrow.sources.columns import read_spec
from llava_arrow.sources.files import stem_of
from llava_arrow.sources.formats import columns_of

__all__ = ["first_samples", "iter_tables", "preview_rows"]

logger = logging.getLogger(__name__)

MAX_EMBEDDED_ROWS = 100
"""Rows of a table with embedded images: those of a row group of a Parquet export, which then need not be copied."""
EMBEDDED_BYTES, EXPORTED_BYTES = 4 << 20, 32 << 20
"""Bytes of images in such a table: as many rows as fit, at least one. `datasets` copies each column that it
writes to a file into a new object, which is quick as long as it is small; a Parquet row group may be large.
"""
REMOTE_IMAGE_BYTES = 256 << 10
"""What a remote image is taken to have before it is read."""


def iter_tables(
    shard: Shard,
    *,
    layout: Layout,
    target: Layout | None = None,
    embed_images: bool = False,
    export: bool = False,
    with_rows: bool = False,
    tally: Tally | None = None,
) -> Iterator[pa.Table]:
    """The samples of a shard, a table at a time, in file order.

    Args:
        shard: from `plan_shards`.
        layout: the columns of the entry's samples, from `layout_of`.
        target: a wider layout to deliver them in.
        embed_images: read image bytes into the tables (local and fsspec paths).
        export: read them from below the entry's image roots only.
        with_rows: add each sample's row number, in a last column `ROW`.
        tally: receives the counts and ledger lines; complete when the iterator is exhausted.

    Raises:
        MixtureError: with the file and row; with `on_error: skip` rows go into the ledger instead.
    """
    account = tally if tally is not None else Tally()
    stage = _Stage(shard, layout, target or layout, embed_images, account, export, with_rows)
    tables = _kept_rows(shard, account)
    while True:
        with _no_collection():
            table = next(tables, None)
        if table is None:
            break
        for start in range(0, table.num_rows, stage.rows_at_once):
            delivered = stage.deliver(table.slice(start, stage.rows_at_once))
            while True:
                with _no_collection():
                    samples = next(delivered, None)
                if samples is None:
                    break
                if samples.num_rows:
                    yield samples
    num_by_default = account.filtered["aes_cutoff"] if shard.entry.aes_cutoff == "default" else 0
    if num_by_default and tally is None:
        logger.warning(
            "%s: the default aes_cutoff of %g removed %d rows: say aes_cutoff in the entry, null for none",
            shard.file.path, DEFAULT_AES_CUTOFF, num_by_default,
        )  # fmt: skip
    if account.ledger and tally is None:
        first = account.ledger[0]
        logger.warning(
            "%s: %d rows were left out (on_error: skip), the first: row %d, %s: %s",
            shard.file.path, len(account.ledger), first.row, first.code, first.reason,
        )  # fmt: skip


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection while a table is made: a batch is many small objects that do not refer to themselves."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def first_samples(shard: Shard, *, layout: Layout, num_rows: int) -> pa.Table | None:
    """The samples of the first `num_rows` rows that are kept, images as references; None where they are at fault,
    which is said when their turn comes.
    """
    stage = _Stage(shard, layout, layout, False, Tally())
    try:
        for table in _kept_rows(shard, Tally()):
            return next(stage.deliver(table.slice(0, num_rows)))
    except MixtureError:
        pass
    return None


def preview_rows(
    shard: Shard, *, layout: Layout, num_rows: int
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The first rows that are kept, as read, each with its samples (none for a row that goes into the ledger)."""
    account = Tally()
    stage = _Stage(shard, layout, layout, False, account)
    for table in _kept_rows(shard, account):
        for i in range(min(num_rows, table.num_rows)):
            row = table.slice(i, 1)
            yield row.to_pylist()[0], [sample for made in stage.deliver(row) for sample in made.to_pylist()]
        num_rows -= table.num_rows
        if num_rows <= 0:
            return


def _kept_rows(shard: Shard, tally: Tally) -> Iterator[pa.Table]:
    """Rows that pass the filters and that sampling keeps. Where planning counted the shard, its counts stand and
    reading stops early.
    """
    spec = read_spec(shard.entry, shard.file)
    seen = Tally()
    filtered: dict[str, int] = {}
    position = 0  # among the rows that passed
    on_bad_row = bad_row_handler(shard.entry, shard.file, seen)
    tables = read_range(shard.entry, shard.file, shard.range, spec.columns, spec.filters, on_bad_row)
    if shard.counted is not None:
        tally.add(shard.counted)
        tally.not_sampled += shard.counted.delivered - len(shard.keep if shard.keep is not None else ())
        tally.delivered -= shard.counted.delivered
    for table in tables:
        mask = locate_errors(
            shard.entry, shard.file, lambda t=table: filter_mask(t, spec.filters, filtered, seen.best)
        )
        seen.rows += table.num_rows
        passed = table if mask is None else table.filter(pa.array(mask))
        num_passed = passed.num_rows
        kept = passed if shard.keep is None else _take_kept(passed, shard.keep, position)
        position += num_passed
        if kept.num_rows:
            for column in spec.undeclared:
                tally.undeclared[column] += kept.num_rows
            yield kept
        if shard.keep is not None and (not len(shard.keep) or position > int(shard.keep[-1])):
            break
    if shard.counted is None:
        seen.rows += len(seen.ledger)  # rows that the source could not read are in no table
        seen.filtered.update({name: count for name, count in filtered.items() if count})
        tally.add(seen)


def _take_kept(table: pa.Table, keep: range | npt.NDArray[np.int64], position: int) -> pa.Table:
    if isinstance(keep, range):
        low, high = max(keep.start - position, 0), max(min(keep.stop - position, table.num_rows), 0)
        return table.slice(low, max(high - low, 0))
    low, high = np.searchsorted(keep, [position, position + table.num_rows])
    return table.take(pa.array(keep[low:high] - position))


@dataclass(frozen=True)
class _Made:
    """Samples of a batch of rows, with references: `positions` are those of the samples among `rows`, which lists each
    copy of a row; `wrong` is keyed by position; `bad_rows` are those that are in the ledger.
    """

    table: pa.Table
    positions: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    ids: list[str]
    wrong: dict[int, MixtureError]
    bad_rows: set[int] = field(default_factory=set)


class _Stage:
    """What the samples of one shard have in common: how rows are named, drawn for, resolved and accounted for."""

    def __init__(
        self,
        shard: Shard,
        layout: Layout,
        target: Layout,
        embed_images: bool,
        tally: Tally,
        export: bool = False,
        with_rows: bool = False,
    ) -> None:
        forget_links()
        self.entry: Entry = shard.entry
        self.file = shard.file
        self.layout, self.target, self.embed_images, self.tally = layout, target, embed_images, tally
        self.with_rows = with_rows
        self.table_bytes = EXPORTED_BYTES if export else EMBEDDED_BYTES
        self.id_column = read_spec(self.entry, self.file).id_column
        is_plain = self.entry.preprocess is None and columns_of(self.file) is None
        self.plain = plain_records(self.entry, layout, self.id_column) if is_plain else None
        self.key = file_key(seed=self.entry.seed, config_name=self.entry.config_name, file=self.file.key)
        # Copies are what a row grows to; tables stay small all the same.
        self.rows_at_once = max(1, MAX_BATCH_ROWS // self.entry.sampling_strategy.num_copies)
        self.remote_bytes = REMOTE_IMAGE_BYTES
        self.stem = stem_of(self.file)
        self.roots = ImageRoots.of_entry(self.entry, self.file.path, is_only=export)
        self.resolve = ImageResolver(
            image_root=image_root_of(self.entry, self.file.path),
            path_map=self.entry.path_map,
            image_stores=self.entry.image_stores,
        )

    def deliver(self, table: pa.Table) -> Iterator[pa.Table]:
        """Kept rows → samples in the target layout; rows at fault are raised or accounted for."""
        num_rows, num_copies = table.num_rows, self.entry.sampling_strategy.num_copies
        copies: npt.NDArray[np.int64] | None = None
        if num_copies > 1:
            table = table.take(pa.array(np.repeat(np.arange(num_rows), num_copies)))
            copies = np.tile(np.arange(num_copies), num_rows)
        rows = table.column(ROW).to_numpy()
        keys = row_keys(self.key, rows, copies)
        samples = locate_errors(
            self.entry,
            self.file,
            lambda: to_samples(
                table, keys, entry=self.entry, layout=self.layout, id_column=self.id_column, plain=self.plain
            ),
        )
        ids = self._ids(samples, rows, copies)
        names = samples.columns.get("data_source")
        sources = [self.entry.name if name is None else name for name in _listed(names, len(ids))]
        bound = self.entry.preprocess
        assembled = assemble(
            {**samples.columns, "id": ids, "data_source": sources},
            layout=self.layout,
            entry=self.entry,
            resolve=self.resolve,
            uncounted=() if bound is None else bound.uncounted,
        )
        wrong = {**{int(samples.positions[i]): error for i, error in assembled.wrong.items()}, **samples.wrong}
        self.tally.repaired += assembled.num_repaired
        self.tally.trimmed += assembled.num_trimmed
        self.tally.undeclared.update(samples.undeclared)
        made = _Made(assembled.table, samples.positions, rows, ids, wrong)
        if not self.embed_images:
            yield self._settle(made, 0, len(rows))
            return
        for first, stop in self._pieces(made):
            yield self._settle(made, first, stop)

    def _pieces(self, made: _Made) -> Iterator[tuple[int, int]]:
        """Ranges of positions whose images fit into one table. The copies of a row stay together, unless they alone
        are too many or too large for one.
        """
        num_copies = self.entry.sampling_strategy.num_copies
        sizes = np.zeros(len(made.rows), dtype=np.int64)
        sizes[made.positions] = image_sizes(made.table, self.layout, self.remote_bytes)
        whole = sizes.reshape(-1, num_copies).sum(axis=1)
        is_split = np.repeat((whole > self.table_bytes) | (num_copies > MAX_EMBEDDED_ROWS), num_copies)
        first, num_bytes = 0, 0
        for position, size in enumerate(sizes.tolist()):
            can_cut = is_split[position] or position % num_copies == 0
            comes = size if is_split[position] else int(whole[position // num_copies])
            num_rows = position - first + (1 if is_split[position] else num_copies)
            if can_cut and position > first and (num_bytes + comes > self.table_bytes or num_rows > MAX_EMBEDDED_ROWS):
                yield first, position
                first, num_bytes = position, 0
            num_bytes += size
        yield first, len(made.rows)

    def _settle(self, made: _Made, first: int, stop: int) -> pa.Table:
        """The samples of the positions `first` to `stop`, images embedded if asked for, in the target layout; the
        account is brought up to date.
        """
        low, high = np.searchsorted(made.positions, [first, stop]).tolist()
        built, positions = made.table.slice(low, high - low), made.positions[low:high]
        wrong = {p: error for p, error in made.wrong.items() if first <= p < stop}
        if self.embed_images:
            built, failed = embed(built, self.layout, roots=self.roots)
            if built.num_rows:
                self.remote_bytes = max(REMOTE_IMAGE_BYTES, built.nbytes // built.num_rows)
            wrong = {**{int(positions[i]): error for i, error in failed.items()}, **wrong}
        numbers = made.rows[positions]
        num_bad = len(made.bad_rows)
        if wrong:
            self._account_for(wrong, made)
        if made.bad_rows:  # with all copies that have not left in a table before
            good = ~np.isin(numbers, list(made.bad_rows))
            built, numbers = built.filter(pa.array(good)), numbers[good]
        # A row counts where its first copy is.
        num_copies = self.entry.sampling_strategy.num_copies
        self.tally.delivered += -(-stop // num_copies) - -(-first // num_copies) - (len(made.bad_rows) - num_bad)
        self.tally.samples += built.num_rows
        built = widen(built, self.target)
        return built.append_column(ROW, pa.array(numbers)) if self.with_rows else built

    def _ids(self, samples: Samples, rows: npt.NDArray[np.int64], copies: npt.NDArray[np.int64] | None) -> list[str]:
        prefix = f"{self.entry.config_name}-{self.stem}-"
        kept = rows[samples.positions].tolist()
        given = _listed(samples.columns.get("id"), len(kept))
        ids = [f"{prefix}{row:09d}" if own in (None, "") else own for own, row in zip(given, kept, strict=True)]
        for i, own in enumerate(ids):
            if type(own) is not str:
                ids[i] = self._id_text(own, int(samples.positions[i]), samples.wrong)
        if copies is not None:
            numbers = copies[samples.positions].tolist()
            ids = [f"{text}-dup{copy}" if copy else text for text, copy in zip(ids, numbers, strict=True)]
        return ids

    def _id_text(self, given: Any, position: int, wrong: dict[int, MixtureError]) -> str:
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            wrong.setdefault(
                position, SchemaError(f"'id' must be text or a number, got {given!r:.80}", code="type_id")
            )
        # pandas makes whole numbers floats where one of them is missing
        return str(int(given)) if isinstance(given, float) and given.is_integer() else str(given)

    def _account_for(self, wrong: dict[int, MixtureError], made: _Made) -> None:
        """Raise the first error, or write each row at fault into the ledger, once however many copies of it there
        are.
        """
        by_position = dict(zip(made.positions.tolist(), made.ids, strict=True))
        for position in sorted(wrong):
            row, error = int(made.rows[position]), wrong[position]
            if self.entry.on_error == "raise":
                raise error.at(f"{self.file.path} row {row} ({self.entry.label})") from error.__cause__
            if row not in made.bad_rows:
                made.bad_rows.add(row)
                sample_id = by_position.get(position)
                self.tally.ledger.append(LedgerLine(self.file.path, row, sample_id, error.code, error.message))


def _listed(values: Any, length: int) -> list[Any]:
    if values is None:
        return [None] * length
    return values.to_pylist() if isinstance(values, pa.Array) else list(values)
