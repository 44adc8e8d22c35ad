"""JSON records that already are LLaVA samples, read by columns.

msgspec reads each record into a struct of just the keys that count, turns included, which costs half of what
dictionaries cost. Keys that nobody declared are found by the parser itself: it refuses an unknown key, which from then
on is a field that is only counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa

from llava_arrow.conversation_checks import plain_turns, turn_array
from llava_arrow.errors import MixtureError, PreprocessError
from llava_arrow.sources.records import DECODE_ERRORS, not_a_record

__all__ = ["PlainRecords"]

MAX_LEARNED_KEYS = 64
"""Beyond that, records are keyed by data (a phrase, an image id …), and each is read as a dictionary."""


class Turn(msgspec.Struct, gc=False):
    value: str
    role: str = msgspec.field(name="from")


class PlainRecords:
    """Reads batches of records for one shard.

    Args:
        columns: the columns to read beside `id`, `data_source`, `conversations` and `video`.
        ignored: keys that are known and read elsewhere, so that they do not count as undeclared.
        id_column: the key of the id.
        only: the keys that are read at all; None for every key.
    """

    def __init__(
        self, columns: Sequence[str], ignored: Sequence[str], id_column: str | None, only: Sequence[str] | None = None
    ) -> None:
        self._only = only
        self.columns, self.id_column = tuple(columns), id_column or "id"
        self._ignored = tuple(ignored)
        self._learned: list[str] = []
        self._build()

    def _build(self) -> None:
        known = dict.fromkeys([self.id_column, "data_source", "video", *self.columns, *self._ignored])
        known.pop("conversations", None)
        self._names = [*known, *self._learned]
        fields: list[Any] = [("turns", list[Turn], [])]
        fields += [(f"f{i}", Any, None) for i in range(len(known))]
        counted = range(len(known), len(self._names))
        fields += [(f"f{i}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for i in counted]
        rename = {"turns": "conversations", **{f"f{i}": name for i, name in enumerate(self._names)}}
        struct = msgspec.defstruct("PlainRecord", fields, rename=rename, gc=False, forbid_unknown_fields=True)
        self._struct, self._decoder = struct, msgspec.json.Decoder(struct)
        self._field = {name: f"f{i}" for i, name in enumerate(self._names)}

    def read(
        self, texts: Sequence[bytes], wrong: dict[int, MixtureError], undeclared: Counter[str]
    ) -> tuple[dict[str, Any], list[int]]:
        """Columns of the records that can be read, and their positions in `texts`; the others go into `wrong`."""
        records, good = self._decode(texts, wrong, undeclared)
        return self._columns(records, good, wrong, undeclared)

    def _decode(
        self, texts: Sequence[bytes], wrong: dict[int, MixtureError], undeclared: Counter[str]
    ) -> tuple[list[Any], list[int]]:
        decode = self._decoder.decode
        records: list[Any] = []
        good: list[int] = []
        for i, text in enumerate(texts):
            try:
                records.append(decode(text))
            except msgspec.ValidationError:
                record = self._read_slowly(text, i, wrong, undeclared)
                decode = self._decoder.decode  # it may have learned a key
                if record is None:
                    continue
                records.append(record)
            except DECODE_ERRORS as error:
                wrong[i] = not_a_record(text, error)
                continue
            good.append(i)
        return records, good

    def _columns(
        self, records: list[Any], good: list[int], wrong: dict[int, MixtureError], undeclared: Counter[str]
    ) -> tuple[dict[str, Any], list[int]]:
        videos = self._values(records, "video")
        if videos.count(None) < len(videos):
            for i, video in zip(good, videos, strict=True):
                if video is not None:
                    wrong[i] = PreprocessError("the row has a 'video': only images are supported", code="video")
            kept = [k for k, video in enumerate(videos) if video is None]
            records, good = [records[k] for k in kept], [good[k] for k in kept]
        for name in self._learned if self._only is None else ():
            field = self._field[name]  # records read before the key was learned do not have it
            count = sum(getattr(record, field, msgspec.UNSET) is not msgspec.UNSET for record in records)
            if count:
                undeclared[name] += count
        turns = list(map(attrgetter("turns"), records))
        flat = list(chain.from_iterable(turns))
        columns = {name: self._values(records, name) for name in ("data_source", *self.columns) if name in self._field}
        columns["id"] = self._values(records, self.id_column)
        columns["conversations"] = turn_array(
            pa.array(list(map(attrgetter("role"), flat)), pa.string()),
            pa.array(list(map(attrgetter("value"), flat)), pa.string()),
            list(map(len, turns)),
        )
        return columns, good

    def _values(self, records: Sequence[Any], name: str) -> list[Any]:
        if self._only is not None and name not in self._only and name != "video":
            return [None] * len(records)
        return list(map(attrgetter(self._field[name]), records))

    def _read_slowly(
        self, text: bytes, position: int, wrong: dict[int, MixtureError], undeclared: Counter[str]
    ) -> Any:
        """A record that does not fit the struct: an unknown key to learn, other role names, or a mistake."""
        try:
            row = msgspec.json.decode(text, type=dict[str, Any])
        except DECODE_ERRORS as error:
            wrong[position] = not_a_record(text, error)
            return None
        unknown = [key for key in row if key not in self._field and key != "conversations"]
        if unknown and len(self._learned) + len(unknown) <= MAX_LEARNED_KEYS:
            self._learned += unknown
            self._build()
        elif unknown and self._only is None:
            undeclared.update(unknown)
        try:
            turns = [Turn(value=turn["value"], role=turn["from"]) for turn in plain_turns(row.get("conversations"))]
        except MixtureError as error:
            if row.get("video") is None:
                wrong[position] = error
                return None
            turns = []
        values: Mapping[str, Any] = {
            self._field[k]: v for k, v in row.items() if k in self._field and k not in self._learned
        }
        learned = {self._field[k]: msgspec.Raw(b"null") for k in row if k in self._learned}
        return self._struct(turns=turns, **values, **learned)
