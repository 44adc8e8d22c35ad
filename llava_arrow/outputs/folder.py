"""A folder of Parquet files that `load_dataset(folder, config)` reads without this package.

    OUT_DIR/README.md                                the card, and in its YAML the configs
    OUT_DIR/<config>/train-00000-of-00007.parquet    images inside
    OUT_DIR/report.json, ledger.jsonl

Units of work are fixed in the plan. A finished unit leaves a record beside its files, so a killed run goes on with the
next one; files get their names when all are there, and the manifest comes last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from llava_arrow.config_data import ConfigData
from llava_arrow.ledger import Tally, sum_tallies, write_ledger
from llava_arrow.mixture import Mixture
from llava_arrow.outputs.card import CardConfig, card_text
from llava_arrow.outputs.names import safe_name
from llava_arrow.outputs.origins import open_configs
from llava_arrow.outputs.parquet import PartRecord, write_part
from llava_arrow.outputs.processes import check_num_proc, run_numbered
from llava_arrow.outputs.target import STATE_DIR, Target, TextFile
from llava_arrow.outputs.units import DEFAULT_SHARD_BYTES, ConfigUnits, check_shard_bytes, plan_units
from llava_arrow.plan_cache import PlanCache

__all__ = ["ParquetExport", "export_parquet"]

FORMAT = 1
PARTS, MOVES = f"{STATE_DIR}/parts", f"{STATE_DIR}/parts/moves.json"
README, REPORT, LEDGER = "README.md", "report.json", "ledger.jsonl"


@dataclass(frozen=True)
class ParquetExport:
    """What `export_parquet` wrote: per config its files, and per config the report of `builder.report()`."""

    out_dir: str
    files: dict[str, list[str]]
    report: dict[str, Any] = field(repr=False)
    was_complete: bool = False


def export_parquet(
    mixture: Any,
    out_dir: str | os.PathLike[str],
    *,
    config_names: Sequence[str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    num_proc: int | None = None,
    image_columns: str | None = None,
    overwrite: bool = False,
    cache_dir: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> ParquetExport:
    """Write configs as Parquet files with embedded images, and a card.

    The same mixture and pyarrow give the same bytes, for any number of processes.

    Args:
        mixture: a `Mixture`, a path or a name.
        out_dir: a local folder or any fsspec URL; new, empty, or left by an earlier run.
        config_names: None is every entry; `mixture`, all of them in one config, must be asked for.
        max_shard_bytes: a file is no larger (unless a single sample is).
        num_proc: processes.
        image_columns: `list` makes every image column a list.
        overwrite: replace what an earlier export wrote into `out_dir`.
        progress: called with the number of units that are done.

    Raises:
        ConfigError: a wrong argument or mixture. MixtureError: a bad row, with its place. OutputError: `out_dir` holds
        something else, or cannot be written. A run that was stopped or killed goes on when it is started again.
    """
    check_shard_bytes(max_shard_bytes)
    check_num_proc(num_proc)
    loaded = Mixture.load(mixture)
    cache = PlanCache(cache_dir)
    configs = open_configs(loaded, config_names, cache=cache, image_columns=image_columns)
    target = Target(out_dir)
    plan = {
        "format": FORMAT,
        "kind": "parquet",
        "configs": {data.config_name: data.fingerprint for data in configs},
        "max_shard_bytes": max_shard_bytes,
        "pyarrow": pa.__version__,
    }
    try:
        if target.claim(plan, overwrite=overwrite) == "complete":
            manifest = target.manifest() or {}
            report = target.read_json(REPORT) or {}
            return ParquetExport(target.root, manifest.get("files", {}), report, was_complete=True)
        return _Exporter(loaded, configs, target, plan, cache).run(num_proc, progress)
    finally:
        target.close()


@dataclass(frozen=True)
class _Unit:
    """Unit `index` of a config."""

    config: ConfigUnits
    index: int

    def name(self, number: int | None = None) -> str:
        """Where the unit's record is kept, or its file `number` until all are there."""
        folder = f"{PARTS}/{safe_name(self.config.data.config_name)}"
        return (
            f"{folder}/{self.index:06d}.json" if number is None else f"{folder}/{self.index:06d}-{number:04d}.parquet"
        )


