"""JSON records as a table: their text in the column `RECORD`, the numbers that filters compare beside it, and the row
numbers.

msgspec reads only the compared keys of each record; the record itself is parsed when it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from llava_arrow.errors import MixtureError, SourceError
from llava_arrow.select import MaxEncImages, RowFilter, Where
from llava_arrow.sources import RECORD, ROW

__all__ = ["DECODE_ERRORS", "OnBadRow", "record_table"]

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a text that is no JSON record raises; nesting without end is among it."""

OnBadRow = Callable[[int, MixtureError], None]
"""Called with the row's number: raises, or writes the row into the ledger."""


def record_table(
    records: Sequence[Any], first_row: int, filters: Sequence[RowFilter], on_bad_row: OnBadRow
) -> pa.Table:
    """A table of `records` (bytes-like, one JSON value each); rows whose compared values cannot be read go to
    `on_bad_row`.
    """
    rows = np.arange(first_row, first_row + len(records))
    columns: dict[str, pa.Array] = {}
    if filters:
        decoder, names = _decoder(tuple(dict.fromkeys(c for f in filters for c in f.columns)))
        lengths = {f.column for f in filters if isinstance(f, MaxEncImages)}
        texts = {f.column for f in filters if isinstance(f, Where)}
        values: list[tuple[Any, ...]] = []
        good = []
        for i, record in enumerate(records):
            try:
                found = decoder.decode(record)
                values.append(
                    tuple(_comparable(name, getattr(found, f"f{k}"), lengths, texts) for k, name in enumerate(names))
                )
                good.append(i)
            except (*DECODE_ERRORS, MixtureError) as error:
                on_bad_row(int(rows[i]), error if isinstance(error, MixtureError) else not_a_record(record, error))
        records, rows = [records[i] for i in good], rows[good]
        for k, name in enumerate(names):
            column = [value[k] for value in values]
            if name in texts:
                columns[name] = pa.array(column, pa.string())
                continue
            is_float = any(isinstance(v, float) or (v is not None and abs(v) >= 1 << 63) for v in column)
            columns[name] = (
                pa.array([None if v is None else float(v) for v in column], pa.float64())
                if is_float
                else pa.array(column, pa.int64())
            )
    return pa.table({**columns, RECORD: pa.array([bytes(record) for record in records], pa.binary()), ROW: rows})


def not_a_record(record: Any, error: Exception) -> SourceError:
    """The error for a record that does not parse as an object."""
    text = bytes(record).strip()[:60].decode("utf-8", "replace")
    if not text.startswith("{"):
        return SourceError(f"a record must be an object {{…}}, got {text}", code="no_object")
    return SourceError(f"a record is no valid JSON ({error}): {text}…", code="invalid_json")


@lru_cache(maxsize=64)
def _decoder(names: tuple[str, ...]) -> tuple[msgspec.json.Decoder[Any], tuple[str, ...]]:
    fields = [(f"f{k}", Any, None) for k in range(len(names))]
    struct = msgspec.defstruct("Compared", fields, rename={f"f{k}": name for k, name in enumerate(names)})
    return msgspec.json.Decoder(struct), names


def _comparable(name: str, value: Any, lengths: set[str], texts: set[str]) -> Any:
    if name in texts:
        return value if isinstance(value, str) else None  # another type is not the text that is asked for
    if name in lengths:
        if value is None:
            return None
        return len(value) if isinstance(value, list) else 1
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise SourceError(f"{name!r} is compared with a number, but it is {value!r}", code=f"type_{name}")
