"""CSV and TSV: text stays text (`007`, `1e5`, `NA`); only the columns that filters compare are numbers, and empty
there is null.

A shard is a range of bytes between records. Quoted fields may hold newlines, so a border is a newline outside of
quotes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from llava_arrow.errors import SourceError
from llava_arrow.select import MaxEncImages, RowFilter
from llava_arrow.shards import DataFile, Range
from llava_arrow.sources import ROW, SHARD_BYTES
from llava_arrow.sources.files import open_binary, read_chunk
from llava_arrow.sources.records import OnBadRow

__all__ = ["columns", "cut", "num_default_shards", "read"]

PIECE_BYTES = 4 << 20
BLOCK_BYTES = 16 << 20
"""Arrow parses a block at a time; no record may be larger."""
_QUOTE, _NEWLINE, _RETURN = b'"'[0], b"\n"[0], b"\r"[0]


def columns(file: DataFile) -> dict[str, pa.DataType]:
    """The names of the first line; all are text."""
    return dict.fromkeys(_header(file)[0], pa.string())


def _delimiter(file: DataFile) -> str:
    return "\t" if file.format == "tsv" else ","


def _header(file: DataFile) -> tuple[list[str], int]:
    """Column names, and the byte after the first line."""
    head = b""
    with open_binary(file) as stream:
        while True:
            chunk = read_chunk(stream, 1 << 16, file)
            head += chunk
            ends = _record_ends(np.frombuffer(head, np.uint8), in_quotes=False)[0]
            if len(ends) or not chunk:
                break
    stop = int(ends[0]) + 1 if len(ends) else len(head)
    try:
        text = head[:stop].decode("utf-8-sig")
        names = next(csv.reader(io.StringIO(text), delimiter=_delimiter(file)), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file.path}: the header line cannot be read: {error}") from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not any(names):
        what = f"names {repeated[0]!r} twice" if repeated else "names no column"
        raise SourceError(f"{file.path}: the header line {what}")
    return names, stop


def num_default_shards(file: DataFile) -> int:
    """How many shards suit the file's size."""
    return 1 if file.compression else max(1, file.size // SHARD_BYTES)


def cut(file: DataFile, num_shards: int) -> list[Range]:
    """`num_shards` ranges of about as many bytes; rows are counted where there is more than one."""
    start = _header(file)[1]
    if num_shards == 1 or file.compression:
        return [Range(start, file.size, 0)]
    borders, row, offset, in_quotes = [(start, 0)], 0, start, False
    previous = _NEWLINE  # a newline right after one ends a blank line, which is no row
    with open_binary(file, start) as stream:
        while chunk := read_chunk(stream, PIECE_BYTES, file):
            data = np.frombuffer(chunk, np.uint8)
            ends, in_quotes = _record_ends(data, in_quotes=in_quotes)
            before = np.where(ends > 0, data[ends - 1], previous)
            two_before = np.where(ends > 1, data[ends - 2], previous)
            is_row = ~((before == _NEWLINE) | ((before == _RETURN) & (two_before == _NEWLINE)))
            rows = row + np.cumsum(is_row)
            while len(ends) and len(borders) < num_shards:
                wanted = start + (file.size - start) * len(borders) // num_shards
                k = int(np.searchsorted(ends + offset + 1, max(wanted, borders[-1][0] + 1)))
                if k == len(ends):
                    break
                borders.append((int(ends[k]) + offset + 1, int(rows[k])))
            row = int(rows[-1]) if len(ends) else row
            offset, previous = offset + len(chunk), int(data[-1])
    if previous != _NEWLINE:
        row += 1  # the last line needs no newline
    borders.append((file.size, row))
    return [
        Range(a, b, first, last - first) for (a, first), (b, last) in zip(borders, borders[1:], strict=False) if b > a
    ]


def _record_ends(data: npt.NDArray[np.uint8], *, in_quotes: bool) -> tuple[npt.NDArray[np.int64], bool]:
    """Positions of the newlines that end records, and whether the data ends inside quotes."""
    quotes = data == _QUOTE
    newlines = np.flatnonzero(data == _NEWLINE)
    if not quotes.any():
        return (newlines[:0] if in_quotes else newlines), in_quotes
    is_inside = (np.cumsum(quotes) + in_quotes) % 2 == 1
    return newlines[~is_inside[newlines]], bool(is_inside[-1])


class _Part(io.RawIOBase):
    """The bytes of a range of an open file, for readers that read to the end."""

    def __init__(self, stream: io.RawIOBase, num_bytes: int | None) -> None:
        self._stream, self._left = stream, num_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._left is not None:
            size = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(size) or b""
        self._left = None if self._left is None else self._left - len(data)
        return data


def read(
    file: DataFile, part: Range, *, columns: Sequence[str] | None, filters: Sequence[RowFilter], on_bad_row: OnBadRow
) -> Iterator[pa.Table]:
    """The rows of `part`: strings, and float64 in the columns that filters compare."""
    names, body = _header(file)
    wanted = list(columns) if columns is not None else names
    compared = [column for row_filter in filters for column in row_filter.columns]
    for row_filter in filters:
        if isinstance(row_filter, MaxEncImages):
            raise SourceError(f"{file.path}: max_enc_images counts list items, but a CSV column holds text")
    broken: list[tuple[int, SourceError]] = []
    num_reported = 0

    def on_wrong_width(row: pacsv.InvalidRow) -> str:
        # Called from Arrow's parser, through which no exception passes: the rows are reported before the next table.
        where = f"has {row.actual_columns} fields, but the header names {row.expected_columns}: {row.text[:60]}"
        number = part.first_row + (row.number - 1 if row.number else 0)
        broken.append((number, SourceError(f"the line {where}", code="wrong_width")))
        return "skip"

    with open_binary(file, body if file.compression is None and part.start == body else part.start) as stream:
        if file.compression:
            stream.read(body)
        source = _Part(stream, None if file.compression else part.stop - part.start)  # type: ignore[arg-type]
        try:
            reader = pacsv.open_csv(
                pa.PythonFile(source, mode="r"),
                read_options=pacsv.ReadOptions(column_names=names, block_size=BLOCK_BYTES, use_threads=False),
                parse_options=pacsv.ParseOptions(
                    delimiter=_delimiter(file), newlines_in_values=True, invalid_row_handler=on_wrong_width
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    include_columns=list(dict.fromkeys([*wanted, *compared])),
                    strings_can_be_null=False,
                ),
            )
            row = part.first_row
            for batch in reader:
                for number, error in broken[num_reported:]:
                    on_bad_row(number, error)
                num_reported = len(broken)
                rows, row = _row_numbers(batch.num_rows, row, [number for number, _ in broken])
                table = pa.Table.from_batches([batch]).append_column(ROW, pa.array(rows))
                for column in dict.fromkeys(compared):
                    table = _to_numbers(table, column, on_bad_row)
                yield table
        except pa.ArrowInvalid as error:
            if "Empty CSV file" not in str(error):
                raise SourceError(f"{file.path}: the file cannot be read as {file.format.upper()}: {error}") from error
        for number, wrong in broken[num_reported:]:
            on_bad_row(number, wrong)


def _row_numbers(num_rows: int, row: int, broken: list[int]) -> tuple[npt.NDArray[np.int64], int]:
    """Numbers of the next `num_rows` rows, passing over broken ones, and the number after them."""
    passed_over = [number for number in broken if number >= row]
    candidates = np.arange(row, row + num_rows + len(passed_over))
    rows = np.setdiff1d(candidates, passed_over)[:num_rows]
    return rows, int(rows[-1]) + 1 if num_rows else row


def _to_numbers(table: pa.Table, column: str, on_bad_row: OnBadRow) -> pa.Table:
    text = pc.utf8_trim_whitespace(table.column(column))
    filled = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    try:
        numbers = filled.cast(pa.float64())
    except pa.ArrowInvalid:
        keep = []
        for row, value in zip(table.column(ROW).to_pylist(), filled.to_pylist(), strict=True):
            try:
                float(value or 0)
                keep.append(True)
            except ValueError:
                message = f"{column!r} is compared with a number, but it is {value!r}"
                on_bad_row(row, SourceError(message, code=f"type_{column}"))
                keep.append(False)
        table = table.filter(pa.array(keep))
        numbers = filled.filter(pa.array(keep)).cast(pa.float64())
    return table.set_column(table.column_names.index(column), column, numbers)
