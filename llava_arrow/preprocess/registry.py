r"""Preprocess functions by name: what a mixture may write after `preprocess_fn:`, and with which options.

A function turns one row into one sample; its keyword-only parameters are the options that `process_fn_kwargs` may
give. Nothing is collected by `**kwargs`, so a misspelt option is an error when the YAML is read:

    @register_preprocess("my_captions", fills={"image": "one"})
    def my_captions(row, *, question="Describe the image."):
        return {
            "image": row["file"],
            "conversations": [
                {"from": "human", "value": "<image>\n" + question},
                {"from": "gpt", "value": row["text"]},
            ],
        }

A parameter called `rng` is not an option: it receives a `Draws` of the row's own. With `batched=True` the function
gets a `pyarrow.Table` and returns one of as many rows, in the same order; its `rng` is then a `BatchDraws`.

Custom functions come from three places: this decorator, an installed package's entry point in the group
`llava_mixture.preprocess`, or, with `trust_custom_code=True`, `package.module:function` written in the YAML.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llava_arrow.errors import ConfigError
from llava_arrow.preprocess.provenance import code_fingerprint
from llava_arrow.randomness import Draws, first_uniforms

__all__ = ["BatchDraws", "BoundPreprocess", "Preprocess", "find_preprocess", "register_preprocess"]

ENTRY_POINT_GROUP = "llava_mixture.preprocess"
IGNORED_OPTIONS = ("do_print",)
"""Options that existing mixtures give to the built-in functions and that mean nothing here."""
Fills = Mapping[str, str]
_registry: dict[str, Preprocess] = {}


class BatchDraws:
    """The draws of a batch: `[i]` is the `Draws` of row i, `random()` the first draw of every row at once."""

    def __init__(self, keys: npt.NDArray[np.uint64]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Draws:
        return Draws(int(self._keys[index]))

    def random(self) -> npt.NDArray[np.float64]:
        """The number that `self[i].random()` gives first, per row."""
        return first_uniforms(self._keys)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A registered function.

    `fills` says which columns beyond `conversations` it fills, `{"image": "one" | "many"}` and types of further
    columns; where that depends on the options it is a function of them. `reads` (a function of the options) names the
    columns it needs; without it the function gets all columns.
    """

    name: str
    function: Callable[..., Any]
    fills: Fills | Callable[[dict[str, Any]], Fills]
    reads: Callable[[dict[str, Any]], tuple[str, ...]] | None = None
    check: Callable[[dict[str, Any]], str | None] | None = None
    uncounted: Callable[[dict[str, Any]], tuple[str, ...]] | None = None
    is_batched: bool = False
    is_builtin: bool = False

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The options: keyword-only parameters except `rng`."""
        signature = inspect.signature(self.function)
        return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != "rng"}

    @property
    def takes_rng(self) -> bool:
        """Whether the function draws."""
        return "rng" in inspect.signature(self.function).parameters

    def bind(self, options: Mapping[str, Any]) -> BoundPreprocess:
        """Check `options` against the signature; all that is wrong with them in one ConfigError, a line each."""
        mistakes = []
        hints = typing.get_type_hints(self.function)
        if self.is_builtin:
            options = {name: value for name, value in options.items() if name not in IGNORED_OPTIONS}
        for name, value in options.items():
            if name not in self.parameters:
                mistakes.append(
                    f"{self.name} has no option {name!r}{did_you_mean(name, self.parameters, 'it takes ')}"
                )
            elif not accepts(hints.get(name, Any), value):
                mistakes.append(f"option {name!r} of {self.name} must be {spell(hints[name])}, got {value!r}")
        missing = [n for n, p in self.parameters.items() if p.default is p.empty and n not in options]
        mistakes += [f"{self.name} needs the option {name!r}" for name in missing]
        if not mistakes and self.check is not None:
            complaint = self.check(self._with_defaults(options))
            mistakes += [f"{self.name}: {complaint}"] if complaint else []
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return BoundPreprocess(preprocess=self, options=dict(options))

    def _with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: options.get(name, parameter.default) for name, parameter in self.parameters.items()}


@dataclass(frozen=True, kw_only=True)
class BoundPreprocess:
    """A function with the options of one entry."""

    preprocess: Preprocess
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The registered name."""
        return self.preprocess.name

    @property
    def all_options(self) -> dict[str, Any]:
        """The options with the defaults of those not given."""
        return self.preprocess._with_defaults(self.options)

    @property
    def fills(self) -> dict[str, str]:
        """Column → `one`, `many` or a type such as `list<float32>`."""
        fills = self.preprocess.fills
        return dict(fills(self.all_options) if callable(fills) else fills)

    @property
    def reads(self) -> tuple[str, ...] | None:
        """The columns that it needs, None when it must get all."""
        reads = self.preprocess.reads
        return None if reads is None else tuple(dict.fromkeys(reads(self.all_options)))

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Image columns whose placeholders are not counted."""
        uncounted = self.preprocess.uncounted
        return () if uncounted is None else uncounted(self.all_options)

    @property
    def fingerprint(self) -> str:
        """A digest of its code and options: another one means that samples may differ."""
        return code_fingerprint(self.preprocess.function) + repr(
            sorted(self.all_options.items(), key=lambda item: item[0])
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # By name: what a decorator was given (lambdas, closures) need not survive the way to a worker process.
        return (_rebind, (self.preprocess.function.__module__, self.name, self.options))

    def __call__(self, data: Any, rng: Draws | BatchDraws | None) -> Any:
        """The function on a row or a table, with the entry's options."""
        options = self.options if rng is None else {**self.options, "rng": rng}
        return self.preprocess.function(data, **options)


