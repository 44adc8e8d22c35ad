"""CSV and TSV: text stays text (`007`, `1e5`, `NA`); only the columns that filters compare are numbers.

The file is read in pieces that end where a record ends, so that Arrow's parser sees whole records only, and a shard is
a range of bytes between records. As in Arrow and Python, a quote opens a field only where the field begins: `5" nail`
holds a bare one. Quoted fields may hold newlines. An empty cell is null where null means something (ids, images,
scores, compared numbers), and empty text elsewhere.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from llava_arrow.column_types import IMAGE_COLUMNS
from llava_arrow.errors import SourceError
from llava_arrow.select import MaxEncImages, RowFilter
from llava_arrow.shards import DataFile, Range
from llava_arrow.sources import ROW, SHARD_BYTES
from llava_arrow.sources.files import open_binary, read_chunk
from llava_arrow.sources.records import OnBadRow

__all__ = ["columns", "cut", "num_default_shards", "read"]

PIECE_BYTES = 4 << 20
NULL_WHEN_EMPTY = ("id", "data_source", "video", *IMAGE_COLUMNS, "fltLaionAesthScore", "hpsv2")
_NEWLINE, _RETURN = b"\n"[0], b"\r"[0]
_QUOTED = {
    # After a delimiter, a line end or nothing: a quote, text with doubled quotes, and the closing quote if it is
    # there.
    "csv": re.compile(rb'(?<![^,\r\n])"[^"]*(?:""[^"]*)*("?)'),
    "tsv": re.compile(rb'(?<![^\t\r\n])"[^"]*(?:""[^"]*)*("?)'),
}


def columns(file: DataFile) -> dict[str, pa.DataType]:
    """The names of the first line; all are text."""
    return dict.fromkeys(_header(file)[0], pa.string())


def _delimiter(file: DataFile) -> str:
    return "\t" if file.format == "tsv" else ","


def _header(file: DataFile) -> tuple[list[str], int]:
    """Column names, and the byte after the first line."""
    with open_binary(file) as stream:
        first = next(_pieces(stream, file, None, piece_bytes=1 << 16), (b"", np.array([0])))
    stop = int(first[1][0])
    try:
        text = first[0][:stop].decode("utf-8-sig").rstrip("\r\n")
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(file)), [])
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
    """`num_shards` ranges of about as many bytes. Lines are numbered, not counted as rows: some may be broken."""
    start = _header(file)[1]
    if num_shards == 1 or file.compression:
        return [Range(start, file.size, 0)]
    borders, row, offset = [(start, 0)], 0, start
    with open_binary(file, start) as stream:
        for piece, ends in _pieces(stream, file, None):
            rows = row + np.cumsum(~_is_blank(piece, ends))
            while len(borders) < num_shards:
                wanted = start + (file.size - start) * len(borders) // num_shards
                k = int(np.searchsorted(ends + offset, max(wanted, borders[-1][0] + 1)))
                if k == len(ends):
                    break
                borders.append((int(ends[k]) + offset, int(rows[k])))
            row, offset = int(rows[-1]), offset + len(piece)
    borders.append((file.size, row))
    return [Range(a, b, first) for (a, first), (b, _) in zip(borders, borders[1:], strict=False) if b > a]


def _pieces(
    stream: BinaryIO, file: DataFile, num_bytes: int | None, *, piece_bytes: int | None = None
) -> Iterator[tuple[bytes, npt.NDArray[np.int64]]]:
    """Stretches of whole records from `stream`, which stands at one, with the byte after each record."""
    buffer, size = b"", piece_bytes or PIECE_BYTES
    while True:
        wanted = size if num_bytes is None else min(size, num_bytes)
        chunk = read_chunk(stream, wanted, file) if wanted else b""
        num_bytes = None if num_bytes is None else num_bytes - len(chunk)
        buffer += chunk
        ends, is_open = _record_ends(buffer, _QUOTED[file.format], is_last=not chunk)
        if not chunk:
            if is_open:
                raise SourceError(
                    f"{file.path}: the last quoted field is never closed: "
                    "the file is truncated, or a quote is missing",
                    code="truncated",
                )
            if buffer:
                yield buffer, ends if len(ends) and ends[-1] == len(buffer) else np.append(ends, len(buffer))
            return
        if len(ends):
            end = int(ends[-1])
            yield buffer[:end], ends
            buffer = buffer[end:]


def _record_ends(buffer: bytes, quoted: re.Pattern[bytes], *, is_last: bool) -> tuple[npt.NDArray[np.int64], bool]:
    """The byte after each record (after its line end), and whether the last quoted field is still open."""
    data = np.frombuffer(buffer, np.uint8)
    is_end = data == _NEWLINE
    returns = np.flatnonzero(data == _RETURN)
    if len(returns):  # alone, a carriage return ends a line, too
        followed = np.append(data, 0)[returns + 1]
        alone = returns[(followed != _NEWLINE) & (is_last | (returns + 1 < len(data)))]
        is_end[alone] = True
    is_open = False
    if b'"' in buffer:
        for match in quoted.finditer(buffer):
            is_end[match.start() : match.end()] = False
            is_open = not match[1]
    return np.flatnonzero(is_end) + 1, is_open


def _is_blank(piece: bytes, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which records are empty lines, which are no rows."""
    data = np.frombuffer(piece, np.uint8)
    starts = np.concatenate([[0], ends[:-1]])
    is_line_end = (data == _NEWLINE) | (data == _RETURN)
    text_bytes = np.concatenate([[0], np.cumsum(~is_line_end)])
    return np.asarray(text_bytes[ends] == text_bytes[starts])


