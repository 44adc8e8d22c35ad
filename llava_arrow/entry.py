"""One entry of a mixture: every key of the file format, checked."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from llava_arrow.column_types import IMAGE_COLUMNS, parse_column_type
from llava_arrow.errors import ConfigError
from llava_arrow.paths import resolve_path
from llava_arrow.preprocess.registry import BoundPreprocess, find_preprocess
from llava_arrow.select import AesCutoff, MaxEncImages, MinSize, RowFilter, Sampling, Where

__all__ = ["ANY_COLUMN", "ENTRY_KEYS", "Context", "Entry", "config_name_of", "image_root_of"]

DEFAULT_AES_CUTOFF = 5.0
"""LaViDa-O's cutoff where the score is there and the entry does not speak of it."""

MAX_NAME_BYTES = 100
_UNSAFE = str.maketrans(dict.fromkeys("<>:/\\|?*[]{}", "_"))


def config_name_of(name: str) -> str:
    """`name` without the characters that `datasets` refuses or reads as a pattern, and not longer than a folder's name
    may be, which `datasets` makes of it.

    >>> config_name_of("a[1]/b")
    'a_1__b'
    """
    name = name.translate(_UNSAFE)
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    start = encoded[: MAX_NAME_BYTES - 9].decode("utf-8", "ignore")  # a name that was cut is not cut again
    return f"{start}-{sha256(encoded).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an entry takes from the mixture and from builder arguments (`image_root`, `on_error`: None where not
    given).
    """

    base_dir: str
    seed: int = 42
    path_map: Mapping[str, str] = field(default_factory=dict)
    image_stores: Mapping[str, str] = field(default_factory=dict)
    image_root: str | None = None
    on_error: str | None = None
    trust_custom_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A checked entry. `Entry.parse` makes it; paths are absolute or URLs.

    `name` is what the file says (the column `data_source`), `config_name` the unique name of the config. `aes_cutoff`
    is None when off and `default` when the file does not speak of it.
    """

    name: str
    json_path: tuple[str, ...]
    config_name: str = ""
    index: int = 0
    sampling_strategy: Sampling = field(default_factory=Sampling)
    preprocess: BoundPreprocess | None = None
    columns: tuple[str, ...] | None = None
    aes_cutoff: float | Literal["default"] | None = "default"
    min_size: int | None = None
    max_enc_images: MaxEncImages | None = None
    where: Where | None = None
    image_root: str | None = None
    length_group: str = "default"
    multi_image: bool | None = None
    keep_columns: tuple[str, ...] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    on_error: Literal["raise", "skip"] = "raise"
    turns: Literal["trim", "strict"] = "trim"
    placeholders: Literal["repair", "strict", "off"] = "repair"
    id_column: str | None = None
    license: str | None = None
    source: str | None = None
    seed: int = 42
    path_map: Mapping[str, str] = field(default_factory=dict)
    image_stores: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.config_name:
            object.__setattr__(self, "config_name", config_name_of(self.name))
        if not self.json_path:
            raise ConfigError(f"entry {self.name!r}: json_path must name at least one file")
        if self.preprocess is not None and (self.features or self.keep_columns or self.multi_image is not None):
            raise ConfigError(
                f"entry {self.name!r}: features, keep_columns and multi_image are for entries without preprocess_fn"
            )

    @classmethod
    def parse(
        cls, raw: Mapping[str, Any], *, name: str, index: int, context: Context
    ) -> tuple[Entry | None, list[tuple[str, str]]]:
        """The entry and no mistakes, or None and all of them as (key, message). Unknown keys are the caller's to
        report.
        """
        values: dict[str, Any] = {}
        mistakes: list[tuple[str, str]] = []
        for key, check in _CHECKS.items():
            if key in raw and (raw[key] is not None or key in _NULL_MEANS_SOMETHING):
                try:
                    values[key] = check(key, raw[key], context)
                except ConfigError as error:
                    mistakes.append((key, error.message))
        values.pop("name", None)
        if "json_path" not in raw or raw["json_path"] is None:
            mistakes.append(("", "json_path is missing: the data file of the entry"))
        _bind_preprocess(raw, values, context, mistakes)
        plain_only = [key for key in ("features", "keep_columns", "multi_image") if raw.get(key) is not None]
        if raw.get("preprocess_fn") is not None and plain_only:
            mistakes.append(
                (plain_only[0], f"{plain_only[0]} is for entries without preprocess_fn, whose function says it")
            )
        if context.image_root is not None:
            values["image_root"] = (
                os.path.abspath(context.image_root) if "://" not in context.image_root else context.image_root
            )
        if context.on_error is not None:
            try:
                values["on_error"] = _one_of("raise", "skip")("on_error", context.on_error, context)
            except ConfigError as error:
                mistakes.append(("on_error", error.message))
        if mistakes:
            return None, mistakes
        stores: dict[str, Any] = {
            "seed": context.seed,
            "path_map": context.path_map,
            "image_stores": context.image_stores,
        }
        return cls(name=name, index=index, **stores, **values), []

    @property
    def label(self) -> str:
        """How messages name the entry."""
        return f"entry {self.config_name!r}"

    def filters(self, column_names: Mapping[str, Any] | tuple[str, ...], *, is_parquet: bool) -> tuple[RowFilter, ...]:
        """The filters that apply to files with these columns, in the order in which rows meet them.

        Raises:
            ConfigError: a filter's column is not there.
        """
        filters: list[RowFilter] = [] if self.where is None else [self.where]
        if self.aes_cutoff == "default":
            if is_parquet and AesCutoff.columns[0] in column_names:
                filters.append(AesCutoff(cutoff=DEFAULT_AES_CUTOFF, is_default=True))
        elif self.aes_cutoff is not None:
            filters.append(AesCutoff(cutoff=self.aes_cutoff))
        if self.min_size is not None:
            filters.append(MinSize(size=self.min_size))
        if self.max_enc_images is not None:
            filters.append(self.max_enc_images)
        for row_filter in filters:
            missing = [column for column in row_filter.columns if column not in column_names]
            if missing:
                raise ConfigError(
                    f"{row_filter.name} needs the column {missing[0]!r}, which is not among those read "
                    f"({', '.join(column_names)}): "
                    f"add it to `columns:` or remove {row_filter.name}"
                )
        return tuple(filters)


