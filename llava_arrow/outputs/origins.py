"""Where the samples of an export come from: a mixture, or anything that already holds samples.

Either way an `Origin`: parts in a fixed order, each of which gives tables of samples. Every table ends with the column
`ROW`, so that a sample which cannot leave is accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from llava_arrow.column_types import Layout
from llava_arrow.config_data import ConfigData
from llava_arrow.entry import Entry
from llava_arrow.errors import ConfigError
from llava_arrow.image_roots import ImageRoots
from llava_arrow.ledger import Tally
from llava_arrow.mixture import MIXTURE_CONFIG, Mixture
from llava_arrow.plan_cache import PlanCache
from llava_arrow.shards import Shard

__all__ = ["Origin", "OriginEntry", "Part", "mixture_origin", "open_configs", "places_of"]

ReadPart = Callable[[Tally], Iterator[pa.Table]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of the samples: what messages call it, where its images may lie, and how to read it.

    `skips` says whether a sample whose images cannot be read goes into the ledger; else it is an error.
    """

    label: str
    entry: str
    roots: ImageRoots
    skips: bool
    read: ReadPart


@dataclass(frozen=True, kw_only=True)
class OriginEntry:
    """An entry of the export: its config name and its columns.

    `settings` are the further keys that its entry in the new mixture file has.
    """

    name: str
    layout: Layout
    unread: Tally = field(default_factory=Tally)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """All samples of an export, in order. `identity` is plain JSON, equal exactly when the samples are.

    `entries` is empty where the samples say by their `data_source` which entries there are. `places` are the files and
    folders that they are made of.
    """

    identity: dict[str, Any]
    parts: Sequence[Part]
    entries: Sequence[OriginEntry] = ()
    layout: Layout
    top: Mapping[str, Any] = field(default_factory=dict)
    places: Sequence[str] = ()
    is_stream: bool = False

    @property
    def settings(self) -> list[Any]:
        """What the new mixture file says beyond the samples, as plain JSON."""
        return [
            {str(key): value for key, value in self.top.items()},
            [[e.name, dict(e.settings)] for e in self.entries],
        ]


def check_config_names(config_names: Sequence[str] | None) -> None:
    """A ConfigError where they are no list of names."""
    if isinstance(config_names, str):
        raise ConfigError(f"config_names must be a list of names, got {config_names!r}: say [{config_names!r}]")
    if config_names is not None and not config_names:
        raise ConfigError("config_names is empty: leave it out for every entry")


def open_configs(
    mixture: Mixture,
    config_names: Sequence[str] | None,
    *,
    cache: PlanCache,
    image_columns: str | None = None,
    embed_images: bool = True,
) -> list[ConfigData]:
    """The configs of an export, each once; None means every entry."""
    check_config_names(config_names)
    names = config_names or [entry.config_name for entry in mixture.entries]
    for name in names:
        mixture.select(name)
    return [
        ConfigData.open(
            mixture, name, cache=cache, image_columns=image_columns, embed_images=embed_images, export=True
        )
        for name in dict.fromkeys(names)
    ]


def mixture_origin(
    mixture: Mixture,
    config_names: Sequence[str] | None,
    *,
    num_parts: int | None,
    on_error: str,
    cache: PlanCache,
) -> Origin:
    """The samples of a mixture's entries, images as references; an entry that two of the configs hold comes once."""
    names = config_names
    if names is not None and not isinstance(names, str) and MIXTURE_CONFIG in names:
        names = None
    configs = open_configs(mixture, names, cache=cache, embed_images=False)
    parts: list[Part] = []
    entries: list[OriginEntry] = []
    for data in configs:
        (entry,) = data.entries
        shards, unread = data.plan(num_shards=num_parts, cache=cache)
        entries.append(
            OriginEntry(
                name=entry.config_name,
                layout=data.layout,
                unread=unread[entry.config_name],
                settings=_settings(entry),
            )
        )
        parts += [_mixture_part(data, shard, on_error) for shard in shards]
    groups = {data.entries[0].length_group for data in configs}
    return Origin(
        identity={"mixture": [[data.config_name, data.fingerprint] for data in configs]},
        places=[path for data in configs for path in places_of(data)],
        parts=parts,
        entries=entries,
        layout=Layout.widest((data.config_name, data.layout) for data in configs),
        top={
            "weights": {group: weight for group, weight in mixture.weights.items() if group in groups},
            "batch_sizes": {group: factor for group, factor in mixture.batch_sizes.items() if group in groups},
            "seed": mixture.seed,
        },
    )


def places_of(data: ConfigData) -> list[str]:
    """The files and folders that a config is made of."""
    return [*(file.path for files in data.files for file in files), *data.image_roots.roots]


def _mixture_part(data: ConfigData, shard: Shard, on_error: str) -> Part:
    return Part(
        label=shard.file.path,
        entry=shard.entry.config_name,
        roots=ImageRoots.of_entry(shard.entry, shard.file.path, is_only=True),
        skips=on_error == "skip" or shard.entry.on_error == "skip",
        read=lambda tally: data.tables(shard, tally, with_rows=True),
    )


def _settings(entry: Entry) -> dict[str, Any]:
    """What the new entry keeps of the old one. Its samples have been checked, so a placeholder that does not fit is a
    mistake, unless the entry did not count them.
    """
    uncounted = entry.placeholders == "off" or (entry.preprocess is not None and bool(entry.preprocess.uncounted))
    given = {"length_group": entry.length_group, "license": entry.license, "source": entry.source}
    settings = {key: value for key, value in given.items() if value is not None and value != "default"}
    return {**settings, "placeholders": "off" if uncounted else "strict"}
