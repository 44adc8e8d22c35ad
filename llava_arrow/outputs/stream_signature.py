"""What tells one `IterableDataset` from another: how it was put together."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import types
from collections.abc import Mapping
from typing import Any

__all__ = ["paths_of", "signature_of"]

MAX_DEPTH = 40
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def signature_of(stream: Any) -> str:
    """16 hex digits over the steps of a stream: its source, and each `map`, `filter`, `take`, `shuffle` with what it
    got; the same in every run.

    `datasets` gives streams no fingerprint. What a function refers to beyond its own code is not looked at.
    """
    digest = hashlib.sha256(_described(stream._ex_iterable, 0).encode("utf-8", "surrogatepass"))
    for name in ("_shuffling", "_distributed", "_epoch"):
        digest.update(f"{name}={_described(getattr(stream, name, None), 0)}".encode())
    return digest.hexdigest()[:16]


def _described(value: Any, depth: int) -> str:
    if value is None or isinstance(value, (str, bytes, int, float)):
        return repr(value)
    if depth > MAX_DEPTH:
        return type(value).__name__
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key!r}:{_described(item, depth + 1)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_described(item, depth + 1) for item in value]
        return "[" + ",".join(sorted(items) if isinstance(value, (set, frozenset)) else items) + "]"
    code = getattr(value, "__code__", None)
    if code is not None:
        inner = [getattr(cell, "cell_contents", None) for cell in getattr(value, "__closure__", None) or ()]
        given = [inner, getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)]
        bound = getattr(value, "__self__", None)
        return f"{value.__qualname__}:{_code(code)}:{_described([*given, bound], depth + 1)}"
    if isinstance(value, functools.partial):
        return f"partial({_described([value.func, value.args, value.keywords], depth + 1)})"
    if hasattr(value, "bit_generator"):  # a numpy Generator
        return _described(value.bit_generator.state, depth + 1)
    if dataclasses.is_dataclass(value) or not type(value).__module__.startswith("datasets"):
        return _ADDRESS.sub("", repr(value))
    return f"{type(value).__name__}({_described(_attributes(value), depth + 1)})"


def _attributes(step: Any) -> dict[str, Any]:
    """What a step of a stream was given; where it stands, in `_state…`, changes while it runs."""
    return {key: item for key, item in vars(step).items() if not key.startswith("_state")}


def _code(code: types.CodeType) -> str:
    inner = [_code(item) if isinstance(item, types.CodeType) else repr(item) for item in code.co_consts]
    return f"{code.co_code.hex()}:{code.co_names}:{code.co_varnames}:{code.co_freevars}:{inner}"


def paths_of(stream: Any) -> list[str]:
    """Local files that a stream reads, as far as its steps say."""
    found: list[str] = []

    def look(value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            return
        if isinstance(value, str):
            if os.path.isabs(value) and os.path.exists(value):
                found.append(value)
        elif isinstance(value, Mapping):
            for item in value.values():
                look(item, depth + 1)
        elif isinstance(value, (list, tuple)):
            for item in value:
                look(item, depth + 1)
        elif type(value).__module__.startswith("datasets") and hasattr(value, "__dict__"):
            look(_attributes(value), depth + 1)

    look(stream._ex_iterable, 0)
    return found
