"""Kept rows → samples: the entry's preprocess function, or none where rows already are LLaVA samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llava_arrow.column_types import IMAGE_COLUMNS, Layout, is_list_type, one_array
from llava_arrow.entry import ANY_COLUMN, Entry
from llava_arrow.errors import MixtureError, PreprocessError, SourceError
from llava_arrow.preprocess.plain_records import PlainRecords
from llava_arrow.preprocess.registry import BatchDraws, BoundPreprocess
from llava_arrow.randomness import Draws
from llava_arrow.sources import RECORD, ROW
from llava_arrow.sources.records import DECODE_ERRORS, not_a_record

__all__ = ["Samples", "to_samples"]

_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


@dataclass
class Samples:
    """Columns of samples, the position of each in the rows given, and the rows that gave none, with their errors."""

    columns: Mapping[str, Sequence[Any] | pa.Array]
    positions: npt.NDArray[np.int64]
    wrong: dict[int, MixtureError] = field(default_factory=dict)
    undeclared: Counter[str] = field(default_factory=Counter)


def to_samples(
    table: pa.Table,
    keys: npt.NDArray[np.uint64],
    *,
    entry: Entry,
    layout: Layout,
    id_column: str | None,
    plain: PlainRecords | None,
) -> Samples:
    """Turn each row of `table` (copies included) into a sample; `keys` are the rows' keys for draws."""
    bound = entry.preprocess
    if RECORD in table.column_names:
        if plain is not None:
            return _from_plain_records(table.column(RECORD).to_pylist(), entry, layout, plain)
        return _from_records(table, keys, entry, layout, id_column)
    if bound is None:
        return _from_plain_columns(table, layout, id_column)
    table, positions, wrong = _without_videos(table)
    keys = keys[positions]
    columns: dict[str, Any] = {}
    if table.num_rows:
        if bound.preprocess.is_batched:
            make_table = partial(_slice, table.drop_columns([ROW]))
            columns, good = _call_batched(bound, make_table, table.num_rows, keys, wrong, positions)
        else:
            columns, good = _call_each(bound, _rows(table.drop_columns([ROW])), keys, layout, wrong, positions)
        table, positions = table.take(pa.array(good)), positions[good]
    for column, source in (("id", id_column), ("data_source", "data_source")):
        if source is not None and source in table.column_names:
            columns.setdefault(column, table.column(source).to_pylist())
    return Samples({"conversations": [], **columns}, positions, wrong)


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    names = table.column_names
    return [
        dict(zip(names, values, strict=True))
        for values in zip(*(column.to_pylist() for column in table.columns), strict=True)
    ]


def _without_videos(table: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64], dict[int, MixtureError]]:
    positions = np.arange(table.num_rows)
    if "video" not in table.column_names:
        return table, positions, {}
    has_video = np.asarray(table.column("video").is_valid().to_numpy())
    wrong: dict[int, MixtureError] = {int(i): _video() for i in np.flatnonzero(has_video)}
    return table.filter(pa.array(~has_video)), positions[~has_video], wrong


def _video() -> PreprocessError:
    return PreprocessError("the row has a 'video': only images are supported", code="video")


def _from_records(
    table: pa.Table, keys: npt.NDArray[np.uint64], entry: Entry, layout: Layout, id_column: str | None
) -> Samples:
    """JSON rows for a preprocess function: each kept record is parsed here, once."""
    wrong: dict[int, MixtureError] = {}
    rows: list[dict[str, Any]] = []
    good: list[int] = []
    for i, text in enumerate(table.column(RECORD).to_pylist()):
        try:
            row = _decoder.decode(text)
        except DECODE_ERRORS as error:
            wrong[i] = not_a_record(text, error)
            continue
        if row.get("video") is not None:
            wrong[i] = _video()
            continue
        if entry.columns is not None:
            row = {key: value for key, value in row.items() if key in entry.columns}
        rows.append(row)
        good.append(i)
    positions = np.array(good, dtype=np.int64)
    bound = entry.preprocess
    assert bound is not None
    columns: dict[str, Any] = {}
    kept = positions
    if rows and bound.preprocess.is_batched:
        make_table = partial(_table_of, rows, bound)
        columns, kept = _call_batched(bound, make_table, len(rows), keys[positions], wrong, positions)
    elif rows:
        columns, kept = _call_each(bound, rows, keys[positions], layout, wrong, positions)
    rows, positions = [rows[i] for i in kept.tolist()], positions[kept]
    columns.setdefault("data_source", [row.get("data_source") for row in rows])
    columns.setdefault("id", [row.get(id_column) for row in rows] if id_column else [None] * len(rows))
    return Samples({"conversations": [], **columns}, positions, wrong)


def _from_plain_records(texts: list[bytes], entry: Entry, layout: Layout, plain: PlainRecords) -> Samples:
    """JSON rows that already are samples."""
    wrong: dict[int, MixtureError] = {}
    undeclared: Counter[str] = Counter()
    columns, good = plain.read(texts, wrong, undeclared)
    for column in entry.keep_columns:
        if layout.kinds[column] == "string":
            columns[column] = [_as_text(value) for value in columns[column]]
    return Samples(columns, np.array(good, dtype=np.int64), wrong, undeclared)


def plain_records(entry: Entry, layout: Layout, id_column: str | None) -> PlainRecords:
    """The reader of an entry's plain JSON records."""
    compared = [column for row_filter in entry.filters(ANY_COLUMN, is_parquet=False) for column in row_filter.columns]
    columns = [column for column in layout.kinds if column not in ("id", "data_source", "conversations")]
    return PlainRecords(columns, compared, id_column, only=entry.columns)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _slice(table: pa.Table, start: int, stop: int) -> pa.Table:
    return table.slice(start, stop - start)


