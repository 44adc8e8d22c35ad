"""One JSON record per line: a shard is a range of bytes that starts and ends at a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from llava_arrow.select import RowFilter
from llava_arrow.shards import DataFile, Range
from llava_arrow.sources import MAX_BATCH_RECORDS, SHARD_BYTES
from llava_arrow.sources.files import open_binary, read_chunk
from llava_arrow.sources.json_array import small_piece
from llava_arrow.sources.records import OnBadRow, record_table

__all__ = ["cut", "num_default_shards", "read"]

PIECE_BYTES = 4 << 20


def num_default_shards(file: DataFile) -> int:
    """How many shards suit the file's size."""
    return 1 if file.compression else max(1, file.size // SHARD_BYTES)


def cut(file: DataFile, num_shards: int) -> list[Range]:
    """`num_shards` ranges of about as many bytes; rows are counted where there is more than one."""
    if num_shards == 1 or file.compression:
        return [Range(0, file.size, 0)]
    borders = [(0, 0)]
    row = 0
    for offset, text, lines in _pieces(file, Range(0, file.size, 0), small_piece(file, num_shards)):
        if offset >= file.size * len(borders) // num_shards and borders[-1] != (offset, row):
            borders.append((offset, row))
        row += len(lines)
        end = offset + len(text)
    borders.append((max(end, file.size), row))
    return [Range(a, b, first, last - first) for (a, first), (b, last) in zip(borders, borders[1:], strict=False)]


def read(
    file: DataFile, part: Range, *, columns: Sequence[str] | None, filters: Sequence[RowFilter], on_bad_row: OnBadRow
) -> Iterator[pa.Table]:
    """The records of `part` as tables (see `records`); blank lines are no rows."""
    row = part.first_row
    for _, _, lines in _pieces(file, part):
        for start in range(0, len(lines), MAX_BATCH_RECORDS):
            batch = lines[start : start + MAX_BATCH_RECORDS]
            yield record_table(batch, row, filters, on_bad_row)
            row += len(batch)


def _pieces(file: DataFile, part: Range, piece_bytes: int = 0) -> Iterator[tuple[int, bytes, list[bytes]]]:
    """(byte offset, text, lines that are not blank) of successive stretches of whole lines."""
    left, size = None if file.compression else part.stop - part.start, piece_bytes or PIECE_BYTES
    offset, buffer = part.start, b""
    with open_binary(file, part.start) as stream:
        while True:
            num_bytes = size if left is None else min(size, left)
            chunk = read_chunk(stream, num_bytes, file) if num_bytes else b""
            left = None if left is None else left - len(chunk)
            buffer += chunk
            end = buffer.rfind(b"\n") + 1 if chunk else len(buffer)
            if end:
                text, buffer = buffer[:end], buffer[end:]
                lines = (text.removeprefix(b"\xef\xbb\xbf") if offset == 0 else text).split(b"\n")
                yield offset, text, [line for line in lines if line.strip()]
                offset += end
            if not chunk:
                return
