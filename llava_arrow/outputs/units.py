"""Which samples go into which part of a Parquet export: fixed by the data, whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from llava_arrow.config_data import ConfigData
from llava_arrow.errors import ConfigError
from llava_arrow.ledger import Tally
from llava_arrow.overview import count_entry
from llava_arrow.plan import named, plan_shards
from llava_arrow.plan_cache import PlanCache
from llava_arrow.shards import Shard

__all__ = ["ConfigUnits", "check_shard_bytes", "plan_units"]

DEFAULT_SHARD_BYTES = 500_000_000
FILLED = 0.9
"""Part sizes are estimates: that much of a file they may fill, so that few parts need a second file."""


@dataclass(frozen=True)
class ConfigUnits:
    """A config cut into units of work, in the order of its samples, and the counts of what no unit covers."""

    data: ConfigData
    units: list[list[Shard]]
    unread: dict[str, Tally]
    num_samples: int
    estimated_bytes: int


def check_shard_bytes(value: object) -> int:
    """`value`; a ConfigError where it is no number of bytes."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"max_shard_bytes must be a whole number of bytes ≥ 1, got {value!r}")
    return value


def plan_units(data: ConfigData, *, max_shard_bytes: int, cache: PlanCache) -> ConfigUnits:
    """Cut a config so that each unit gives about one file of at most `max_shard_bytes`.

    The size of a sample is estimated from the first ones of each entry, images included.
    """
    units: list[list[Shard]] = []
    unread: dict[str, Tally] = {}
    total = estimated = 0
    for entry, files in zip(data.entries, data.files, strict=True):
        num_samples = named(entry, partial(count_entry, entry, cache=cache)).num_samples
        whole = named(entry, partial(plan_shards, entry, cache=cache, files=files))
        num_bytes = num_samples * _bytes_per_sample(data, whole.shards)
        wanted = max(1, math.ceil(num_bytes / (FILLED * max_shard_bytes)))
        plan = named(entry, partial(plan_shards, entry, num_shards=wanted, cache=cache, files=files))
        units += _grouped(plan.shards, wanted)
        unread[entry.config_name] = plan.unread
        total += num_samples
        estimated += int(num_bytes)
    return ConfigUnits(data, units, unread, total, estimated)


def _bytes_per_sample(data: ConfigData, shards: Sequence[Shard]) -> float:
    for shard in shards:
        table: pa.Table | None = next(data.tables(shard, Tally()), None)
        if table is not None:
            return float(table.nbytes / table.num_rows)
    return 1.0


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
