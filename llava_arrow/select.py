"""Which rows of a table stay: filters, then sampling. `pa.Table` in, `pa.Table` out; no row becomes a Python object
here.

rows in the file ── filters ──► the n rows that passed, in file order ── sampling ──► the rows kept
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava_arrow.errors import ConfigError, SourceError

__all__ = ["AesCutoff", "MaxEncImages", "MinSize", "RowFilter", "Sampling", "Where"]

Kind = Literal["all", "first", "end", "random", "dup"]
STRATEGIES = "all, full, first:N, end:N, random:N, dup:N"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampling strategy as written in the YAML. `amount` is a number of rows, of copies, or a share in percent."""

    kind: Kind = "all"
    amount: Decimal = Decimal(1)
    is_percentage: bool = False

    @classmethod
    def parse(cls, text: object) -> Sampling:
        """Read `all`, `first:10`, `random:12.5%`, `dup:3` …

        >>> Sampling.parse("first:12.5%").num_kept(20)
        3
        """
        if text in ("all", "full"):
            return cls()
        word, colon, number = str(text).partition(":")
        if word not in ("first", "end", "random", "dup") or not colon:
            raise ConfigError(f"unknown sampling_strategy {text!r}: it must be one of {STRATEGIES}")
        is_percentage = number.endswith("%")
        try:
            amount = Decimal(number.removesuffix("%"))
        except InvalidOperation:
            amount = Decimal(0)
        if word == "dup" and is_percentage:
            raise ConfigError(f"sampling_strategy {text!r}: dup takes a whole number of copies, as in dup:2")
        if not amount.is_finite() or amount <= 0 or (is_percentage and amount > 100):
            raise ConfigError(f"sampling_strategy {text!r}: N must be a whole number ≥ 1 or a percentage up to 100%")
        if not is_percentage and amount != amount.to_integral_value():
            raise ConfigError(f"sampling_strategy {text!r}: N must be a whole number ≥ 1, or say {number}%")
        return cls(kind=word, amount=amount, is_percentage=is_percentage)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.kind if self.kind == "all" else f"{self.kind}:{self.amount}{'%' if self.is_percentage else ''}"

    @property
    def num_copies(self) -> int:
        """How often each kept row is delivered."""
        return int(self.amount) if self.kind == "dup" else 1

    @property
    def needs_count(self) -> bool:
        """Whether the choice depends on how many rows passed the filters."""
        return self.kind in ("first", "end", "random")

    def num_kept(self, num_passed: int) -> int:
        """Rows kept of `num_passed`; a ConfigError when more are asked for than there are."""
        if not self.needs_count:
            return num_passed
        # Decimal, not float: 0.1 of 30 rows is 3, while ceil(30 * 0.1) may be 4.
        wanted = math.ceil(num_passed * self.amount / 100) if self.is_percentage else int(self.amount)
        if wanted > num_passed:
            raise ConfigError(
                f"sampling_strategy '{self}' asks for {wanted:,} rows, but only {num_passed:,} passed the filters: "
                f"say at most {self.kind}:{num_passed}, or 'all'"
            )
        return wanted

    def positions(self, num_passed: int, *, seed: int) -> range | npt.NDArray[np.int64]:
        """Positions kept, ascending, among the rows that passed the filters.

        `random` draws the set that `numpy.random.RandomState(seed).choice(n, N, replace=False)` draws, which is also
        that of pandas' `sample(N, random_state=seed)`.
        """
        kept = self.num_kept(num_passed)
        if self.kind == "first":
            return range(kept)
        if self.kind == "end":
            return range(num_passed - kept, num_passed)
        if self.kind == "random":
            chosen = np.random.RandomState(seed).permutation(num_passed)[:kept]
            return np.sort(chosen).astype(np.int64)
        return range(num_passed)


