"""Numbered pieces of work on several processes, in which nothing but numbers and results travels."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from llava_arrow.errors import ConfigError, OutputError

__all__ = ["check_num_proc", "made_ahead", "run_numbered"]

Item = TypeVar("Item")
Result = TypeVar("Result")
_work: Callable[[int], Any] | None = None
NUM_AHEAD = 1
"""Pieces that may be under way or done beyond the number of processes before the caller takes their results."""


def check_num_proc(num_proc: object) -> None:
    """A ConfigError where `num_proc` is neither None nor a number of processes."""
    if num_proc is not None and (not isinstance(num_proc, int) or isinstance(num_proc, bool) or num_proc < 1):
        raise ConfigError(f"num_proc must be a whole number ≥ 1, got {num_proc!r}")


def run_numbered(
    work: Callable[[int], Result], numbers: Iterable[int], *, num_proc: int | None
) -> Generator[tuple[int, Result], None, None]:
    """(number, result) of each piece, in whatever order they end.

    `work` is inherited by forked processes, so it need not be picklable (functions of a notebook are not). With one
    process, or None, it is called here, in order. To be closed where it is not used up: its processes end then.

    Raises:
        OutputError: a process was killed. What `work` raises: as it is, once pieces under way have ended.
    """
    global _work
    if num_proc is None or num_proc == 1:
        for number in numbers:
            yield number, work(number)
        return
    _work = work
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=_end_with, initargs=(os.getpid(),))
    pending: dict[Future[Result], int] = {}
    left = iter(numbers)
    try:
        while True:
            while len(pending) < num_proc + NUM_AHEAD:
                following = next(left, None)
                if following is None:
                    break
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
                    pending[pool.submit(_call, following)] = following
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise OutputError(
            "a worker process was killed (out of memory?): run the same command again, what is finished is kept",
            code="process_killed",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _work = None


def made_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each made in a thread while the one before it is used: one reads while the other writes."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        try:
            future = pool.submit(next, items, None)
            while (item := future.result()) is not None:
                future = pool.submit(next, items, None)
                yield item
        finally:
            pool.submit(getattr(items, "close", lambda: None))  # where it runs, once what is under way has ended


def _call(number: int) -> Any:
    assert _work is not None
    return _work(number)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
