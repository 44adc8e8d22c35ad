"""What a push does to what the repository holds already: other configs stay, a config that is pushed again is replaced
whole, and what somebody wrote into README.md by hand stays.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llava_arrow.errors import OutputError
from llava_arrow.outputs.front_matter import is_match, patterns_of, with_front_matter, without_front_matter
from llava_arrow.outputs.licenses import KNOWN

__all__ = [
    "configs_of",
    "free_folder",
    "has_section",
    "listed",
    "merged_front_matter",
    "merged_readme",
    "replaced_files",
]

_NAMES = """
parquet csv tsv json jsonl ndjson arrow txt tar zip xml jpg jpeg png gif bmp webp tif tiff mp3 wav flac ogg m4a mp4 mkv
avi mov webm pdf nii h5 hdf5
"""
_DATA = frozenset(_NAMES.split())
"""Extensions that `datasets` takes for data where a README.md names no configs."""
_COMPRESSED = re.compile(r"\.(?:gz|zst|xz|bz2|lz4)$")
_SPLIT = re.compile(r"(?:data/)?(train|test|validation|val|dev)-\d{5}-of-\d{5}.*\.parquet")
_OURS = re.compile(r"[^/]+/train-\d{5}-of-\d{5}-[0-9a-f]{12}\.parquet")
_SECTION = re.compile(
    r"<!-- llava-mixture configs=([0-9a-f,]*) card=([0-9a-f]*): .*? -->\n.*?<!-- llava-mixture: end -->\n?", re.DOTALL
)
_LICENSE_KEYS = ("license", "license_name", "license_link")


def free_folder(
    front_matter: Mapping[str, Any], config_names: Sequence[str], folder: str, file_name: str, *, place: str
) -> str:
    """`folder`, or one named after it, in which no config but those of `config_names` takes in a file `file_name`.

    Raises:
        OutputError: a config of the repository takes in every file.
    """
    configs = [c for c in listed(front_matter.get("configs")) if isinstance(c, Mapping)]
    others = [c for c in configs if str(c.get("config_name")) not in config_names]
    for candidate in (folder, f"{folder}-data", f"{folder}-data-2"):
        path = f"{candidate}/{file_name}"
        taken = [(c, p) for c in others for p in patterns_of(c) if is_match(path, p)]
        if not taken:
            return candidate
    config, pattern = taken[0]
    raise OutputError(
        f"{place}: its config {str(config.get('config_name'))!r} takes in every file like {pattern!r}, so also "
        f"{path!r}: make that pattern narrower in its README.md first",
        code="repo_occupied",
    )


def merged_front_matter(
    old: Mapping[str, Any], new: Mapping[str, Any], files: Collection[str], *, place: str
) -> dict[str, Any]:
    """The repository's front matter with the new configs in it.

    Args:
        old: the front matter of its README.md, empty where there is none.
        new: that of the configs that are pushed.
        files: what the repository holds.
    """
    names = [config["config_name"] for config in new["configs"]]
    configs = configs_of(old, files, place)
    kept = [config for config in configs if str(config.get("config_name")) not in names]
    merged = {**new, **old}
    merged["configs"] = _in_place(configs, new["configs"])
    merged["dataset_info"] = _in_place(_infos(old), new["dataset_info"])
    merged["tags"] = list(dict.fromkeys([*listed(old.get("tags")), *new["tags"]]))
    merged["task_categories"] = list(dict.fromkeys([*listed(old.get("task_categories")), *new["task_categories"]]))
    if not kept:
        merged["size_categories"] = new["size_categories"]
    for key in _LICENSE_KEYS:
        merged.pop(key, None)
    return {**_license(old, new, stays=bool(kept)), **merged}


def _license(old: Mapping[str, Any], new: Mapping[str, Any], *, stays: bool) -> dict[str, Any]:
    """That of the new configs, together with that of those which stay; theirs where the new ones have none."""
    ours = {key: new[key] for key in _LICENSE_KEYS if key in new}
    theirs = {key: old[key] for key in _LICENSE_KEYS if key in old}
    if theirs and ours.get("license") == "unknown":
        return theirs
    if not theirs or theirs == ours or not stays:
        return ours
    both = list(dict.fromkeys([*listed(theirs.get("license")), *listed(ours.get("license"))]))
    if all(name in KNOWN and name not in ("other", "unknown") for name in both):
        return {"license": both[0] if len(both) == 1 else both}
    return theirs if theirs.get("license") == "other" else {**ours, "license": "other", "license_name": "mixed"}


def listed(value: Any) -> list[Any]:
    """A value that may be one thing or a list of them, as a list."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _infos(front_matter: Mapping[str, Any]) -> list[dict[str, Any]]:
    infos = [dict(info) for info in listed(front_matter.get("dataset_info")) if isinstance(info, Mapping)]
    return [{"config_name": "default", **info} for info in infos]


