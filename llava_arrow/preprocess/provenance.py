"""A digest of a function's code, so that a built dataset is rebuilt when the code that made it changes."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["code_fingerprint"]

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def code_fingerprint(function: Callable[..., Any]) -> str:
    """Hex digest over the source files of the function's module and of the modules whose functions, classes or names
    it uses.

    Followed are modules of the same top-level package and modules outside the installation (a user's own files); a
    function without a file (typed into a notebook) counts with its byte code, defaults and closure.
    """
    function = inspect.unwrap(function)
    digest = sha256()
    files: dict[str, bytes] = {}
    module = inspect.getmodule(function)
    if module is not None and getattr(module, "__file__", None) and module.__name__ != "__main__":
        _collect(module, module.__name__.partition(".")[0], files)
    if not files:
        _digest_function(function, digest.update)
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()


def _collect(module: ModuleType, package: str, files: dict[str, bytes]) -> None:
    path = getattr(module, "__file__", None)
    if path is None or module.__name__ in files or not path.endswith(".py"):
        return
    files[module.__name__] = Path(path).read_bytes()
    for used in _modules_used(module):
        own = used.__name__.partition(".")[0] == package
        if own or not str(getattr(used, "__file__", None) or _INSTALLED[0]).startswith(_INSTALLED):
            _collect(used, package, files)


def _modules_used(module: ModuleType) -> Iterator[ModuleType]:
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value
        elif isinstance(value, (FunctionType, type)):
            used = sys.modules.get(value.__module__)
            if used is not None and used is not module:
                yield used


def _digest_function(function: Callable[..., Any], update: Callable[[bytes], None]) -> None:
    code = getattr(function, "__code__", None)
    if code is None:
        update(repr(function).encode())
        return
    for part in _code_parts(code):
        update(part)
    update(repr((getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None))).encode())
    for cell in getattr(function, "__closure__", None) or ():
        update(repr(cell.cell_contents).encode())


def _code_parts(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_parts(constant)
        else:
            yield repr(constant).encode()