def _rebind(module_name: str, name: str, options: dict[str, Any]) -> BoundPreprocess:
    if name not in _registry:
        importlib.import_module(module_name)
    return BoundPreprocess(preprocess=_registry[name], options=options)


def register_preprocess(
    name: str,
    *,
    fills: Fills | Callable[[dict[str, Any]], Fills],
    reads: Callable[[dict[str, Any]], tuple[str, ...]] | None = None,
    check: Callable[[dict[str, Any]], str | None] | None = None,
    uncounted: Callable[[dict[str, Any]], tuple[str, ...]] | None = None,
    batched: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function known under `name`; the decorated function stays as it is.

    Args:
        name: what the YAML writes after `preprocess_fn:`. A name that is taken by a built-in function is a
            ConfigError.
        fills: the columns that it fills beyond `conversations`: image columns as `one` or `many`, others by type
            (`bool`, `list<float32>` …), or a function of the options that says so.
        reads: the columns it needs, as a function of the options; without it, it gets all.
        check: options → what is wrong with their combination, or None.
        uncounted: options → image columns whose placeholders need not match the number of images.
        batched: it maps a `pyarrow.Table` to a `pyarrow.Table` of as many rows.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _check_signature(name, function)
        is_builtin = function.__module__.startswith("llava_arrow.preprocess.")
        known = _registry.get(name)
        if known is not None and known.is_builtin and not is_builtin:
            raise ConfigError(f"preprocess function {name!r} is built in: register yours under another name")
        _registry[name] = Preprocess(
            name=name,
            function=function,
            fills=fills,
            reads=reads,
            check=check,
            uncounted=uncounted,
            is_batched=batched,
            is_builtin=is_builtin,
        )
        return function

    return decorate


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ConfigError(
                f"preprocess function {name!r} takes {parameter}: name its options, so that a misspelt one is an error"
            )


def preprocess_names() -> list[str]:
    """All registered names, entry points included, sorted."""
    _load_builtins()
    return sorted({*_registry, *_entry_points()})


def find_preprocess(name: str, *, trust_custom_code: bool = False) -> Preprocess:
    """The function called `name`, or `package.module:function` when custom code is trusted; else a ConfigError."""
    _load_builtins()
    if name in _registry:
        return _registry[name]
    if name in _entry_points():
        _entry_points()[name].load()
        if name not in _registry:
            raise ConfigError(
                f"the entry point {name!r} of group {ENTRY_POINT_GROUP} registers no function of that name"
            )
        return _registry[name]
    if ":" in name:
        return _load_reference(name, trust_custom_code=trust_custom_code)
    raise ConfigError(f"unknown preprocess_fn {name!r}{did_you_mean(name, preprocess_names(), 'there are ')}")


def _load_reference(name: str, *, trust_custom_code: bool) -> Preprocess:
    if not trust_custom_code:
        raise ConfigError(
            f"preprocess_fn {name!r} is code of the mixture's own: pass trust_custom_code=True (--trust-custom-code) "
            f"if you trust it"
        )
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"preprocess_fn {name!r} cannot be imported: {error}") from error
    for preprocess in _registry.values():  # decorated functions bring their declaration along
        if preprocess.function is function:
            return preprocess
    raise ConfigError(f"preprocess_fn {name!r}: decorate the function with @register_preprocess(..., fills=...)")


@cache
def _load_builtins() -> None:
    for module in ("text_to_image", "layout", "editing", "grounding", "understanding"):
        importlib.import_module(f"llava_arrow.preprocess.{module}")


@cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def did_you_mean(name: str, known: typing.Iterable[str], introduction: str) -> str:
    """`: did you mean 'x'?` where a known name is close, else `: <introduction>` and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": {introduction}{', '.join(names)}" if names else f": {introduction}none"


def accepts(hint: Any, value: object) -> bool:
    """Whether a YAML value fits an annotation; a whole number is a float, but True is no number.

    >>> accepts(list[str] | None, ["a"]), accepts(int, True)
    (True, False)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (list, tuple):
        return isinstance(value, list) and all(accepts(arguments[0], item) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, origin or hint)


def spell(hint: Any) -> str:
    """An annotation as a user reads it: `a list of str or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spell(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"a list of {spell(arguments[0])}"
    words = {bool: "true or false", str: "a string", int: "a whole number", float: "a number", type(None): "null"}
    return words.get(hint, str(hint))
