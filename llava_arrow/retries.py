"""Another attempt after what may pass: the one place that makes it, bounded."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import TypeVar

__all__ = ["backoff_s", "comes_from", "retried"]

T = TypeVar("T")


def retried(
    call: Callable[[], T],
    *,
    num_attempts: int,
    is_temporary: Callable[[Exception], bool],
    wait: Callable[[int, Exception], None],
) -> T:
    """`call()`, made again after a temporary error; the last error as it is.

    Args:
        wait: waits after attempt number 0, 1 …, which ended with this error.
    """
    for attempt in range(num_attempts):
        try:
            return call()
        except Exception as error:
            if attempt == num_attempts - 1 or not is_temporary(error):
                raise
            wait(attempt, error)
    raise AssertionError("unreachable")


def backoff_s(attempt: int, first_s: float) -> float:
    """Seconds to wait after an attempt: doubled each time, and different from process to process."""
    return first_s * 2**attempt * (0.5 + random.random())  # jitter: no sample depends on it


def comes_from(error: BaseException, packages: Collection[str]) -> bool:
    """Whether the class of an error, or one it derives from, is of one of these packages."""
    return any(base.__module__.partition(".")[0] in packages for base in type(error).__mro__)