def configs_of(front_matter: Mapping[str, Any], files: Collection[str], place: str) -> list[dict[str, Any]]:
    """The configs there are; of a repository without a list of them, what `datasets` finds by itself.

    Raises:
        OutputError: it holds data of which that cannot be said.
    """
    configs = [dict(config) for config in listed(front_matter.get("configs")) if isinstance(config, Mapping)]
    if configs:
        return configs
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        stem = _COMPRESSED.sub("", name)
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if is_hidden or name == "dataset_infos.json" or _OURS.fullmatch(name):
            continue
        if stem.rpartition(".")[2].lower() not in _DATA or "." not in stem.rpartition("/")[2]:
            continue
        match = _SPLIT.fullmatch(name)
        if match is None:
            raise OutputError(
                f"{place} holds data ({name!r}) that its README.md lists under no config; with configs it would "
                f"not be found any more: list it there under `configs:` first, or choose another repository",
                code="repo_occupied",
            )
        found.setdefault(match[1], []).append(name)
    if not found:
        return []
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
    configs: Sequence[Mapping[str, Any]],
    config_names: Sequence[str],
    own: Mapping[str, re.Pattern[str]],
    files: Collection[str],
) -> list[str]:
    """Files of earlier versions of the configs that are pushed, and of no other config.

    Args:
        configs: those of the repository, from `configs_of`.
        own: config → what its files have been called by earlier pushes.
    """
    patterns = {str(config.get("config_name")): patterns_of(config) for config in configs}
    others = [p for name, theirs in patterns.items() if name not in config_names for p in theirs]
    gone = []
    for path in sorted(files):
        is_theirs = any(is_match(path, pattern) or fnmatch.fnmatchcase(path, pattern) for pattern in others)
        is_ours = any(
            own[name].fullmatch(path) or any(is_match(path, pattern) for pattern in patterns.get(name, ()))
            for name in config_names
        )
        if is_ours and not is_theirs and path.endswith(".parquet"):
            gone.append(path)
    return gone


def _keys(config_names: Sequence[str]) -> list[str]:
    """What sections call configs: names may hold anything, comments may not."""
    return [hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10] for name in config_names]


def has_section(readme: str, config_names: Sequence[str], card: str) -> bool:
    """Whether the README.md describes just these configs, in the card with the digest `card`."""
    wanted = (set(_keys(config_names)), card)
    return any((set(match[1].split(",")), match[2]) == wanted for match in _SECTION.finditer(readme))


def merged_readme(
    old: str, new: str, *, config_names: Sequence[str], card: str, front_matter: Mapping[str, Any]
) -> str:
    """The README.md: what was written by hand stays, and so do sections of other pushes; one whose configs are all
    pushed again is replaced.

    Args:
        old: the repository's README.md, empty where there is none.
        new: the text of the card.
        card: a digest of what the card is made of, kept with its section.
    """
    keys = _keys(config_names)
    begin = f"<!-- llava-mixture configs={','.join(keys)} card={card}: made by a push, changes are lost -->"
    made = f"{begin}\n{without_front_matter(new).strip()}\n<!-- llava-mixture: end -->\n"
    is_placed = False

    def replaced(match: re.Match[str]) -> str:
        nonlocal is_placed
        if not set(match[1].split(",")) <= set(keys):
            return match[0]
        text = "" if is_placed else made
        is_placed = True
        return text

    body = _SECTION.sub(replaced, without_front_matter(old).strip() + "\n")
    if not is_placed:
        body = f"{body.rstrip()}\n\n{made}".lstrip()
    return with_front_matter(front_matter, body.rstrip() + "\n")
