"""A JSON array of records, split without parsing everything and without holding the file.

The file is read in pieces. Of each piece the last place that looks like a border between records is taken (`},` and
then the key that the first record begins with), and msgspec splits what comes before it. A wrong guess cannot pass:
from a record's first byte on, the text up to p parses as a list of values exactly when p is a border. Where the guess
fails, or a record is broken, an exact scan of brackets decides; a broken record is then one bad row, not a bad file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import msgspec
import pyarrow as pa

from llava_arrow.errors import SourceError
from llava_arrow.select import RowFilter
from llava_arrow.shards import DataFile, Range
from llava_arrow.sources import MAX_BATCH_RECORDS, SHARD_BYTES
from llava_arrow.sources.files import open_binary, read_chunk
from llava_arrow.sources.records import DECODE_ERRORS, OnBadRow, record_table

__all__ = ["cut", "num_default_shards", "read"]

PIECE_BYTES = 4 << 20
_SPACE = b" \t\r\n"
_FIRST_KEY = re.compile(rb'\{\s*("(?:[^"\\]|\\.)*")')
# A string, perhaps without its end, or a bracket. Unrolled, so that each byte is looked at once.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_splitter = msgspec.json.Decoder(list[msgspec.Raw])

Records = Sequence[msgspec.Raw | bytes]


def num_default_shards(file: DataFile) -> int:
    """How many shards suit the file's size."""
    return 1 if file.compression else max(1, file.size // SHARD_BYTES)


def cut(file: DataFile, num_shards: int) -> list[Range]:
    """`num_shards` ranges of about as many bytes, each starting at a record; one range needs no look at the file."""
    if num_shards == 1 or file.compression:
        return [Range(0, file.size, 0)]
    starts: list[tuple[int, int]] = []  # (byte, row) of each piece
    row = end = 0
    for offset, text, records in _pieces(file, Range(0, file.size, 0), small_piece(file, num_shards)):
        starts.append((offset, row))
        row += len(records)
        end = offset + len(text)
    if not starts:
        return [Range(0, file.size, 0, 0)]
    chosen = [0]
    for i in range(1, num_shards):
        wanted = end * i // num_shards
        k = next((k for k, (offset, _) in enumerate(starts) if offset >= wanted), len(starts))
        if chosen[-1] < k < len(starts):
            chosen.append(k)
    borders = [*(starts[k] for k in chosen), (end, row)]
    return [Range(a, b, first, last - first) for (a, first), (b, last) in zip(borders, borders[1:], strict=False)]


def read(
    file: DataFile,
    part: Range,
    *,
    columns: Sequence[str] | None,
    filters: Sequence[RowFilter],
    on_bad_row: OnBadRow,
) -> Iterator[pa.Table]:
    """The records of `part` as tables (see `records`)."""
    row = part.first_row
    for _, _, records in _pieces(file, part):
        for start in range(0, len(records), MAX_BATCH_RECORDS):
            batch = records[start : start + MAX_BATCH_RECORDS]
            yield record_table(batch, row, filters, on_bad_row)
            row += len(batch)


def small_piece(file: DataFile, num_shards: int) -> int:
    """Bytes to read at once when looking for borders: enough pieces for a border near every place that is wanted."""
    return min(PIECE_BYTES, max(64, file.size // (4 * num_shards)))


def _pieces(file: DataFile, part: Range, piece_bytes: int = 0) -> Iterator[tuple[int, bytes, Records]]:
    """(byte offset, text, records) of successive stretches of whole records."""
    is_whole = part.start == 0 and part.stop == file.size
    with open_binary(file, part.start) as stream:
        buffer, offset = _after_bracket(stream, file, piece_bytes) if is_whole else (b"", part.start)
        left = None if is_whole else part.stop - part.start
        pattern: re.Pattern[bytes] | None = None
        size = piece_bytes or PIECE_BYTES
        row, wanted, needs_comma = part.first_row, size, False
        while True:
            num_bytes = wanted if left is None else min(wanted, left)
            chunk = read_chunk(stream, num_bytes, file) if num_bytes else b""
            left = None if left is None else left - len(chunk)
            buffer += chunk
            if needs_comma:
                end = _after_comma(buffer, file, row)
                buffer, offset, needs_comma = buffer[end:], offset + end, not end
            if not chunk:
                break
            pattern = pattern or _border_pattern(buffer)
            end, records = (0, ()) if needs_comma else _split(buffer, pattern, file, row)
            if not records:  # not one whole record yet: read more, twice as much each time
                wanted = max(size, len(buffer))
                continue
            yield offset, buffer[:end], records
            row += len(records)
            buffer, offset, needs_comma, wanted = buffer[end:], offset + end, True, size
        text = _before_bracket(buffer, file, row) if is_whole else buffer.rstrip(_SPACE).removesuffix(b",")
        if text.strip(_SPACE):
            yield offset, text, _records(text, file, row)
        elif is_whole and row > part.first_row and not needs_comma:
            raise SourceError(
                f"{file.path}: the JSON array ends with a comma, after {row:,} records", code="invalid_json"
            )


def _after_bracket(stream: BinaryIO, file: DataFile, piece_bytes: int) -> tuple[bytes, int]:
    head = text = b""
    while not text and (chunk := read_chunk(stream, piece_bytes or PIECE_BYTES, file)):
        head += chunk
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    if not text.startswith(b"["):
        shown = text[:40].decode("utf-8", "replace")
        raise SourceError(
            f"{file.path}: a JSON file must be an array of records or have one record per line, "
            f"it starts with {shown!r}"
        )
    rest = text[1:].lstrip(_SPACE)
    return rest, len(head) - len(rest)


def _after_comma(buffer: bytes, file: DataFile, row: int) -> int:
    """Where the next record starts; 0 while there is no comma, which is right only before the closing bracket."""
    text = buffer.lstrip(_SPACE)
    if text.startswith(b","):
        return len(buffer) - len(text[1:].lstrip(_SPACE))
    if text and not text.startswith(b"]"):
        shown = text[:40].decode("utf-8", "replace")
        raise SourceError(f"{file.path}: a comma must follow record {row - 1:,}, got {shown!r}", code="invalid_json")
    return 0


def _before_bracket(buffer: bytes, file: DataFile, row: int) -> bytes:
    text = buffer.rstrip(_SPACE)
    depth = 0
    if not text.endswith(b"]"):
        for token in _TOKEN.finditer(text):
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
            if depth < 0:
                shown = text[token.end() :].strip(_SPACE)[:40].decode("utf-8", "replace")
                raise SourceError(f"{file.path}: something follows the JSON array: {shown!r}", code="invalid_json")
        num_whole = row + len(_exact_ends(text))
        raise SourceError(
            f"{file.path}: the JSON array ends in the middle, after {num_whole:,} whole records: the file is "
            f"truncated",
            code="truncated",
        )
    return text[:-1].rstrip(_SPACE)


def _border_pattern(buffer: bytes) -> re.Pattern[bytes] | None:
    first = _FIRST_KEY.match(buffer)
    return re.compile(rb"\}\s*,\s*(?=\{\s*" + re.escape(first[1]) + rb")") if first else None


def _split(buffer: bytes, pattern: re.Pattern[bytes] | None, file: DataFile, row: int) -> tuple[int, Records]:
    """(end, records) of as many whole records as the buffer surely holds; (0, ()) for none."""
    for window in (1 << 16, len(buffer)) if pattern is not None else ():
        last = None
        for last in pattern.finditer(buffer, max(0, len(buffer) - window)):  # type: ignore[union-attr]  # noqa: B007
            pass
        if last is not None:
            try:
                return last.start() + 1, _splitter.decode(b"[" + buffer[: last.start() + 1] + b"]")
            except DECODE_ERRORS:
                break
    ends = _exact_ends(buffer)
    return (ends[-1], _records(buffer[: ends[-1]], file, row)) if ends else (0, ())


def _records(text: bytes, file: DataFile, row: int) -> Records:
    """The records of `text`, which holds whole ones; one that is no JSON is among them as it is."""
    try:
        return _splitter.decode(b"[" + text + b"]")
    except DECODE_ERRORS as error:
        found: list[bytes] = []
        start = 0
        for end in _exact_ends(text):
            record = text[start:end].strip(_SPACE)
            if found:
                if not record.startswith(b","):
                    break
                record = record[1:].lstrip(_SPACE)
            if record[:1] not in (b"{", b"["):
                break
            found.append(record)
            start = end
        if text[start:].strip(_SPACE) or not found:
            place = f"{file.path}: the JSON array is broken after row {row + len(found) - 1:,}"
            raise SourceError(f"{place}: {error}", code="invalid_json") from error
        return found


def _exact_ends(buffer: bytes) -> list[int]:
    """Where the records that are whole end, by counting brackets outside of strings."""
    ends, depth = [], 0
    for token in _TOKEN.finditer(buffer):
        mark = token[0]
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                ends.append(token.end())
            if depth < 0:
                break
    return ends
