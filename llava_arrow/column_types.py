"""The types of a sample's columns, spelt as in the YAML (`one`, `many`, `list<float32>` …), as Arrow types and as
Features.

A config's columns are a `Layout`: `id`, `data_source`, its image columns, `conversations`, then what its entry
declares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from llava_arrow.errors import ConfigError

if TYPE_CHECKING:
    import datasets

__all__ = ["IMAGE_COLUMNS", "IMAGE_TYPE", "Layout", "PLACEHOLDERS", "is_list_type", "one_array", "parse_column_type"]

IMAGE_COLUMNS = ("image", "image_gen", "image_gen_enc")
PLACEHOLDERS = {"image": "<image>", "image_gen": "<image_gen>", "image_gen_enc": "<image_gen_enc>"}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN_TYPE = pa.struct([("from", pa.string()), ("value", pa.string())])
_SCALARS = (
    "string",
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
)
_LIST = re.compile(r"list<(.+)>")


def parse_column_type(spelling: Any, place: str = "type") -> pa.DataType:
    """The Arrow type of a spelling such as `list<float32>`.

    >>> parse_column_type("list<list<int32>>")
    ListType(list<item: list<item: int32>>)
    """
    inner = _LIST.fullmatch(str(spelling))
    if inner:
        return pa.list_(parse_column_type(inner[1], place))
    if spelling not in _SCALARS:
        raise ConfigError(f"{place} must be one of {', '.join(_SCALARS)} or list<…> of one, got {spelling!r}")
    return pa.type_for_alias(str(spelling))


def is_list_type(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a list of any make."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def one_array(column: pa.ChunkedArray, *, may_be_slice: bool = False) -> pa.Array:
    """A table's column as one array, which `combine_chunks` does not promise of every column.

    It begins at the beginning of its buffers. With `may_be_slice` it need not, and is not copied where it is one array
    already (`combine_chunks` copies it all the same).
    """
    if may_be_slice and column.num_chunks == 1:
        return column.chunk(0)
    array = column.combine_chunks()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


@dataclass(frozen=True)
class Layout:
    """Columns of a config in order: name → `text`, `one`, `many`, `turns`, or a spelling."""

    kinds: Mapping[str, str]

    @classmethod
    def of(cls, declared: Mapping[str, str]) -> Layout:
        """The layout of an entry that declares these columns beside `id`, `data_source` and `conversations`."""
        images = {column: declared[column] for column in IMAGE_COLUMNS if column in declared}
        others = {column: kind for column, kind in declared.items() if column not in IMAGE_COLUMNS}
        return cls({"id": "text", "data_source": "text", **images, "conversations": "turns", **others})

    @classmethod
    def widest(cls, layouts: Iterable[tuple[str, Layout]]) -> Layout:
        """The layout that holds all of them, each given with its entry's name: a list where any has a list."""
        kinds: dict[str, str] = {}
        origin: dict[str, str] = {}
        for name, layout in layouts:
            for column, kind in layout.declared.items():
                known = kinds.get(column, kind)
                if known != kind and column not in IMAGE_COLUMNS:
                    raise ConfigError(
                        f"column {column!r} is {known} in entry {origin[column]!r} but {kind} in entry {name!r}: "
                        f"give it one type, "
                        "or load the entries one by one"
                    )
                kinds[column] = known if known == kind else "many"
                origin.setdefault(column, name)
        return cls.of(kinds)

    def with_list_images(self) -> Layout:
        """The same with every image column a list."""
        return Layout({c: "many" if kind == "one" else kind for c, kind in self.kinds.items()})

    @property
    def declared(self) -> dict[str, str]:
        """The columns beyond the three that every config has."""
        return {c: kind for c, kind in self.kinds.items() if c not in ("id", "data_source", "conversations")}

    @property
    def image_columns(self) -> dict[str, str]:
        """Image column → `one` or `many`."""
        return {c: kind for c, kind in self.kinds.items() if c in IMAGE_COLUMNS}

    @property
    def all_image_columns(self) -> dict[str, str]:
        """As `image_columns`, with columns of other names that somebody else's dataset keeps images in."""
        return {c: kind for c, kind in self.kinds.items() if kind in ("one", "many")}

    @property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of the config's tables; images are `{bytes, path}`."""
        return pa.schema([(column, arrow_type(kind)) for column, kind in self.kinds.items()])

    def features(self) -> datasets.Features:
        """The same as `datasets.Features`."""
        import datasets

        return datasets.Features({column: _feature(kind) for column, kind in self.kinds.items()})


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of one column kind."""
    fixed = {"text": pa.string(), "one": IMAGE_TYPE, "many": pa.list_(IMAGE_TYPE), "turns": pa.list_(TURN_TYPE)}
    return fixed[kind] if kind in fixed else parse_column_type(kind)


def _feature(kind: str) -> Any:
    import datasets

    if kind == "turns":
        return [{"from": datasets.Value("string"), "value": datasets.Value("string")}]
    if kind in ("one", "many"):
        return datasets.Image() if kind == "one" else [datasets.Image()]
    inner = _LIST.fullmatch(kind)
    if inner:
        # Sequence, not [...]: of scalars the two mean the same, and only this one exists unchanged from 2.16 to 5.
        return datasets.Sequence(_feature(inner[1]))
    return datasets.Value("string" if kind == "text" else kind)
