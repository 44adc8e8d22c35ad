"""Samples → a table with the config's columns, checked; what is wrong with a sample is known by its position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from llava_arrow.column_types import IMAGE_COLUMNS, Layout, arrow_type, one_array
from llava_arrow.conversation_checks import check_conversations, turns_to_arrow
from llava_arrow.entry import Entry
from llava_arrow.errors import MixtureError, SchemaError
from llava_arrow.image_columns import image_counts, images_from_arrow, images_to_arrow, widen_images
from llava_arrow.paths import ImageResolver

__all__ = ["SampleTable", "assemble", "widen"]

Column: TypeAlias = Sequence[Any] | pa.Array


@dataclass
class SampleTable:
    """A table of samples with the layout's columns, the samples that are wrong (by position), and counts of what was
    mended.
    """

    table: pa.Table
    wrong: dict[int, MixtureError] = field(default_factory=dict)
    num_repaired: int = 0
    num_trimmed: int = 0


def assemble(
    columns: Mapping[str, Column],
    *,
    layout: Layout,
    entry: Entry,
    resolve: ImageResolver,
    uncounted: Sequence[str] = (),
) -> SampleTable:
    """Put the columns of a batch of samples together.

    Args:
        columns: column → a list of Python values or an Arrow array; `id` and `data_source` included.
        layout: the columns to end up with; what `columns` lacks is null.
        uncounted: image columns whose placeholders are not counted.
    """
    num_samples = len(columns["conversations"])
    wrong: dict[int, MixtureError] = {}
    arrays: dict[str, pa.Array] = {}
    counts = {}
    for column, kind in layout.image_columns.items():
        values = columns.get(column, [None] * num_samples)
        build = images_from_arrow if isinstance(values, pa.Array) else images_to_arrow
        arrays[column], errors = build(values, kind, column, resolve)
        wrong.update(errors)
        counts[column] = image_counts(arrays[column], kind)
    for column in IMAGE_COLUMNS:
        counts.setdefault(column, pa.repeat(0, num_samples).to_numpy())
    for column in uncounted:
        del counts[column]
    conversations = columns["conversations"]
    if isinstance(conversations, pa.Array):
        conversations, errors_by_row = _turns_from_arrow(conversations)
    else:
        conversations, errors_by_row = turns_to_arrow(conversations)
    wrong = {**errors_by_row, **wrong}
    checked = check_conversations(conversations, counts, turns=entry.turns, placeholders=entry.placeholders)
    for position, error in checked.wrong.items():
        wrong.setdefault(position, error)
    arrays["conversations"] = checked.conversations
    for column, kind in layout.kinds.items():
        if column not in arrays:
            arrays[column], other_errors = _typed(columns.get(column), kind, column, num_samples)
            wrong.update(other_errors)
    table = pa.table([arrays[column] for column in layout.kinds], schema=layout.arrow_schema)
    for position in not_unicode(table):
        wrong.setdefault(position, SchemaError("the text is no valid UTF-8", code="unicode"))
    return SampleTable(table, wrong, checked.num_repaired, checked.num_trimmed)


def not_unicode(table: pa.Table) -> list[int]:
    """Samples with text that is no UTF-8, which Parquet and Arrow files may hold."""
    pending, found = [(0, table.num_rows)], []
    while pending:
        start, stop = pending.pop()
        try:
            part = table if stop - start == table.num_rows else table.take(pa.array(range(start, stop), pa.int64()))
            part.validate(full=True)
        except pa.ArrowInvalid:
            if stop - start == 1:
                found.append(start)
                continue
            middle = (start + stop) // 2
            pending += [(start, middle), (middle, stop)]
    return found


def _turns_from_arrow(array: pa.Array) -> tuple[pa.ListArray, Mapping[int, SchemaError]]:
    """Conversations of a data file: list<struct> with from/value or role/content; anything else goes the way of Python
    objects.
    """
    if isinstance(array, pa.ListArray) and pa.types.is_struct(array.type.value_type) and not array.null_count:
        names = {array.type.value_type.field(i).name for i in range(array.type.value_type.num_fields)}
        pair = (
            ("from", "value")
            if {"from", "value"} <= names
            else ("role", "content")
            if {"role", "content"} <= names
            else None
        )
        if pair is not None and array.offset == 0 and not array.values.null_count:
            roles, values = (array.values.field(name).cast(pa.string()) for name in pair)
            turns = pa.StructArray.from_arrays([roles, values], ["from", "value"])
            return pa.ListArray.from_arrays(array.offsets, turns), {}
    return turns_to_arrow(array.to_pylist())


def _typed(
    values: Column | None, kind: str, column: str, num_samples: int
) -> tuple[pa.Array, dict[int, MixtureError]]:
    wanted = arrow_type(kind)
    if values is None:
        return pa.nulls(num_samples, wanted), {}
    try:
        return (values.cast(wanted) if isinstance(values, pa.Array) else pa.array(values, wanted)), {}
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass  # one of them does not fit: find it
    wrong: dict[int, MixtureError] = {}
    fitting = []
    for i, value in enumerate(values.to_pylist() if isinstance(values, pa.Array) else values):
        if "float" in kind:
            value = _with_numbers(value)
        try:
            pa.array([value], wanted)
            fitting.append(value)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            fitting.append(None)
            wrong[i] = SchemaError(f"column {column!r} must be {kind}, got {value!r:.80}", code=f"type_{column}")
    return pa.array(fitting, wanted), wrong


_NOT_IN_JSON = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _with_numbers(value: Any) -> Any:
    """The floats that JSON has no numbers for are written as these texts, as Protocol Buffers do."""
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return _NOT_IN_JSON.get(value, value) if isinstance(value, str) else value


def widen(table: pa.Table, layout: Layout) -> pa.Table:
    """The same samples in a layout that holds theirs: single images become lists, missing columns null (missing lists
    of images empty).
    """
    if table.schema.equals(layout.arrow_schema):
        return table
    arrays = []
    for column, kind in layout.kinds.items():
        if column not in table.column_names:
            empty = pa.scalar([], arrow_type(kind)) if kind == "many" else pa.scalar(None, arrow_type(kind))
            arrays.append(pa.repeat(empty, table.num_rows))
            continue
        array = one_array(table.column(column))
        arrays.append(widen_images(array) if kind == "many" and pa.types.is_struct(array.type) else array)
    return pa.table(arrays, schema=layout.arrow_schema)