class _AnyColumn(tuple[str, ...]):
    """The columns of JSON records, which nobody knows before they are read."""

    def __contains__(self, column: object) -> bool:
        return True


ANY_COLUMN: tuple[str, ...] = _AnyColumn()

Check = Callable[[str, Any, Context], Any]
_NULL_MEANS_SOMETHING = ("aes_cutoff",)


def _text(key: str, value: Any, context: Context) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or value == "":
        raise ConfigError(f"{key} must be a text, got {value!r}")
    return str(value)


def _text_list(key: str, value: Any, context: Context) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{key} must be a list of texts, got {value!r}")
    return tuple(value)


def _paths(key: str, value: Any, context: Context) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item for item in items):
        raise ConfigError(f"{key} must be a path or a list of paths, got {value!r}")
    return tuple(resolve_path(item, base_dir=context.base_dir, path_map=context.path_map) for item in items)


def _root(key: str, value: Any, context: Context) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{key} must be a path, got {value!r}")
    return resolve_path(value or ".", base_dir=context.base_dir, path_map=context.path_map)


def _one_of(*allowed: str) -> Check:
    def check(key: str, value: Any, context: Context) -> str:
        if value not in allowed:
            raise ConfigError(f"{key} must be one of {', '.join(allowed)}, got {value!r}")
        return str(value)

    return check


def _true_or_false(key: str, value: Any, context: Context) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, got {value!r}")
    return value


def _cutoff(key: str, value: Any, context: Context) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{key} must be a number or null (off), got {value!r}")
    return float(value)


def _size(key: str, value: Any, context: Context) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} must be a whole number ≥ 1 (pixels), got {value!r}")
    return value