class RowFilter(Protocol):
    """One filter of an entry. `columns` are those it compares."""

    @property
    def name(self) -> str:
        """What counts are reported under."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it compares."""
        ...

    def key(self, table: pa.Table) -> npt.NDArray[Any]:
        """Per row the number that is compared; NaN for null."""
        ...

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Per row whether it passes."""
        ...

    def can_pass(self, bounds: dict[str, tuple[Any, Any]]) -> bool:
        """Whether any row can pass, given (min, max) per column."""
        ...

    def hint(self, best: float) -> str:
        """The loosest setting that keeps a row, given the greatest `key` among those removed."""
        ...


@dataclass(frozen=True, kw_only=True)
class AesCutoff:
    """Keep rows with `fltLaionAesthScore > cutoff`, compared in the column's own precision; null and NaN never
    pass.
    """

    cutoff: float
    is_default: bool = False
    name: str = "aes_cutoff"
    columns: tuple[str, ...] = ("fltLaionAesthScore",)

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        values, is_valid = _numbers(table, self.columns[0])
        return is_valid & (values > _same_precision(values.dtype, self.cutoff, round_up=False))

    def key(self, table: pa.Table) -> npt.NDArray[Any]:
        return _with_nan(*_numbers(table, self.columns[0]))

    def can_pass(self, bounds: dict[str, tuple[Any, Any]]) -> bool:
        top = bounds.get(self.columns[0])
        return top is None or bool(top[1] > _same_precision(np.asarray(top[1]).dtype, self.cutoff, round_up=False))

    def hint(self, best: float) -> str:
        return f"the highest fltLaionAesthScore there is {_short(best)}: a cutoff below that keeps a row"


@dataclass(frozen=True, kw_only=True)
class MinSize:
    """Keep rows with `intHeight >= size and intWidth >= size` (pixels)."""

    size: int
    name: str = "min_size"
    columns: tuple[str, ...] = ("intHeight", "intWidth")

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        keep = np.ones(table.num_rows, dtype=np.bool_)
        for column in self.columns:
            values, is_valid = _numbers(table, column)
            keep &= is_valid & (values >= _same_precision(values.dtype, self.size, round_up=True))
        return keep

    def key(self, table: pa.Table) -> npt.NDArray[Any]:
        height, width = (_with_nan(*_numbers(table, column)) for column in self.columns)
        smaller: npt.NDArray[Any] = np.minimum(height, width)
        return smaller

    def can_pass(self, bounds: dict[str, tuple[Any, Any]]) -> bool:
        return all(bounds[c][1] >= self.size for c in self.columns if c in bounds)

    def hint(self, best: float) -> str:
        return f"the largest smaller side there is {_short(best)} px: min_size up to that keeps a row"


@dataclass(frozen=True, kw_only=True)
class MaxEncImages:
    """Keep rows whose list in `column` has at most `value` items; null never passes."""

    column: str
    value: int
    name: str = "max_enc_images"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def _lengths(self, table: pa.Table) -> npt.NDArray[Any]:
        column = table.column(self.column)
        if pa.types.is_null(column.type):
            return np.full(len(column), np.nan)
        if pa.types.is_integer(column.type):  # a source without Arrow lists hands over their lengths
            return _with_nan(*_numbers(table, self.column))
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise SourceError(
                f"max_enc_images counts the items of column '{self.column}', but it is {column.type}, no list"
            )
        lengths = pc.list_value_length(column).cast(pa.float64())
        return np.asarray(lengths.to_numpy(), dtype=np.float64)

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        keep: npt.NDArray[np.bool_] = self._lengths(table) <= self.value  # NaN compares false
        return keep

    def key(self, table: pa.Table) -> npt.NDArray[Any]:
        return -self._lengths(table)

    def can_pass(self, bounds: dict[str, tuple[Any, Any]]) -> bool:
        return True

    def hint(self, best: float) -> str:
        return f"the shortest list there has {_short(-best)} items: a value of at least that keeps a row"


@dataclass(frozen=True, kw_only=True)
class Where:
    """Keep rows whose `column` is one of the texts `values`; null never passes."""

    column: str
    values: tuple[str, ...]
    name: str = "where"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        column = table.column(self.column)
        if pa.types.is_null(column.type):
            return np.zeros(len(column), dtype=np.bool_)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise SourceError(f"where compares the column '{self.column}' with a text, but it is {column.type}")
        return np.asarray(pc.is_in(column, pa.array(self.values, column.type)).to_numpy(), dtype=np.bool_)

    def key(self, table: pa.Table) -> npt.NDArray[Any]:
        return np.zeros(table.num_rows)

    def can_pass(self, bounds: dict[str, tuple[Any, Any]]) -> bool:
        return True

    def hint(self, best: float) -> str:
        return f"no row has {self.column} {' or '.join(map(repr, self.values))}"


def filter_mask(
    table: pa.Table, filters: Sequence[RowFilter], removed: dict[str, int], best: dict[str, float]
) -> npt.NDArray[np.bool_] | None:
    """Which rows pass all filters (None: every row). Each removed row is counted under the first filter that it
    fails.
    """
    keep: npt.NDArray[np.bool_] | None = None
    for row_filter in filters:
        passes = row_filter.mask(table)
        reached = np.ones(table.num_rows, dtype=np.bool_) if keep is None else keep
        fails = reached & ~passes
        num_failed = int(np.count_nonzero(fails))
        removed[row_filter.name] = removed.get(row_filter.name, 0) + num_failed
        if num_failed:
            nearest = float(np.nanmax(np.append(row_filter.key(table)[fails], -np.inf)))
            best[row_filter.name] = max(nearest, best.get(row_filter.name, -math.inf))
        keep = passes if keep is None else keep & passes
    return keep


def nothing_left(removed: dict[str, int], best: dict[str, float], filters: Sequence[RowFilter], num_rows: int) -> str:
    """The message for an entry whose filters keep no row: the count per filter, and the loosest value that would keep
    one.
    """
    parts = []
    for row_filter in filters:
        count = removed.get(row_filter.name, 0)
        if count:
            value = best.get(row_filter.name, -math.inf)
            hint = row_filter.hint(value) if math.isfinite(value) else f"{' and '.join(row_filter.columns)} null there"
            parts.append(f"{row_filter.name} removed {count:,} ({hint})")
    return f"the filters leave none of its {num_rows:,} rows: " + "; ".join(parts)


def _numbers(table: pa.Table, column: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Values (0 for null) and validity of a numeric column."""
    array = table.column(column)
    if pa.types.is_null(array.type):
        return np.zeros(len(array)), np.zeros(len(array), dtype=np.bool_)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise SourceError(f"column '{column}' is compared with a number, but it is {array.type}")
    if array.null_count:
        return pc.fill_null(array, pa.scalar(0, array.type)).to_numpy(), array.is_valid().to_numpy()
    return array.to_numpy(), np.ones(len(array), dtype=np.bool_)


def _with_nan(values: npt.NDArray[Any], is_valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return np.where(is_valid, values.astype(np.float64), np.nan)


def _same_precision(dtype: np.dtype[Any], value: float, *, round_up: bool) -> Any:
    """`value` as something that compares exactly with an array of `dtype`."""
    if dtype.kind == "f":
        return dtype.type(value)
    # An integer is > 5.67 exactly when it is > 5, and >= 5.67 exactly when it is >= 6.
    return math.ceil(value) if round_up else math.floor(value)


def _short(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6g}"
