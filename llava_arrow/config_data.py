"""What a builder, an export or a loader needs of one config: its entries, their files, columns and shards, and a
fingerprint.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from hashlib import sha256
from typing import Any

import pyarrow as pa

from llava_arrow.column_types import Layout
from llava_arrow.entry import Entry
from llava_arrow.errors import ConfigError, SourceError
from llava_arrow.image_roots import ImageRoots
from llava_arrow.ledger import Tally
from llava_arrow.mixture import Mixture
from llava_arrow.pipeline import iter_tables
from llava_arrow.plan import apportion, named, plan_shards
from llava_arrow.plan_cache import PlanCache
from llava_arrow.preprocess.registry import did_you_mean
from llava_arrow.shards import DataFile, Shard
from llava_arrow.sources.columns import layout_of
from llava_arrow.sources.files import data_files

__all__ = ["ConfigData", "check_arguments"]

SAMPLE_FORMAT = "1"
"""Goes up when the same mixture gives other samples than before: built datasets are then built anew."""
NOT_IN_SAMPLES = ("index", "length_group", "license", "source", "preprocess")
"""Fields of an entry that do not change its samples (the function has a fingerprint of its own)."""


ARGUMENTS: dict[str, tuple[Any, str]] = {
    "mixture": (Mixture | str | os.PathLike, "a Mixture, a path or a name"),
    "image_root": (str | os.PathLike, "a path"),
    "image_columns": (str, "'list'"),
    "num_shards": (int, "a whole number ≥ 1"),
    "seed": (int, "a whole number"),
    "embed_images": (bool, "true or false"),
    "on_error": (str, "'raise' or 'skip'"),
    "path_map": (dict, "a mapping of texts to texts"),
    "trust_custom_code": (bool, "true or false"),
}


def check_arguments(config_name: object, arguments: Mapping[str, Any]) -> None:
    """A ConfigError where a builder argument is unknown or of the wrong kind; None means not given."""
    if config_name is not None and not isinstance(config_name, str):
        raise ConfigError(f"the config name must be a text, got {config_name!r}")
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            raise ConfigError(f"the builder has no argument {name!r}{did_you_mean(name, ARGUMENTS, 'it takes ')}")
        kind, spelling = ARGUMENTS[name]
        is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if isinstance(value, dict) and is_right:
            is_right = all(isinstance(text, str) for pair in value.items() for text in pair)
        if name == "num_shards" and is_right:
            is_right = value >= 1
        if value is not None and not is_right:
            raise ConfigError(f"{name} must be {spelling}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ConfigData:
    """One config of a mixture, its files listed and its columns known; nothing of it is read yet."""

    mixture: Mixture
    config_name: str
    entries: tuple[Entry, ...]
    files: tuple[tuple[DataFile, ...], ...]
    layouts: tuple[Layout, ...]
    layout: Layout
    embed_images: bool
    export: bool = False

    @classmethod
    def open(
        cls,
        mixture: Mixture,
        config_name: str,
        *,
        cache: PlanCache,
        image_columns: str | None = None,
        embed_images: bool = False,
        export: bool = False,
    ) -> ConfigData:
        """List the files of a config and find out its columns.

        Args:
            image_columns: `list` makes every image column a list; None leaves them as the entries say.
            embed_images: samples carry image bytes instead of references.
            export: images are read from below the entries' image roots only.

        Raises:
            ConfigError: no such config, or columns that do not fit together. SourceError: a file is missing.
        """
        if image_columns not in (None, "list"):
            raise ConfigError(f"image_columns must be 'list' or not given, got {image_columns!r}")
        entries = mixture.select(config_name)
        files = tuple(tuple(data_files(entry)) for entry in entries)
        layouts = tuple(
            named(entry, partial(layout_of, entry, found, cache)) for entry, found in zip(entries, files, strict=True)
        )
        layout = Layout.widest((entry.config_name, own) for entry, own in zip(entries, layouts, strict=True))
        return cls(
            mixture=mixture,
            config_name=config_name,
            entries=entries,
            files=files,
            layouts=layouts,
            layout=layout.with_list_images() if image_columns == "list" else layout,
            embed_images=embed_images,
            export=export,
        )

    @property
    def image_roots(self) -> ImageRoots:
        """Where the images of all entries may lie."""
        found: list[str] = []
        for entry, files in zip(self.entries, self.files, strict=True):
            firsts = {posixpath.dirname(file.path): file.path for file in reversed(files)}  # one file of each folder
            for path in reversed(firsts.values()):
                found += ImageRoots.of_entry(entry, path).roots
        return ImageRoots.of(found)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all that the samples depend on: entries, files (size, mtime or etag), preprocess code,
        columns.
        """
        digest = sha256(repr((SAMPLE_FORMAT, self.embed_images, dict(self.layout.kinds))).encode())
        for entry, files in zip(self.entries, self.files, strict=True):
            plain = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name not in NOT_IN_SAMPLES}
            digest.update(repr((plain, files)).encode("utf-8", "surrogatepass"))
            if entry.preprocess is not None:
                digest.update(entry.preprocess.fingerprint.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def plan(self, *, num_shards: int | None, cache: PlanCache) -> tuple[list[Shard], dict[str, Tally]]:
        """The shards of all entries, in order, and per entry the counts of what no shard covers.

        Args:
            num_shards: how many altogether, spread by size; each file gives one at least.
        """
        shards: list[Shard] = []
        unread: dict[str, Tally] = {}
        shares: list[int | None] = [None] * len(self.entries)
        if num_shards is not None:
            shares = list(apportion([sum(file.size for file in files) for files in self.files], num_shards))
        for entry, files, share in zip(self.entries, self.files, shares, strict=True):
            plan = named(entry, partial(plan_shards, entry, num_shards=share, cache=cache, files=files))
            shards += plan.shards
            unread[entry.config_name] = plan.unread
        return shards, unread

    def tables(self, shard: Shard, tally: Tally | None = None, *, with_rows: bool = False) -> Iterator[pa.Table]:
        """The samples of a shard in the config's columns, and their row numbers if asked for."""
        names = [entry.config_name for entry in self.entries]
        own = self.layouts[names.index(shard.entry.config_name)]
        return iter_tables(
            shard,
            layout=own,
            target=self.layout,
            embed_images=self.embed_images,
            export=self.export,
            with_rows=with_rows,
            tally=tally,
        )

    def check_report(self, tallies: dict[str, Tally]) -> dict[str, Any]:
        """The report of a complete build; an entry of which nothing was delivered is an error."""
        for name, tally in tallies.items():
            if not tally.delivered:
                reason = f": {tally.ledger[0].code}: {tally.ledger[0].reason}" if tally.ledger else ""
                raise SourceError(
                    f"entry {name!r}: none of its {tally.rows:,} rows was delivered, {len(tally.ledger):,} "
                    f"failed{reason}"
                )
            accounted = tally.delivered + sum(tally.filtered.values()) + tally.not_sampled + len(tally.ledger)
            assert tally.rows == accounted, f"entry {name!r}: {tally.rows} rows, {accounted} accounted for"
        return {name: tally.to_report() for name, tally in tallies.items()}
