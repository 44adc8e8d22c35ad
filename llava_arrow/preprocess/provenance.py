"""A digest of a function's code, so that a built dataset is rebuilt when the code that made it changes."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["code_fingerprint"]

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def code_fingerprint(function: Callable[..., Any]) -> str:
    """Hex digest over the source files of the function's module and of the modules that it imports.

    Followed are modules of the same top-level package and modules outside the installation (a user's own files). A
    function of the main program, or typed into a notebook, counts with its byte code, defaults and closure, and with
    the functions, constants and modules that its code names.
    """
    function = inspect.unwrap(function)
    files: dict[str, bytes] = {}
    parts: dict[str, str] = {}
    _collect_function(function, files, parts)
    digest = sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    for name in sorted(parts):
        digest.update(f"{name}\0{parts[name]}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _collect_function(function: Any, files: dict[str, bytes], parts: dict[str, str]) -> None:
    module = inspect.getmodule(function)
    if module is not None and getattr(module, "__file__", None) and module.__name__ != "__main__":
        _collect_module(module, module.__name__.partition(".")[0], files)
    code = getattr(function, "__code__", None)
    if code is None or (module is not None and module.__name__ in files) or function.__qualname__ in parts:
        return
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    defaults = (function.__defaults__, function.__kwdefaults__)
    parts[function.__qualname__] = " ".join([*_code_parts(code), _stable(defaults), *map(_stable, cells)])
    for name in _names_of(code):
        if name in function.__globals__:
            _collect_value(name, function.__globals__[name], files, parts)
    for cell in cells:
        if isinstance(cell, FunctionType):
            _collect_function(cell, files, parts)


def _collect_value(name: str, value: Any, files: dict[str, bytes], parts: dict[str, str]) -> None:
    """What a function's code names, by what it is."""
    if isinstance(value, ModuleType):
        if not _is_installed(value):
            _collect_module(value, value.__name__.partition(".")[0], files)
    elif isinstance(value, FunctionType):
        if not _is_installed(sys.modules.get(value.__module__)):
            _collect_function(inspect.unwrap(value), files, parts)
    elif isinstance(value, type):
        if value.__module__ == "__main__":
            for method in vars(value).values():
                if isinstance(method, FunctionType):
                    _collect_function(method, files, parts)
        elif not _is_installed(sys.modules.get(value.__module__)):
            _collect_function(value, files, parts)
    else:
        parts[f"={name}"] = _stable(value)


def _is_installed(module: ModuleType | None) -> bool:
    path = getattr(module, "__file__", None)
    if module is None or path is None:
        return module is None or module.__name__ != "__main__"
    return str(path).startswith(_INSTALLED)


def _collect_module(module: ModuleType, package: str, files: dict[str, bytes]) -> None:
    path = getattr(module, "__file__", None)
    if path is not None:
        _collect_file(module.__name__, str(path), module.__package__ or "", package, files)


def _collect_file(name: str, path: str, parent: str, package: str, files: dict[str, bytes]) -> None:
    """The source of one module, and of those that its import statements name, loaded or not."""
    if name in files or not path.endswith(".py"):
        return
    files[name] = Path(path).read_bytes()
    for used in _imported_names(files[name], parent):
        found = _find_source(used, package)
        if found is not None:
            _collect_file(used, found[0], found[1], package, files)


def _imported_names(source: bytes, parent: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, parent) if node.level else relative
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _find_source(name: str, package: str) -> tuple[str, str] | None:
    """Path and parent package of a module of the same package or outside the installation; None for others."""
    top = name.partition(".")[0]
    if top != package and top in sys.modules and _is_installed(sys.modules[top]):
        return None
    module = sys.modules.get(name)
    if module is not None:
        path, parent = getattr(module, "__file__", None), module.__package__ or ""
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, AttributeError, ValueError):
            return None  # a name inside a module, not a module
        if spec is None:
            return None
        path, parent = spec.origin, spec.parent or ""
    is_own = path is not None and (top == package or not str(path).startswith(_INSTALLED))
    return (str(path), parent) if is_own else None


def _names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)


def _code_parts(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_parts(constant)
        else:
            yield _stable(constant)


def _stable(value: Any) -> str:
    """A `repr` that is the same in every process: sets sorted, no addresses."""
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(_stable, value))) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_stable, value)) + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_stable(key)}: {_stable(item)}" for key, item in value.items()) + "}"
    return _ADDRESS.sub("", repr(value))