def _table_of(rows: list[dict[str, Any]], bound: BoundPreprocess, start: int, stop: int) -> pa.Table:
    """Some rows as a table for a batched function; what no row has is null."""
    part = rows[start:stop]
    names = dict.fromkeys(name for row in part for name in row)
    if bound.reads is not None:
        names = dict.fromkeys(column.rstrip("?") for column in bound.reads)
    try:
        return pa.table({name: pa.array([row.get(name) for row in part]) for name in names})
    except (pa.ArrowException, OverflowError) as error:
        raise PreprocessError(f"the records have values that fit no column: {error}", code="mixed_types") from error


def _from_plain_columns(table: pa.Table, layout: Layout, id_column: str | None) -> Samples:
    """Rows that already are samples, in Arrow: columns pass as they are."""
    table, positions, wrong = _without_videos(table)
    columns: dict[str, Any] = {}
    for column in layout.kinds:
        source = id_column if column == "id" else column
        if source is not None and source in table.column_names:
            columns[column] = one_array(table.column(source))
    if not is_list_type(columns["conversations"].type):  # text of any Arrow make, or nothing that is a conversation
        texts = columns["conversations"].to_pylist()
        columns["conversations"] = [
            _json_turns(text, i, wrong) for i, text in zip(positions.tolist(), texts, strict=True)
        ]
    return Samples(columns, positions, wrong)


def _json_turns(text: Any, position: int, wrong: dict[int, MixtureError]) -> Any:
    if not isinstance(text, (str, bytes)):
        return text
    try:
        return msgspec.json.decode(text)
    except DECODE_ERRORS as error:
        wrong[position] = PreprocessError(f"'conversations' is text, but no JSON: {error}", code="conversations_json")
        return []


def _call_each(
    bound: BoundPreprocess,
    rows: Sequence[Mapping[str, Any]],
    keys: npt.NDArray[np.uint64],
    layout: Layout,
    wrong: dict[int, MixtureError],
    positions: npt.NDArray[np.int64],
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    function, options = bound.preprocess.function, bound.options
    takes_rng = bound.preprocess.takes_rng
    samples: list[Mapping[str, Any]] = []
    good: list[int] = []
    for i, (row, key) in enumerate(zip(rows, keys.tolist(), strict=True)):
        try:
            sample = function(row, rng=Draws(key), **options) if takes_rng else function(row, **options)
            if not isinstance(sample, Mapping):
                raise PreprocessError(
                    f"{bound.name} must return a sample (a mapping), got {sample!r:.80}", code="no_sample"
                )
            if not sample.keys() <= layout.kinds.keys():
                unknown = next(iter(sample.keys() - layout.kinds.keys()))
                raise PreprocessError(
                    f"{bound.name} fills {unknown!r}, which it does not declare in `fills`", code="undeclared"
                )
        except MixtureError as error:
            wrong[int(positions[i])] = error
            continue
        except Exception as error:  # a user's function may raise anything: the row must be named
            wrong[int(positions[i])] = _wrapped(bound, error)
            continue
        samples.append(sample)
        good.append(i)
    filled = {column for sample in samples for column in sample}
    return {c: [sample.get(c) for sample in samples] for c in layout.kinds if c in filled}, np.array(
        good, dtype=np.int64
    )


def _wrapped(bound: BoundPreprocess, error: Exception) -> PreprocessError:
    wrapped = PreprocessError(f"{bound.name} raised {type(error).__name__}: {error}", code=type(error).__name__)
    wrapped.__cause__ = error
    return wrapped


def _call_batched(
    bound: BoundPreprocess,
    make_table: Callable[[int, int], pa.Table],
    num_rows: int,
    keys: npt.NDArray[np.uint64],
    wrong: dict[int, MixtureError],
    positions: npt.NDArray[np.int64],
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Call on the whole batch; where that fails, on its halves, until the rows at fault stand alone.

    `make_table(start, stop)` gives the rows from `start` to `stop`.
    """
    parts: list[pa.Table] = []
    good: list[npt.NDArray[np.int64]] = []
    pending = [(0, num_rows)]
    while pending:
        start, stop = pending.pop()
        try:
            part = make_table(start, stop)
            result = bound(part, BatchDraws(keys[start:stop]) if bound.preprocess.takes_rng else None)
            if not isinstance(result, pa.Table) or result.num_rows != part.num_rows:
                got = f"{result.num_rows} rows" if isinstance(result, pa.Table) else repr(type(result).__name__)
                raise SourceError(
                    f"{bound.name} is batched: for {part.num_rows} rows it must return a table of as many, got {got}"
                )
            parts.append(result)
            good.append(np.arange(start, stop))
        except SourceError:
            raise
        except Exception as error:
            if stop - start == 1:
                wrong[int(positions[start])] = error if isinstance(error, MixtureError) else _wrapped(bound, error)
                continue
            middle = (start + stop) // 2
            pending += [(middle, stop), (start, middle)]
    if not parts:
        return {}, np.array([], dtype=np.int64)
    joined = pa.concat_tables(parts)
    unknown = [
        c for c in joined.column_names if c not in {*bound.fills, "conversations", "id", "data_source", *IMAGE_COLUMNS}
    ]
    if unknown:
        raise SourceError(f"{bound.name} fills {unknown[0]!r}, which it does not declare in `fills`")
    columns = {}
    for column in joined.column_names:
        columns[column] = one_array(joined.column(column))
    return columns, np.concatenate(good)