class _Exporter:
    """One export into a claimed folder."""

    def __init__(
        self, mixture: Mixture, configs: Sequence[ConfigData], target: Target, plan: dict[str, Any], cache: PlanCache
    ) -> None:
        self.mixture, self.target, self.plan = mixture, target, plan
        size = plan["max_shard_bytes"]
        self.configs = [plan_units(data, max_shard_bytes=size, cache=cache) for data in configs]
        self.units = [_Unit(config, i) for config in self.configs for i in range(len(config.units))]

    def run(self, num_proc: int | None, progress: Callable[[str], None]) -> ParquetExport:
        """Write everything that is not there yet."""
        records = self._finished()
        todo = [number for number in range(len(self.units)) if number not in records]
        for number, record in run_numbered(self._write, todo, num_proc=num_proc):
            records[number] = record
            progress(f"{len(records)} of {len(self.units)} parts")
        return self._finish([records[number] for number in range(len(self.units))])

    def _finished(self) -> dict[int, PartRecord]:
        """The units that an earlier run has finished, by their records."""
        moved: dict[str, Any] = self.target.read_json(MOVES) or {}
        found: dict[int, PartRecord] = {}
        for number, unit in enumerate(self.units):
            stored = self.target.read_json(unit.name())
            if stored is None:
                continue
            record = PartRecord.from_json(stored)
            names = [unit.name(file.number) for file in record.files]
            sizes = [file.num_bytes for file in record.files]
            if all(
                size in (self.target.size(n), self.target.size(moved.get(n, n)))
                for n, size in zip(names, sizes, strict=True)
            ):
                found[number] = record
        return found

    def _write(self, number: int) -> PartRecord:
        unit = self.units[number]
        record = write_part(
            unit.config.data,
            unit.config.units[unit.index],
            lambda file_number: self.target.create(unit.name(file_number)),
            max_file_bytes=self.plan["max_shard_bytes"],
        )
        self.target.write_text(unit.name(), json.dumps(record.to_json()))
        return record

    def _finish(self, records: Sequence[PartRecord]) -> ParquetExport:
        target = self.target
        files: dict[str, list[str]] = {}
        moves: dict[str, str] = {}
        cards: list[CardConfig] = []
        tallies: dict[str, dict[str, Tally]] = {}
        for config in self.configs:
            name = config.data.config_name
            own = [(unit, record) for unit, record in zip(self.units, records, strict=True) if unit.config is config]
            tallies[name] = sum_config(config, [record for _, record in own])
            old = [unit.name(file.number) for unit, record in own for file in record.files]
            files[name] = [f"{safe_name(name)}/train-{i:05d}-of-{len(old):05d}.parquet" for i in range(len(old))]
            moves.update(zip(old, files[name], strict=True))
            cards.append(
                CardConfig.of(config.data, [r for _, r in own], tallies[name], pattern=f"{safe_name(name)}/train-*")
            )
        target.write_text(MOVES, json.dumps(moves))
        target.log_files([*moves.values(), README, REPORT, LEDGER])
        for old_name, new_name in moves.items():
            if target.exists(old_name):  # else an earlier run has moved it
                target.move(old_name, new_name)
        with target.create(LEDGER) as file:
            for config_tallies in tallies.values():
                write_ledger(config_tallies, TextFile(file))
        report = {name: {e: t.to_report() for e, t in found.items()} for name, found in tallies.items()}
        target.write_text(REPORT, json.dumps(report, indent=2, ensure_ascii=False))
        target.write_text(README, card_text(self.mixture, cards, location=None))
        target.finish({**self.plan, "files": files})
        target.remove_state("parts")
        return ParquetExport(target.root, files, report)


def sum_config(config: ConfigUnits, records: Sequence[PartRecord]) -> dict[str, Tally]:
    """Entry → the account of its rows; an error where nothing of an entry was delivered."""
    totals = {}
    for entry in config.data.entries:
        name = entry.config_name
        totals[name] = sum_tallies([*(r.tallies[name] for r in records if name in r.tallies), config.unread[name]])
        totals[name].ledger.sort(key=lambda line: (line.file, line.row))
    config.data.check_report(totals)
    return totals
