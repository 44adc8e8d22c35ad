"""Draws that depend on nothing but the row they are for.

A sample may cost a few microseconds, a `numpy.random.Generator` per row costs more than that. So: SplitMix64 (Steele,
Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) used as a counter-based source. A stream
is keyed by (seed, config name, file, row, copy); draw number i is the mix of key + i × gamma, so nothing has to be
carried from row to row, and a whole column of rows can be drawn at once by the vector form, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Draws", "file_key", "first_uniforms", "row_keys"]

T = TypeVar("T")
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_COPY_GAMMA = 0xD1B54A32D192ED03  # odd, as the gamma has to be, and different from it
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def _mix_array(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def file_key(*, seed: int, config_name: str, file: str) -> int:
    """The 64-bit key of all rows of one file; `file` is relative to the entry's data folder, so that a moved folder
    draws alike.
    """
    text = "\0".join((str(seed), config_name, file))
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def row_keys(key: int, rows: npt.NDArray[np.int64], copies: npt.NDArray[np.int64] | None) -> npt.NDArray[np.uint64]:
    """The key of each (row, copy): uint64 of the length of `rows`."""
    mixed = _mix_array(np.uint64(key) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA))
    if copies is None:
        return mixed
    return mixed + copies.astype(np.uint64) * np.uint64(_COPY_GAMMA)


def first_uniforms(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """What `Draws(key).random()` gives first, for many keys at once."""
    return (_mix_array(keys + np.uint64(_GAMMA)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Draws:
    """The draws of one (row, copy).

    >>> a, b = Draws(7), Draws(7)
    >>> [a.integers(0, 10) for _ in range(4)] == [b.integers(0, 10) for _ in range(4)]
    True
    """

    __slots__ = ("_state",)

    def __init__(self, key: int) -> None:
        self._state = key

    def _next(self) -> int:
        self._state = (self._state + _GAMMA) & _MASK
        return _mix(self._state)

    def random(self) -> float:
        """A float in [0, 1), a multiple of 2**-53."""
        return (self._next() >> 11) * 2.0**-53

    def integers(self, low: int, high: int) -> int:
        """An integer in [low, high). The bias of the multiplication is below (high - low) / 2**64."""
        if high <= low:
            raise ValueError(f"integers({low}, {high}): high must be greater than low")
        return low + ((self._next() * (high - low)) >> 64)

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`, each as likely as the others."""
        return items[self.integers(0, len(items))]
