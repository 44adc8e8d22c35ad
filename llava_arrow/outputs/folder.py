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
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from llava_arrow.config_data import ConfigData
from llava_arrow.errors import OutputError
from llava_arrow.ledger import Tally, sum_by_place
from llava_arrow.mixture import Mixture
from llava_arrow.outputs.card import CardConfig, card_digest, card_text
from llava_arrow.outputs.names import safe_name
from llava_arrow.outputs.origins import open_configs, places_of
from llava_arrow.outputs.parquet import PartRecord, write_part
from llava_arrow.outputs.processes import check_num_proc, run_numbered
from llava_arrow.outputs.target import FILES, LEDGER, README, REPORT, STATE_DIR, Target
from llava_arrow.outputs.units import DEFAULT_SHARD_BYTES, ConfigUnits, check_shard_bytes, plan_all_units
from llava_arrow.plan_cache import PlanCache

__all__ = ["ParquetExport", "export_parquet"]

FORMAT = 1
PARTS, MOVES, RECORDS = f"{STATE_DIR}/parts", f"{STATE_DIR}/moves.json", f"{STATE_DIR}/records.json"


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
    sources = [path for data in configs for path in places_of(data)]
    try:
        is_complete = target.claim(plan, overwrite=overwrite, sources=sources) == "complete"
        exporter = _Exporter(loaded, configs, target, plan)
        return exporter.finished() if is_complete else exporter.run(cache, num_proc, progress)
    finally:
        target.close()


@dataclass(frozen=True)
class _Unit:
    """Unit `index` of a config."""

    config: ConfigUnits
    index: int

    def name(self, number: int | None = None) -> str:
        """Where the unit's record is kept, or its file `number` until all are there."""
        folder = f"{PARTS}/{config_folder(self.config.data.config_name)}"
        return (
            f"{folder}/{self.index:06d}.json" if number is None else f"{folder}/{self.index:06d}-{number:04d}.parquet"
        )


class _Exporter:
    """One export into a claimed folder."""

    def __init__(self, mixture: Mixture, datas: Sequence[ConfigData], target: Target, plan: dict[str, Any]) -> None:
        self.mixture, self.datas, self.target, self.plan = mixture, datas, target, plan
        self.configs: list[ConfigUnits] = []
        self.units: list[_Unit] = []

    @property
    def _card_digest(self) -> str:
        return card_digest(self.mixture, [entry for data in self.datas for entry in data.entries])

    def finished(self) -> ParquetExport:
        """What a complete folder holds; where the mixture says something else of it now, its card is made anew."""
        manifest, report = self.target.manifest() or {}, self.target.read_json(REPORT) or {}
        done = ParquetExport(self.target.root, manifest.get("files", {}), report, was_complete=True)
        stored = self.target.read_json(RECORDS)
        if manifest.get("card") != self._card_digest and isinstance(stored, dict):
            cards = []
            for data in self.datas:
                records = [PartRecord.from_json(record) for record in stored[data.config_name]["records"]]
                tallies = {n: Tally.from_json(tally) for n, tally in stored[data.config_name]["tallies"].items()}
                cards.append(self._card(data, records, tallies))
            self._write_card(cards)
            self.target.finish({**manifest, "card": self._card_digest})
        return done

    def _card(self, data: ConfigData, records: Sequence[PartRecord], tallies: dict[str, Tally]) -> CardConfig:
        return CardConfig.of(data, records, tallies, pattern=f"{config_folder(data.config_name)}/train-*")

    def _write_card(self, cards: Sequence[CardConfig]) -> None:
        self.target.write_text(README, card_text(self.mixture, cards, location=None))

    def run(self, cache: PlanCache, num_proc: int | None, progress: Callable[[str], None]) -> ParquetExport:
        """Write everything that is not there yet."""
        self.configs = plan_all_units(self.datas, self.plan["max_shard_bytes"], cache, self.target)
        self.units = [_Unit(config, i) for config in self.configs for i in range(len(config.units))]
        records = self._finished()
        todo = [number for number in range(len(self.units)) if number not in records]
        with closing(run_numbered(self._write, todo, num_proc=num_proc)) as written:
            for number, record in written:
                records[number] = record
                self._must_be_there(number, record)
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

    def _must_be_there(self, number: int, record: PartRecord) -> None:
        """What another process says it has written must be seen here."""
        unit = self.units[number]
        for file in record.files:
            if self.target.size(unit.name(file.number)) != file.num_bytes:
                raise OutputError(
                    f"{self.target.path(unit.name(file.number))} was written by another process, and is not there: "
                    f"processes do not share this filesystem, leave num_proc out",
                    code="cannot_write",
                )

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
        stored: dict[str, Any] = {}
        tallies: dict[str, dict[str, Tally]] = {}
        for config in self.configs:
            name = config.data.config_name
            own = [(unit, record) for unit, record in zip(self.units, records, strict=True) if unit.config is config]
            tallies[name] = sum_config(config, [record for _, record in own])
            old = [unit.name(file.number) for unit, record in own for file in record.files]
            files[name] = [f"{config_folder(name)}/train-{i:05d}-of-{len(old):05d}.parquet" for i in range(len(old))]
            moves.update(zip(old, files[name], strict=True))
            records_of = [record for _, record in own]
            cards.append(self._card(config.data, records_of, tallies[name]))
            stored[name] = {
                "records": [record.to_json() for record in records_of],
                "tallies": {entry: tally.to_json() for entry, tally in tallies[name].items()},
            }
        target.log_files([*moves.values(), README, REPORT, LEDGER])
        before: dict[str, str] = target.read_json(MOVES) or {}
        target.write_text(MOVES, json.dumps(moves))
        for old_name, new_name in moves.items():
            known = before.get(old_name, old_name)  # an earlier run may have moved it, under another number of files
            if target.exists(old_name):
                target.move(old_name, new_name)
            elif known != new_name and target.exists(known):
                target.move(known, new_name)
        current = {name for names in files.values() for name in names}
        for name in target.read_lines(FILES):
            if name.endswith(".parquet") and name not in current:  # of a run whose files were others
                target.remove(name)
        report = {name: {e: t.to_report() for e, t in found.items()} for name, found in tallies.items()}
        target.write_account(report, tallies.values())
        self._write_card(cards)
        target.write_text(RECORDS, json.dumps(stored))
        sizes = {name: target.size(name) for name in moves.values()}
        target.finish({**self.plan, "files": files, "card": self._card_digest, "sizes": sizes})
        return ParquetExport(target.root, files, report)


def config_folder(config_name: str) -> str:
    """The folder of a config: its name, where that is safe and no file of ours has it."""
    name = safe_name(config_name)
    return f"{name}-config" if name.lower() in (README.lower(), REPORT, LEDGER) else name


def sum_config(config: ConfigUnits, records: Sequence[PartRecord]) -> dict[str, Tally]:
    """Entry → the account of its rows; an error where nothing of an entry was delivered."""
    totals = {}
    for entry in config.data.entries:
        name = entry.config_name
        totals[name] = sum_by_place([*(r.tallies[name] for r in records if name in r.tallies), config.unread[name]])
    config.data.check_report(totals)
    return totals
