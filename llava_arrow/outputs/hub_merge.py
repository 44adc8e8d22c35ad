"""What a push does to what the repository holds already: other configs stay, a config that is pushed again is replaced
whole, and what somebody wrote into README.md by hand stays.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llava_arrow.errors import OutputError
from llava_arrow.outputs.front_matter import patterns_of, with_front_matter, without_front_matter
from llava_arrow.outputs.licenses import KNOWN

__all__ = ["merged_front_matter", "merged_readme", "replaced_files"]

_DATA = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".arrow", ".txt", ".tar", ".zip")
_SPLIT = re.compile(r"(?:data/)?(train|test|validation|val|dev)-\d{5}-of-\d{5}.*\.parquet")


def merged_front_matter(
    old: Mapping[str, Any], new: Mapping[str, Any], files: Collection[str], *, place: str
) -> dict[str, Any]:
    """The repository's front matter with the new configs in it.

    Args:
        old: the front matter of its README.md, empty where there is none.
        new: that of the configs that are pushed.
        files: what the repository holds.

    Raises:
        OutputError: it holds data that no config names, which would not be found any more.
    """
    names = [config["config_name"] for config in new["configs"]]
    configs = _configs(old, files, place)
    kept = [config for config in configs if str(config.get("config_name")) not in names]
    infos = _infos(old)
    merged = {**new, **old}
    merged["configs"] = _in_place(configs, new["configs"])
    merged["dataset_info"] = _in_place(infos, new["dataset_info"])
    merged["tags"] = list(dict.fromkeys([*_listed(old.get("tags")), *new["tags"]]))
    merged["task_categories"] = list(dict.fromkeys([*_listed(old.get("task_categories")), *new["task_categories"]]))
    if not kept:
        merged["size_categories"] = new["size_categories"]
    for key in ("license", "license_name", "license_link"):
        merged.pop(key, None)
    return {**_license(old if kept else {}, new), **merged}


def _license(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """That of the new configs, together with that of those which stay."""
    keys = ("license", "license_name", "license_link")
    ours = {key: new[key] for key in keys if key in new}
    theirs = {key: old[key] for key in keys if key in old}
    if not theirs or theirs == ours:
        return ours
    both = list(dict.fromkeys([*_listed(theirs.get("license")), *_listed(ours.get("license"))]))
    if all(name in KNOWN and name not in ("other", "unknown") for name in both):
        return {"license": both[0] if len(both) == 1 else both}
    return theirs if theirs.get("license") == "other" else {**ours, "license": "other", "license_name": "mixed"}


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _infos(front_matter: Mapping[str, Any]) -> list[dict[str, Any]]:
    infos = [dict(info) for info in _listed(front_matter.get("dataset_info")) if isinstance(info, Mapping)]
    return [{"config_name": "default", **info} for info in infos]


def _configs(front_matter: Mapping[str, Any], files: Collection[str], place: str) -> list[dict[str, Any]]:
    """The configs there are; of a repository without a list of them, what `datasets` finds by itself."""
    configs = [dict(config) for config in _listed(front_matter.get("configs")) if isinstance(config, Mapping)]
    if configs:
        return configs
    data = [name for name in files if name.endswith(_DATA) and not name.startswith(".")]
    if not data:
        return []
    found: dict[str, list[str]] = {}
    for name in sorted(data):
        match = _SPLIT.fullmatch(name)
        if match is None:
            raise OutputError(
                f"{place} holds data ({name!r}) that its README.md lists under no config; with configs it would "
                f"not be found any more: list it there under `configs:` first, or choose another repository",
                code="repo_occupied",
            )
        found.setdefault(match[1], []).append(name)
    return [{"config_name": "default", "data_files": [{"split": s, "path": names} for s, names in found.items()]}]


def _in_place(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`old` with the new items in place of those of the same config, or at the end. A config stays the default."""
    by_name = {item["config_name"]: dict(item) for item in new}
    merged = []
    for item in old:
        name = str(item.get("config_name"))
        replacement = by_name.pop(name, None)
        if replacement is not None and item.get("default"):
            replacement["default"] = item["default"]
        merged.append(dict(item) if replacement is None else replacement)
    return [*merged, *by_name.values()]


def replaced_files(
    old: Mapping[str, Any], config_names: Sequence[str], own: Mapping[str, re.Pattern[str]], files: Collection[str]
) -> list[str]:
    """Files of earlier versions of the configs that are pushed, and of no other config.

    Args:
        own: config → what its files have been called by earlier pushes.
    """
    listed = {str(c.get("config_name")): patterns_of(c) for c in _listed(old.get("configs")) if isinstance(c, Mapping)}
    others = [p for name, patterns in listed.items() if name not in config_names for p in patterns]
    gone = []
    for name in sorted(files):
        is_theirs = any(fnmatch.fnmatchcase(name, pattern) for pattern in others)
        is_ours = any(
            own[config].fullmatch(name) or any(fnmatch.fnmatchcase(name, p) for p in listed.get(config, ()))
            for config in config_names
        )
        if is_ours and not is_theirs and name.endswith(".parquet"):
            gone.append(name)
    return gone


def merged_readme(old: str, new: str, *, section: str, front_matter: Mapping[str, Any]) -> str:
    """The README.md: what was written by hand stays, our section is replaced, or follows at the end.

    Args:
        old: the repository's README.md, empty where there is none.
        new: the text of the card.
        section: the name of our section, that of the mixture.
    """
    name = re.sub(r"[^\w.-]", "_", section)
    begin = f"<!-- llava-mixture {name}: made by a push, changes are lost -->"
    end = f"<!-- llava-mixture {name}: end -->"
    made = f"{begin}\n{without_front_matter(new).strip()}\n{end}\n"
    body = without_front_matter(old).strip()
    start, stop = body.find(begin), body.find(end)
    if 0 <= start < stop:
        body = body[:start] + made + body[stop + len(end) :].lstrip("\n")
    else:
        body = f"{body}\n\n{made}" if body else made
    return with_front_matter(front_matter, body.rstrip() + "\n")
