"""Which samples go into which part of a Parquet export: fixed by the data, whatever the number of processes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from llava_arrow.config_data import ConfigData
from llava_arrow.errors import ConfigError
from llava_arrow.images import image_sizes
from llava_arrow.ledger import Tally
from llava_arrow.outputs.parquet import fixed_bytes
from llava_arrow.outputs.target import STATE_DIR, Target
from llava_arrow.overview import count_entry
from llava_arrow.pipeline import REMOTE_IMAGE_BYTES, first_samples
from llava_arrow.plan import named, plan_shards
from llava_arrow.plan_cache import PlanCache
from llava_arrow.shards import Shard

__all__ = ["ConfigUnits", "check_shard_bytes", "cuts_of", "estimates_of", "plan_all_units", "plan_units"]

CUTS = f"{STATE_DIR}/cuts.json"
DEFAULT_SHARD_BYTES = 500_000_000
NUM_MEASURED, NUM_LOOKED_AT = 256, 8
"""Rows by which samples are taken to be as large as they are, and shards in which such rows are looked for."""
FILLED = 0.9
"""Part sizes are estimates: that much of a file they may fill, so that few parts need a second file."""


@dataclass(frozen=True)
class ConfigUnits:
    """A config cut into units of work, in the order of its samples, and the counts of what no unit covers."""

    data: ConfigData
    units: list[list[Shard]]
    unread: dict[str, Tally]


@dataclass(frozen=True)
class Estimate:
    """Samples of an entry, and about how many bytes they take."""

    num_samples: int
    num_bytes: float


def check_shard_bytes(value: object) -> int:
    """`value`; a ConfigError where it is no number of bytes."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"max_shard_bytes must be a whole number of bytes ≥ 1, got {value!r}")
    return value


def plan_all_units(
    datas: Sequence[ConfigData], max_shard_bytes: int, cache: PlanCache, target: Target
) -> list[ConfigUnits]:
    """The units of each config, cut as an earlier run into `target` has cut them: images may have changed since, and
    with them the estimates.
    """
    cuts: dict[str, list[int]] = target.read_json(CUTS) or {}
    for data in datas:
        if data.config_name not in cuts:
            cuts[data.config_name] = cuts_of(data, estimates_of(data, cache), max_shard_bytes)
    planned = [plan_units(data, cuts[data.config_name], cache) for data in datas]
    target.write_text(CUTS, json.dumps(cuts))
    return planned


def estimates_of(data: ConfigData, cache: PlanCache) -> list[Estimate]:
    """Per entry: the size of a sample is taken from the first ones and the sizes of their images."""
    found = []
    for entry, files in zip(data.entries, data.files, strict=True):
        num_samples = named(entry, partial(count_entry, entry, cache=cache, files=files)).num_samples
        whole = named(entry, partial(plan_shards, entry, cache=cache, files=files))
        found.append(Estimate(num_samples, num_samples * _bytes_per_sample(data, whole.shards)))
    return found


def cuts_of(data: ConfigData, estimates: Sequence[Estimate], max_shard_bytes: int) -> list[int]:
    """Into how many units each entry is cut so that each gives about one file of at most `max_shard_bytes`."""
    usable = max(1, max_shard_bytes - sum(fixed_bytes(data.layout)))
    return [max(1, math.ceil(estimate.num_bytes / (FILLED * usable))) for estimate in estimates]


def plan_units(data: ConfigData, cuts: Sequence[int], cache: PlanCache) -> ConfigUnits:
    """A config with entry number i cut into about `cuts[i]` units."""
    units: list[list[Shard]] = []
    unread: dict[str, Tally] = {}
    for entry, files, wanted in zip(data.entries, data.files, cuts, strict=True):
        plan = named(entry, partial(plan_shards, entry, num_shards=wanted, cache=cache, files=files))
        units += _grouped(plan.shards, wanted)
        unread[entry.config_name] = plan.unread
    return ConfigUnits(data, units, unread)


def _bytes_per_sample(data: ConfigData, shards: Sequence[Shard]) -> float:
    names = [entry.config_name for entry in data.entries]
    for shard in shards[:NUM_LOOKED_AT]:
        layout = data.layouts[names.index(shard.entry.config_name)]
        table: pa.Table | None = first_samples(shard, layout=layout, num_rows=NUM_MEASURED)
        if table is not None and table.num_rows:
            images = int(image_sizes(table, layout, REMOTE_IMAGE_BYTES).sum())
            return float((table.nbytes + images) / table.num_rows)
    return float(REMOTE_IMAGE_BYTES)


def _grouped(shards: list[Shard], num_units: int) -> list[list[Shard]]:
    """Neighbouring shards (of many small files) joined into about `num_units` units of the same size."""
    extents: dict[str, int] = {}
    for shard in shards:
        extents[shard.file.path] = extents.get(shard.file.path, 0) + shard.range.stop - shard.range.start
    sizes = [
        shard.file.size * (shard.range.stop - shard.range.start) / max(1, extents[shard.file.path]) for shard in shards
    ]
    total = max(1e-9, sum(sizes))
    units: list[list[Shard]] = [[] for _ in range(num_units)]
    before = 0.0
    for shard, size in zip(shards, sizes, strict=True):
        units[min(num_units - 1, int((before + size / 2) / total * num_units))].append(shard)
        before += size
    return [unit for unit in units if unit]
