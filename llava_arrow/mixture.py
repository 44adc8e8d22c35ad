"""A mixture: one YAML file, checked, before any data is read.

Mixture.load("default")                      a file of builder_configs/, a path, or a Mixture
    │ parse_yaml                             values with their lines; keys written twice
    ▼
Mixture(entries=(Entry, …), weights, …)      frozen; all mistakes of the file in one ConfigError
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from llava_arrow.entry import ENTRY_KEYS, Context, Entry, config_name_of
from llava_arrow.errors import ConfigError
from llava_arrow.paths import expand_variables, is_url
from llava_arrow.preprocess.registry import did_you_mean
from llava_arrow.yaml_file import Document, parse_yaml

__all__ = ["MIXTURE_CONFIG", "Mixture", "builder_configs_dir"]

MIXTURE_CONFIG = "mixture"
"""The config that holds all entries, one after the other."""
TOP_KEYS = ("datasets", "weights", "batch_sizes", "seed", "path_map", "image_stores")
DEFAULT_WEIGHT = 100


def builder_configs_dir() -> Path:
    """The folder of the mixtures that come with the package: inside it when installed, beside it in a checkout."""
    inside = Path(__file__).parent / "builder_configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "builder_configs"


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The entries of a mixture and how they are weighted.

    >>> mixture = Mixture.load("default")
    >>> mixture.config_names[:2]
    ['mixture', 'our-dataset']
    """

    entries: tuple[Entry, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    batch_sizes: Mapping[str, float] = field(default_factory=dict)
    seed: int = 42
    path: str | None = None
    notes: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    base_dir: str = field(default="", repr=False, compare=False)
    overrides: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [entry.config_name for entry in self.entries]
        wrong = [name for i, name in enumerate(names) if name in (MIXTURE_CONFIG, *names[:i])]
        if wrong:
            why = "is reserved for all entries together" if wrong[0] == MIXTURE_CONFIG else "is given twice"
            raise ConfigError(f"{self.path or 'mixture'}: the config name {wrong[0]!r} {why}")
        numbered = tuple(replace(entry, index=index) for index, entry in enumerate(self.entries))
        object.__setattr__(self, "entries", numbered)

    @classmethod
    def load(cls, spec: Mixture | str | os.PathLike[str] | None = None, **overrides: Any) -> Mixture:
        """A mixture from itself, a path (relative to the working directory) or the name of a file in
        `builder_configs/`.

        Args:
            spec: tried in that order; None is `default`.
            overrides: builder arguments that win over the file: `image_root`, `seed`, `on_error`, `path_map` (merged),
                `trust_custom_code`. None means not given.

        Raises:
            ConfigError: no such file, or its mistakes, all at once.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        if isinstance(spec, Mixture):
            if not given:
                return spec
            place: dict[str, Any] = {"base_dir": spec.base_dir, "path": spec.path}
            if not spec.raw or cls.from_dict(spec.raw, **place, **spec.overrides).entries != spec.entries:
                raise ConfigError(
                    f"{', '.join(given)} cannot be given with a Mixture whose entries were made or changed by hand: "
                    "change the entries themselves (dataclasses.replace)"
                )
            path_map = {**spec.overrides.get("path_map", {}), **given.get("path_map", {})}
            merged = {**spec.overrides, **given, **({"path_map": path_map} if path_map else {})}
            return cls.from_dict(spec.raw, **place, **merged)
        if spec is not None and not isinstance(spec, (str, os.PathLike)):
            raise ConfigError(f"mixture must be a Mixture, a path or a name, got {spec!r:.80}")
        return cls.from_yaml(find_mixture(spec if spec is not None else "default"), **given)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **overrides: Any) -> Mixture:
        """Read a YAML file. Relative paths in it are relative to it."""
        place = os.fspath(path)
        document = read_document(place)
        return parse_mixture(document, base_dir=folder_of(place), path=place, overrides=overrides).mixture()

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], *, base_dir: str = ".", path: str | None = None, **overrides: Any
    ) -> Mixture:
        """The mixture that a YAML file with these values would give; relative paths are relative to `base_dir`."""
        base_dir = base_dir if is_url(base_dir) else os.path.abspath(base_dir)
        return parse_mixture(Document(raw), base_dir=base_dir, path=path, overrides=overrides).mixture()

    @property
    def config_names(self) -> list[str]:
        """All configs: `mixture`, then one per entry, in file order."""
        return [MIXTURE_CONFIG, *(entry.config_name for entry in self.entries)]

    def select(self, config_name: str) -> tuple[Entry, ...]:
        """The entries of a config; a ConfigError names the configs there are."""
        if config_name == MIXTURE_CONFIG:
            return self.entries
        for entry in self.entries:
            if entry.config_name == config_name:
                return (entry,)
        raise ConfigError(
            f"{self.path or 'mixture'}: no config "
            f"{config_name!r}{did_you_mean(config_name, self.config_names, 'there are ')}"
        )

    @property
    def groups(self) -> dict[str, tuple[Entry, ...]]:
        """Group → its entries, in the order in which groups first appear."""
        groups: dict[str, tuple[Entry, ...]] = {}
        for entry in self.entries:
            groups[entry.length_group] = (*groups.get(entry.length_group, ()), entry)
        return groups

    def weight(self, group: str) -> float:
        """The group's weight, 100 where the file gives none."""
        return self.weights.get(group, DEFAULT_WEIGHT)


def read_document(path: str) -> Document:
    """The values and lines of a YAML file; a ConfigError where it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the mixture cannot be read: {error}") from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is no YAML: {error}") from error


def folder_of(path: str) -> str:
    """What relative paths in the file `path` are relative to."""
    return os.path.dirname(os.path.abspath(path))


def find_mixture(spec: str | os.PathLike[str]) -> str:
    """The path that `spec` means."""
    name = os.fspath(spec)
    if os.path.isfile(name):
        return name
    folder = builder_configs_dir()
    for candidate in (folder / name, folder / f"{name}.yaml", folder / f"{name}.yml"):
        if "/" not in name and candidate.is_file():
            return str(candidate)
    known = sorted(path.stem for path in folder.glob("*.y*ml"))
    raise ConfigError(
        f"no mixture {name!r}: neither a file nor one of the names in builder_configs ({', '.join(known)})"
    )


@dataclass
class ParsedMixture:
    """A mixture file as far as it could be read: the entries that are right, and what is wrong, each with its line."""

    document: Document
    path: str | None
    base_dir: str
    overrides: Mapping[str, Any]
    entries: list[Entry] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    batch_sizes: dict[str, float] = field(default_factory=dict)
    seed: int = 42
    notes: list[str] = field(default_factory=list)
    mistakes: list[tuple[int, str]] = field(default_factory=list)

    def add(self, place: tuple[str | int, ...], message: str) -> None:
        """One more mistake, at `place` of the file."""
        line = self.document.line(place)
        where = f"{self.path or 'mixture'}{f':{line}' if self.document.lines else ''}"
        self.mistakes.append((line, f"{where}: {message}"))

    def raise_if_any(self) -> None:
        """A ConfigError with all mistakes, in the order of their lines."""
        if self.mistakes:
            ordered = [message for _, message in sorted(self.mistakes, key=lambda item: item[0])]
            header = "" if len(ordered) == 1 else f"{self.path or 'mixture'}: {len(ordered)} mistakes\n"
            raise ConfigError(header + "\n".join(ordered))

    def mixture(self) -> Mixture:
        """The mixture, or a ConfigError with all mistakes."""
        self.raise_if_any()
        return Mixture(
            entries=tuple(self.entries),
            weights=self.weights,
            batch_sizes=self.batch_sizes,
            seed=self.seed,
            path=self.path,
            notes=tuple(self.notes),
            raw=self.document.data,
            base_dir=self.base_dir,
            overrides=self.overrides,
        )


def parse_mixture(
    document: Document, *, base_dir: str, path: str | None, overrides: Mapping[str, Any]
) -> ParsedMixture:
    """Check every key of a mixture file. Touches no data file."""
    parsed = ParsedMixture(document, path, base_dir, overrides)
    data = document.data
    if not isinstance(data, Mapping) or not isinstance(data.get("datasets"), list) or not data["datasets"]:
        parsed.add((), "a mixture is a mapping with a list `datasets:` of at least one entry")
        return parsed
    for key in data:
        if key not in TOP_KEYS:
            parsed.add((key,), f"unknown key {key!r}{did_you_mean(key, TOP_KEYS, 'there are ')}")
    _report_repeated_keys(parsed)
    parsed.seed = overrides.get("seed", data.get("seed", 42))
    if not isinstance(parsed.seed, int) or isinstance(parsed.seed, bool) or not 0 <= parsed.seed < 2**32:
        parsed.add(("seed",), f"seed must be a whole number from 0 to {2**32 - 1}, got {parsed.seed!r}")
    stores = _texts(parsed, "image_stores")
    for scheme, template in stores.items():
        if "{key}" not in template or not is_url(template):
            message = f"image_stores.{scheme} must be a URL with {{key}} in it, got {template!r}"
            parsed.add(("image_stores", scheme), message)
    context = Context(
        base_dir=base_dir,
        seed=parsed.seed,
        path_map={**_texts(parsed, "path_map"), **overrides.get("path_map", {})},
        image_stores=stores,
        image_root=overrides.get("image_root"),
        on_error=overrides.get("on_error"),
        trust_custom_code=bool(overrides.get("trust_custom_code", False)),
    )
    _read_entries(parsed, data["datasets"], context)
    parsed.weights = _numbers(parsed, "weights")
    parsed.batch_sizes = _numbers(parsed, "batch_sizes")
    groups = {entry.length_group for entry in parsed.entries}
    for key, values in (("weights", parsed.weights), ("batch_sizes", parsed.batch_sizes)):
        absent = [group for group in values if group not in groups]
        if absent and not parsed.mistakes:
            parsed.notes.append(f"{key} for groups that no entry has: {', '.join(map(repr, absent))}")
    return parsed


def _report_repeated_keys(parsed: ParsedMixture) -> None:
    for place, is_same in parsed.document.repeated:
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        if is_same:
            line = parsed.document.line(place)
            parsed.notes.append(f"line {line}: {text} is written twice, with the same value")
        else:
            parsed.add(place, f"{text} is written twice, with different values: delete one")


def _read_entries(parsed: ParsedMixture, items: Sequence[Any], context: Context) -> None:
    entries: list[Entry] = []
    names: list[str] = []
    for index, item in enumerate(items):
        where: tuple[str | int, ...] = ("datasets", index)
        if not isinstance(item, Mapping):
            parsed.add(where, f"datasets[{index}] must be a mapping with at least `json_path:`, got {item!r}")
            continue
        name = str(item["name"]) if item.get("name") else _default_name(item.get("json_path"))
        label = f"datasets[{index}] {name!r}"
        for key in item:
            if key not in ENTRY_KEYS:
                known = did_you_mean(key, ENTRY_KEYS, "there are ")
                parsed.add((*where, key), f"{label}: unknown key {key!r}{known}")
        if config_name_of(name) == MIXTURE_CONFIG:
            parsed.add((*where, "name"), f"{label}: the name 'mixture' is reserved for all entries together")
        entry, problems = Entry.parse(item, name=name, index=index, context=context)
        for key, message in problems:
            for line in message.splitlines():
                parsed.add((*where, key), f"{label}: {line}")
        options = item.get("process_fn_kwargs")
        if isinstance(options, Mapping) and "do_print" in options:
            parsed.notes.append(f"{label}: option do_print does nothing here")
        names.append(name)
        if entry is not None:
            entries.append(entry)
    for name in sorted({name for name in names if names.count(name) > 1}):
        note = (
            f"name {name!r} is given {names.count(name)} times: config names get -2, -3 …; data_source stays {name!r}"
        )
        parsed.notes.append(note)
    unique = _unique_names([entry.name for entry in entries])
    parsed.entries = [replace(entry, config_name=name) for entry, name in zip(entries, unique, strict=True)]


def _default_name(json_path: Any) -> str:
    first = json_path[0] if isinstance(json_path, list) and json_path else json_path
    parts = [part for part in str(first).rstrip("/").split("/") if not re.search(r"[*?\[]", part)]
    stem = posixpath.basename(parts[-1]) if parts else "entry"
    return stem.split(".")[0] or stem


def _unique_names(names: Sequence[str]) -> list[str]:
    """Config names: a repeated name gets -2, -3 …; a name that somebody wrote is never given to another entry."""
    written = {config_name_of(name) for name in names}
    taken: set[str] = set()
    result = []
    for name in map(config_name_of, names):
        candidate, number = name, 2
        while candidate in taken or (candidate != name and candidate in written):
            candidate, number = f"{name}-{number}", number + 1
        taken.add(candidate)
        result.append(candidate)
    return result


def _texts(parsed: ParsedMixture, key: str) -> dict[str, str]:
    values = parsed.document.data.get(key) or {}
    if not isinstance(values, Mapping) or not all(isinstance(v, str) for v in values.values()):
        parsed.add((key,), f"{key} must map texts to texts, got {values!r}")
        return {}
    try:
        return {str(name): expand_variables(value) for name, value in values.items()}
    except ConfigError as error:
        parsed.add((key,), error.message)
        return {}


def _numbers(parsed: ParsedMixture, key: str) -> dict[str, float]:
    values = parsed.document.data.get(key) or {}
    if not isinstance(values, Mapping):
        parsed.add((key,), f"{key} must map groups to numbers, got {values!r}")
        return {}
    for group, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            parsed.add((key, str(group)), f"{key}.{group} must be a number greater than 0, got {value!r}")
    return {str(group): value for group, value in values.items()}
