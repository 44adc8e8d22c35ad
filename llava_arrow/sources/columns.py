"""Which columns of a file are read, which filters apply to it, and which columns its samples have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from llava_arrow.column_types import IMAGE_COLUMNS, IMAGE_TYPE, Layout, is_list_type, parse_column_type
from llava_arrow.entry import ANY_COLUMN, Entry
from llava_arrow.errors import ConfigError, MixtureError, SourceError
from llava_arrow.plan_cache import PlanCache
from llava_arrow.select import RowFilter
from llava_arrow.shards import DataFile
from llava_arrow.sources import RECORD, ROW
from llava_arrow.sources.formats import columns_of, reader_of
from llava_arrow.sources.records import DECODE_ERRORS

JSON_TEXT = "json"
"""What the scan calls values that only text can hold."""

__all__ = ["ReadSpec", "check_record_keys", "layout_of", "read_spec"]

PLAIN_COLUMNS = ("id", "data_source", "image", "conversations", "video")
"""What a row without preprocess function may hold and is not reported as undeclared."""


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """`columns` to read (None: whole JSON records), the filters, the id column if there is one, and columns left
    unread.
    """

    columns: tuple[str, ...] | None
    filters: tuple[RowFilter, ...]
    id_column: str | None
    undeclared: tuple[str, ...] = ()


def read_spec(entry: Entry, file: DataFile) -> ReadSpec:
    """What to read of `file`; a SourceError or ConfigError where it lacks a column that the entry needs."""
    available = columns_of(file)
    if available is None:
        filters = entry.filters(entry.columns or ANY_COLUMN, is_parquet=False)
        return ReadSpec(columns=None, filters=filters, id_column=entry.id_column or "id")
    place = f"{file.path} ({entry.label})"
    for reserved in (ROW, RECORD):
        if reserved in available:
            raise SourceError(f"{place}: a column must not be called {reserved!r}: rename it")
    offered = entry.columns if entry.columns is not None else tuple(available)
    _need(offered, available, place, "`columns:` names")
    try:
        filters = entry.filters(offered, is_parquet=file.format == "parquet")
    except ConfigError as error:
        raise error.at(place) from None
    compared = [column for row_filter in filters for column in row_filter.columns]
    if entry.id_column is not None:
        _need([entry.id_column], offered, place, "id_column names")
    id_column = entry.id_column or ("id" if "id" in offered else None)
    also = [c for c in (id_column, "data_source", "video") if c is not None and c in offered]
    undeclared: tuple[str, ...] = ()
    if entry.preprocess is None:
        if "conversations" not in offered:
            raise SourceError(
                f"{place}: rows without preprocess_fn must have a column 'conversations'; there are "
                f"{', '.join(offered)}"
            )
        declared = [column for column, kind in entry.features.items() if kind != "none"]
        _need([*declared, *entry.keep_columns], offered, place, "the entry declares")
        known = [*PLAIN_COLUMNS, *entry.features, *entry.keep_columns]
        wanted = [column for column in known if column in offered]
        undeclared = tuple(c for c in offered if c not in known and c not in compared and c != id_column)
    elif entry.preprocess.reads is None:
        wanted = list(offered)
    else:
        needed = [column for column in entry.preprocess.reads if not column.endswith("?")]
        _need(needed, offered, place, f"{entry.preprocess.name} needs")
        wanted = [c for c in (column.rstrip("?") for column in entry.preprocess.reads) if c in offered]
    return ReadSpec(
        columns=tuple(dict.fromkeys([*wanted, *also, *compared])) or offered[:1],
        filters=filters,
        id_column=id_column,
        undeclared=undeclared,
    )


def _need(names: Sequence[str], there: Sequence[str] | Mapping[str, Any], place: str, who: str) -> None:
    missing = [name for name in names if name not in there]
    if missing:
        raise SourceError(
            f"{place}: {who} the column {missing[0]!r}, but there are only {', '.join(there)}", code="missing_column"
        )


def layout_of(entry: Entry, files: Sequence[DataFile], cache: PlanCache) -> Layout:
    """The columns of the entry's samples: what the preprocess function, the entry or the file's schema says."""
    if entry.preprocess is not None:
        return Layout.of(entry.preprocess.fills)
    declared = dict(entry.features)
    by_file = [columns_of(file) for file in files]
    known = {c: kind for columns in by_file if columns is not None for c, kind in columns.items()}
    if None in by_file:
        undecided = [c for c in entry.keep_columns if c not in declared]
        needs_scan = bool(undecided) or (entry.multi_image is None and "image" not in declared)
        found = _scan(entry, files, ("image", *undecided), cache) if needs_scan else {}
    else:
        found = {column: _spell(known[column], column, entry) for column in entry.keep_columns if column in known}
        found["image"] = _one_or_many(by_file)
    if "image" not in declared:
        many = entry.multi_image if entry.multi_image is not None else found.get("image") == "many"
        declared["image"] = "many" if many else "one"
    for column in entry.keep_columns:
        declared.setdefault(column, found.get(column, "string"))
    if declared["image"] == "none":
        del declared["image"]
    return Layout.of(declared)


def check_record_keys(entry: Entry, files: Sequence[DataFile], cache: PlanCache) -> None:
    """JSON: what the entry names must be a key of some record. Usually the first records have them all. Remembered."""
    named = [(f"`columns:` names {column!r}", column) for column in entry.columns or ()]
    named += [(f"id_column names {entry.id_column!r}", entry.id_column)] if entry.id_column is not None else []
    named += [(f"keep_columns names {column!r}", column) for column in entry.keep_columns]
    if not named or all(columns_of(file) is not None for file in files):
        return
    wanted = {column for _, column in named}
    found = cache.remember(("keys", tuple(files), tuple(sorted(wanted))), lambda: _keys_of(entry, files, wanted))
    missing = [who for who, column in named if column not in found]
    if missing:
        place = f"{', '.join(file.path for file in files)} ({entry.label})"
        raise SourceError(
            f"{place}: {missing[0]}, but the records have only {', '.join(found)}", code="missing_column"
        )


def _keys_of(entry: Entry, files: Sequence[DataFile], wanted: set[str]) -> list[str]:
    """The keys of the records, in order of appearance, until all that are wanted have been seen."""
    keys: dict[str, None] = {}
    decoder: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
    for file in files:
        known = columns_of(file)
        keys.update(dict.fromkeys(known or ()))
        for table in _all_tables(entry, file) if known is None else ():
            for text in table.column(RECORD).to_pylist():
                try:
                    keys.update(dict.fromkeys(decoder.decode(text)))
                except DECODE_ERRORS:
                    continue
            if wanted <= keys.keys():
                return list(keys)
    return list(keys)


def _all_tables(entry: Entry, file: DataFile) -> Iterator[pa.Table]:
    def on_bad_row(row: int, error: MixtureError) -> None:
        """A record that does not parse is reported when its turn comes."""

    try:
        for part in reader_of(file).cut(file, 1):
            yield from reader_of(file).read(file, part, columns=None, filters=(), on_bad_row=on_bad_row)
    except SourceError as error:
        raise error.at(entry.label) from error.__cause__


def _one_or_many(by_file: Sequence[dict[str, pa.DataType] | None]) -> str:
    kinds = [columns["image"] for columns in by_file if columns is not None and "image" in columns]
    return "many" if any(is_list_type(kind) for kind in kinds) else "one"


def _spell(kind: pa.DataType, column: str, entry: Entry) -> str:
    if pa.types.is_dictionary(kind):
        return _spell(kind.value_type, column, entry)
    if is_list_type(kind):
        return f"list<{_spell(kind.value_type, column, entry)}>"
    if kind == IMAGE_TYPE:
        raise ConfigError(
            f"{entry.label}: keep_columns: {column!r} holds images: declare it as `features: {{{column}: one}}`"
        )
    names = {pa.large_string(): "string", pa.float64(): "float64", pa.float32(): "float32", pa.null(): "string"}
    spelling = names.get(kind, str(kind))
    try:
        parse_column_type(spelling)
    except ConfigError:
        raise ConfigError(
            f"{entry.label}: keep_columns: {column!r} is {kind}, which no sample column can be"
        ) from None
    return spelling


def _scan(entry: Entry, files: Sequence[DataFile], columns: tuple[str, ...], cache: PlanCache) -> dict[str, str]:
    """One look at all records: which of `columns` hold lists, and of which types. Remembered."""
    found: dict[str, str] = {}
    for file in files:
        seen = cache.remember(("scan", file, columns), lambda file=file: _scan_file(entry, file, columns))  # type: ignore[misc]
        for column, spelling in seen.items():
            found[column] = _merge(found.get(column), spelling)
    return found


def _scan_file(entry: Entry, file: DataFile, columns: tuple[str, ...]) -> dict[str, str]:
    decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
    kinds: dict[str, Counter[str]] = {column: Counter() for column in columns}
    for table in _all_tables(entry, file):
        for text in table.column(RECORD).to_pylist():
            try:
                record = decoder.decode(text)
            except DECODE_ERRORS:
                continue
            for column in columns:
                value = record.get(column)
                if value is not None:
                    is_many = column in IMAGE_COLUMNS and isinstance(value, list)
                    kinds[column]["many" if is_many else _spell_value(value)] += 1
    result = {}
    for column, spellings in kinds.items():
        merged: str | None = None
        for spelling in sorted(spellings):
            merged = _merge(merged, spelling)
        if merged is not None:
            result[column] = "string" if merged == JSON_TEXT else merged
    return result


def _spell_value(value: Any) -> str:
    if isinstance(value, list):
        inner: str | None = None
        for item in value:
            inner = _merge(inner, _spell_value(item))
        return JSON_TEXT if inner == JSON_TEXT else f"list<{inner or 'string'}>"
    return {bool: "bool", int: "int64", float: "float64", str: "string"}.get(type(value), JSON_TEXT)


def _merge(known: str | None, other: str) -> str:
    """The narrower of the types that hold both; text holds everything, as JSON."""
    if known is None or known == other:
        return other
    if {known, other} == {"int64", "float64"}:
        return "float64"
    return "many" if "many" in (known, other) else JSON_TEXT
