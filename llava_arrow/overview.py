"""Looking at a mixture without building it: what is wrong with it, how many rows it keeps, what a row becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from llava_arrow.config_data import ConfigData
from llava_arrow.entry import Entry
from llava_arrow.errors import MixtureError
from llava_arrow.ledger import Tally, sum_tallies
from llava_arrow.mixture import Mixture, find_mixture, folder_of, parse_mixture, read_document
from llava_arrow.pipeline import preview_rows
from llava_arrow.plan import count_range, plan_shards
from llava_arrow.plan_cache import PlanCache
from llava_arrow.shards import DataFile
from llava_arrow.sources import RECORD, ROW
from llava_arrow.sources.columns import layout_of
from llava_arrow.sources.files import data_files
from llava_arrow.sources.records import DECODE_ERRORS

__all__ = ["EntryCounts", "count_entry", "group_shares", "preview_entry", "validate_mixture"]

Progress = Callable[[str], None]


def validate_mixture(
    spec: str | None, *, cache: PlanCache, progress: Progress = lambda name: None, **overrides: Any
) -> Mixture:
    """Check the file, then every entry's data files, their columns, and whether there are as many rows as sampling
    asks for.

    Raises:
        ConfigError: all that is wrong, of the file and of the data, in one list.
    """
    path = find_mixture(spec if spec is not None else "default")
    given = {name: value for name, value in overrides.items() if value is not None}
    parsed = parse_mixture(read_document(path), base_dir=folder_of(path), path=path, overrides=given)
    for entry in parsed.entries:
        progress(entry.config_name)
        try:
            files = data_files(entry)
            layout_of(entry, files, cache)
            plan_shards(entry, cache=cache, files=files)
        except MixtureError as error:
            parsed.add(("datasets", entry.index), f"datasets[{entry.index}] {entry.name!r}: {error.message}")
    return parsed.mixture()


@dataclass(frozen=True)
class EntryCounts:
    """Rows of an entry: in its files, after the filters, after sampling; and samples, copies counted."""

    entry: Entry
    num_files: int
    tally: Tally
    num_kept: int

    @property
    def num_passed(self) -> int:
        """Rows that pass the filters."""
        return self.tally.delivered

    @property
    def num_samples(self) -> int:
        """Samples that the kept rows give."""
        return self.num_kept * self.entry.sampling_strategy.num_copies


def count_entry(entry: Entry, *, cache: PlanCache, files: Sequence[DataFile] | None = None) -> EntryCounts:
    """Count an entry's rows, reading only what its filters compare. Remembered.

    Args:
        files: the entry's files, when the caller has listed them already.
    """
    files = data_files(entry) if files is None else files
    plan = plan_shards(entry, cache=cache, files=files)
    if entry.sampling_strategy.needs_count:
        counted = [shard.counted for shard in plan.shards if shard.counted is not None]
        unread = Tally()
        unread.add(plan.unread)
        unread.delivered, unread.not_sampled = plan.unread.not_sampled, 0
        tally = sum_tallies([*counted, unread])
    else:
        question = ("total", tuple((shard.file, shard.range) for shard in plan.shards), _filters_of(entry))
        ranges = [(shard.file, shard.range) for shard in plan.shards]
        tally = cache.remember(question, lambda: sum_tallies(count_range(entry, *part) for part in ranges))
    return EntryCounts(entry, len(files), tally, entry.sampling_strategy.num_kept(tally.delivered))


def _filters_of(entry: Entry) -> tuple[Any, ...]:
    return (entry.columns, entry.aes_cutoff, entry.min_size, entry.max_enc_images, entry.on_error)


def group_shares(mixture: Mixture, counts: Mapping[str, EntryCounts]) -> dict[str, float]:
    """Config name → its share of a weighted mixture: groups by weight, entries of a group by their samples."""
    total_weight = sum(mixture.weight(group) for group in mixture.groups)
    shares = {}
    for group, entries in mixture.groups.items():
        group_samples = sum(counts[entry.config_name].num_samples for entry in entries)
        for entry in entries:
            within = counts[entry.config_name].num_samples / max(1, group_samples)
            shares[entry.config_name] = mixture.weight(group) / total_weight * within
    return shares


def preview_entry(
    mixture: Mixture, config_name: str, num_rows: int, *, cache: PlanCache
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The first kept rows of an entry and the samples of each, as (row, samples)."""
    data = ConfigData.open(mixture, config_name, cache=cache)
    plan = plan_shards(data.entries[0], cache=cache, files=data.files[0])
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for shard in plan.shards:
        for row, samples in preview_rows(shard, layout=data.layouts[0], num_rows=num_rows - len(found)):
            found.append((_readable(row), samples))
        if len(found) >= num_rows:
            break
    return found


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    text = row.get(RECORD)
    if text is None:
        return {column: value for column, value in row.items() if column != ROW}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except DECODE_ERRORS:
        return {"text": text.decode("utf-8", "replace")}