def _enc_images(key: str, value: Any, context: Context) -> MaxEncImages:
    if not isinstance(value, Mapping) or set(value) != {"column", "value"}:
        raise ConfigError(f"{key} must be a mapping {{column: name, value: N}}, got {value!r}")
    column, limit = value["column"], value["value"]
    if not isinstance(column, str) or not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ConfigError(f"{key} needs a column name and a whole number ≥ 0, got {dict(value)!r}")
    return MaxEncImages(column=column, value=limit)


def _where(key: str, value: Any, context: Context) -> Where:
    pairs = list(value.items()) if isinstance(value, Mapping) else []
    column, texts = pairs[0] if len(pairs) == 1 else (None, None)
    texts = texts if isinstance(texts, list) else [texts]
    if not isinstance(column, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"{key} must be a mapping {{column: text}} of one column and one or several texts, got {value!r}"
        )
    return Where(column=column, values=tuple(texts))


def _features(key: str, value: Any, context: Context) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must map columns to types, got {value!r}")
    for column, kind in value.items():
        if column in ("id", "data_source", "conversations"):
            raise ConfigError(f"{key}.{column} is always there: its type is fixed")
        if column in IMAGE_COLUMNS and kind not in ("one", "many") and (column, kind) != ("image", "none"):
            raise ConfigError(f"{key}.{column} must be one or many, got {kind!r}")
        if column not in IMAGE_COLUMNS:
            parse_column_type(kind, f"{key}.{column}")
    return {str(column): str(kind) for column, kind in value.items()}


def _kept(key: str, value: Any, context: Context) -> tuple[str, ...]:
    for column in _text_list(key, value, context):
        if column in ("id", "data_source", "conversations", "image"):
            raise ConfigError(f"{key}: {column!r} is always there")
        if column in IMAGE_COLUMNS or column == "video":
            raise ConfigError(
                f"{key}: {column!r} is no plain column: images go under `features:`, videos are not supported"
            )
    return tuple(value)


def _sampling(key: str, value: Any, context: Context) -> Sampling:
    return Sampling.parse(value)


_CHECKS: dict[str, Check] = {
    "name": _text,
    "json_path": _paths,
    "sampling_strategy": _sampling,
    "columns": _text_list,
    "aes_cutoff": _cutoff,
    "min_size": _size,
    "max_enc_images": _enc_images,
    "where": _where,
    "image_root": _root,
    "length_group": _text,
    "multi_image": _true_or_false,
    "keep_columns": _kept,
    "features": _features,
    "on_error": _one_of("raise", "skip"),
    "turns": _one_of("trim", "strict"),
    "placeholders": _one_of("repair", "strict", "off"),
    "id_column": _text,
    "license": _text,
    "source": _text,
}
ENTRY_KEYS = (*_CHECKS, "preprocess_fn", "process_fn_kwargs")


def _bind_preprocess(
    raw: Mapping[str, Any], values: dict[str, Any], context: Context, mistakes: list[tuple[str, str]]
) -> None:
    name, options = raw.get("preprocess_fn"), raw.get("process_fn_kwargs") or {}
    if name is None:
        if options:
            mistakes.append(
                ("process_fn_kwargs", "process_fn_kwargs without preprocess_fn: name the function they are for")
            )
        return
    if not isinstance(options, Mapping):
        mistakes.append(("process_fn_kwargs", f"process_fn_kwargs must be a mapping, got {options!r}"))
        return
    try:
        function = find_preprocess(str(name), trust_custom_code=context.trust_custom_code)
    except ConfigError as error:
        mistakes.append(("preprocess_fn", error.message))
        return
    try:
        values["preprocess"] = function.bind(options)
    except ConfigError as error:
        mistakes.append(("process_fn_kwargs", error.message))


def image_root_of(entry: Entry, data_file: str) -> str:
    """What relative image paths of `data_file` are joined to."""
    return entry.image_root if entry.image_root is not None else posixpath.dirname(data_file)
