"""The YAML at the top of a dataset's README.md: which configs there are, and which files they have.

The Hub reads it as YAML 1.2, in which `no` and `on` are words, PyYAML as 1.1; so it is read as 1.2 here, and written
in a way that both read alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llava_arrow.errors import ConfigError

__all__ = ["config_files", "is_match", "patterns_of", "read_front_matter", "with_front_matter", "without_front_matter"]

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))
_NUMBER = re.compile(
    r"[-+]?(?:\d+|0o[0-7]+|0x[0-9a-fA-F]+|(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))"
)


class _Loader(yaml.SafeLoader):
    """Truth values and numbers as YAML 1.2 has them."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in (_BOOL, _INT, _FLOAT)]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(?:0|[1-9]\d*)\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?\Z|[-+]?\d+[eE][-+]?\d+\Z"), list("-+.0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Texts in quotes that either version would take for something else; nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _NUMBER.fullmatch(text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def read_front_matter(content: str | bytes) -> dict[str, Any]:
    r"""The values between the two lines of dashes; empty where there are none.

    >>> read_front_matter("---\nlanguage: [en, no]\n---\n# Title")
    {'language': ['en', 'no']}
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        found = _FRONT_MATTER.match(text)
        values = yaml.load(found[1], _Loader) if found else None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"README.md: the YAML at its top cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


def without_front_matter(text: str) -> str:
    """What follows the front matter."""
    return _FRONT_MATTER.sub("", text, count=1)


def with_front_matter(values: Mapping[str, Any], body: str) -> str:
    """`body` below these values."""
    head = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n{body}"


def is_match(path: str, pattern: str) -> bool:
    """Whether a file pattern of a config means `path`: `*` and `?` stop at `/`, `**` does not.

    >>> is_match("a/b.parquet", "*.parquet"), is_match("a/b.parquet", "a/*"), is_match("a/b/c.parquet", "a/**")
    (False, True, True)
    """
    parts = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    known = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    expression = "".join(
        known.get(part, part if part.startswith("[") and part.endswith("]") and len(part) > 2 else re.escape(part))
        for part in parts
    )
    try:
        return re.fullmatch(expression, path) is not None
    except re.error:
        return False


def patterns_of(config: Mapping[str, Any]) -> list[str]:
    """The file patterns of one item of `configs:`, of all splits."""
    folder = config.get("data_dir")
    if isinstance(folder, str) and config.get("data_files") is None:
        return [f"{folder.strip('/')}/**"]
    given = config.get("data_files")
    items = given if isinstance(given, list) else [given]
    patterns: list[str] = []
    for item in items:
        path = item.get("path") if isinstance(item, Mapping) else item
        patterns += [p for p in (path if isinstance(path, list) else [path]) if isinstance(p, str)]
    return patterns


_SPLIT_NAME = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev)(?:[/_.-]|$)")


def splits_of(config: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The splits of a config: those that it names, else those that the names of files speak of."""
    given = config.get("data_files")
    items = given if isinstance(given, list) else [given]
    named = [str(item["split"]) for item in items if isinstance(item, Mapping) and "split" in item]
    if named:
        return list(dict.fromkeys(named))
    return list(dict.fromkeys(match[1] for name in names if (match := _SPLIT_NAME.search(name))))


def _one_split(config: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    splits = splits_of(config, names)
    if len(splits) > 1:
        raise ConfigError(
            f"{place} has the splits {', '.join(splits)}: export one, as a dataset: "
            f"export_raw(load_dataset(…, split={splits[0]!r}), …)"
        )


def config_files(
    front_matter: Mapping[str, Any], names: Sequence[str], config_names: Sequence[str] | None, *, place: str
) -> list[str]:
    """Those of the files `names` that belong to the configs asked for; all of them where nothing says more.

    Raises:
        ConfigError: a config that is not there, or several and none asked for.
    """
    listed = front_matter.get("configs")
    items = listed if isinstance(listed, list) else []
    configs = {str(item.get("config_name")): item for item in items if isinstance(item, Mapping)}
    if not configs:
        if config_names:
            raise ConfigError(f"{place}: README.md names no configs, so there is no {', '.join(config_names)}")
        _one_split({}, names, place)
        return list(names)
    default = [name for name, config in configs.items() if config.get("default") is True or name == "default"]
    wanted = list(config_names or (configs if len(configs) == 1 else default[:1]))
    if not wanted:
        raise ConfigError(f"{place} has the configs {', '.join(configs)}: say which (config_names)")
    missing = [name for name in wanted if name not in configs]
    if missing:
        raise ConfigError(f"{place}: no config {missing[0]!r}: there are {', '.join(configs)}")
    chosen: list[str] = []
    for config in wanted:
        patterns = patterns_of(configs[config])
        _one_split(configs[config], names if not patterns else (), place)
        chosen += [] if patterns else names
        for pattern in patterns:
            found = [name for name in names if is_match(name, pattern)]
            if not found:
                raise ConfigError(f"{place}: config {config!r} has no file like {pattern!r}")
            chosen += found
    return list(dict.fromkeys(chosen))
