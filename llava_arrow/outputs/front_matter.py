"""The YAML at the top of a dataset's README.md: which configs there are, and which files they have."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llava_arrow.errors import ConfigError

__all__ = ["config_files", "read_front_matter", "with_front_matter", "without_front_matter"]

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def read_front_matter(text: str) -> dict[str, Any]:
    r"""The values between the two lines of dashes; empty where there are none.

    >>> read_front_matter("---\nlicense: mit\n---\n# Title")
    {'license': 'mit'}
    """
    found = _FRONT_MATTER.match(text)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise ConfigError(f"README.md: the YAML at its top cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


def without_front_matter(text: str) -> str:
    """What follows the front matter."""
    return _FRONT_MATTER.sub("", text, count=1)


def with_front_matter(values: Mapping[str, Any], body: str) -> str:
    """`body` below these values."""
    head = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n{body}"


def patterns_of(config: Mapping[str, Any]) -> list[str]:
    """The file patterns of one item of `configs:`, of all splits."""
    given = config.get("data_files")
    items = given if isinstance(given, list) else [given]
    patterns: list[str] = []
    for item in items:
        path = item.get("path") if isinstance(item, Mapping) else item
        patterns += [p for p in (path if isinstance(path, list) else [path]) if isinstance(p, str)]
    return patterns


def config_files(
    front_matter: Mapping[str, Any], names: Sequence[str], config_names: Sequence[str] | None, *, place: str
) -> list[str]:
    """Those of the files `names` that belong to the configs asked for; all of them where nothing says more.

    Raises:
        ConfigError: a config that is not there, or several and none asked for.
    """
    listed = front_matter.get("configs")
    configs = (
        {str(c.get("config_name")): c for c in listed if isinstance(c, Mapping)} if isinstance(listed, list) else {}
    )
    if not configs:
        if config_names:
            raise ConfigError(f"{place}: README.md names no configs, so there is no {', '.join(config_names)}")
        return list(names)
    wanted = list(config_names or (configs if len(configs) == 1 else ()))
    if not wanted:
        raise ConfigError(f"{place} has the configs {', '.join(configs)}: say which (config_names)")
    missing = [name for name in wanted if name not in configs]
    if missing:
        raise ConfigError(f"{place}: no config {missing[0]!r}: there are {', '.join(configs)}")
    chosen = []
    for config in wanted:
        for pattern in patterns_of(configs[config]):
            found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            if not found:
                raise ConfigError(f"{place}: config {config!r} has no file like {pattern!r}")
            chosen += found
    return list(dict.fromkeys(chosen))