def read(
    file: DataFile,
    part: Range,
    *,
    columns: Sequence[str] | None,
    filters: Sequence[RowFilter],
    on_bad_row: OnBadRow,
) -> Iterator[pa.Table]:
    """The rows of `part`: strings, and float64 in the columns that filters compare."""
    names, body = _header(file)
    compared = list(dict.fromkeys(column for row_filter in filters for column in row_filter.columns))
    if any(isinstance(row_filter, MaxEncImages) for row_filter in filters):
        raise SourceError(f"{file.path}: max_enc_images counts list items, but a CSV column holds text")
    wanted = list(dict.fromkeys([*(columns if columns is not None else names), *compared]))
    row = part.first_row
    with open_binary(file, part.start) as stream:
        if file.compression:
            read_chunk(stream, body, file)
        for piece, ends in _pieces(stream, file, None if file.compression else part.stop - part.start):
            num_rows = int(np.count_nonzero(~_is_blank(piece, ends)))
            if num_rows:
                table, broken = _parse(file, piece, names, wanted)
                for number, error in broken:
                    on_bad_row(row + number, error)
                passed_over = [number for number, _ in broken]
                rows = row + np.setdiff1d(np.arange(num_rows), passed_over)
                yield _with_numbers(table.append_column(ROW, pa.array(rows)), compared, on_bad_row)
            row += num_rows


def _parse(
    file: DataFile, piece: bytes, names: list[str], wanted: list[str]
) -> tuple[pa.Table, list[tuple[int, SourceError]]]:
    """The rows of a piece as text, and the lines of another width, by their position in it."""
    broken: list[tuple[int, SourceError]] = []

    def on_wrong_width(row: pacsv.InvalidRow) -> str:
        widths = f"{row.actual_columns} fields, but the header names {row.expected_columns}"
        broken.append((row.number - 1, SourceError(f"the line has {widths}: {row.text[:60]}", code="wrong_width")))
        return "skip"  # no exception passes through Arrow's parser

    try:
        table = pacsv.read_csv(
            pa.BufferReader(piece),
            read_options=pacsv.ReadOptions(column_names=names, block_size=len(piece) + 1, use_threads=False),
            parse_options=pacsv.ParseOptions(
                delimiter=_delimiter(file), newlines_in_values=True, invalid_row_handler=on_wrong_width
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=wanted, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise SourceError(f"{file.path}: the file cannot be read as {file.format.upper()}: {error}") from error
    for column in NULL_WHEN_EMPTY:
        if column in wanted:
            table = table.set_column(table.column_names.index(column), column, _empty_as_null(table.column(column)))
    return table, broken


def _empty_as_null(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), texts)


def _with_numbers(table: pa.Table, compared: Sequence[str], on_bad_row: OnBadRow) -> pa.Table:
    for column in compared:
        texts = pc.utf8_trim_whitespace(_empty_as_null(table.column(column)))
        try:
            numbers = texts.cast(pa.float64())
        except pa.ArrowInvalid:  # one of them is no number: find it
            keep = []
            for row, text in zip(table.column(ROW).to_pylist(), texts, strict=True):
                try:
                    text.cast(pa.float64())
                    keep.append(True)
                except pa.ArrowInvalid:
                    message = f"{column!r} is compared with a number, but it is {text.as_py()!r}"
                    on_bad_row(row, SourceError(message, code=f"type_{column}"))
                    keep.append(False)
            table = table.filter(pa.array(keep))
            numbers = texts.filter(pa.array(keep)).cast(pa.float64())
        table = table.set_column(table.column_names.index(column), column, numbers)
    return table
