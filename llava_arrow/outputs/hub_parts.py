"""The parts of a push: made one by one, sent ahead of the commit, and freed here as soon as the Hub has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing

from llava_arrow.config_data import ConfigData
from llava_arrow.outputs.folder import config_folder
from llava_arrow.outputs.hub_client import HubRepo
from llava_arrow.outputs.parquet import PartFile, PartRecord, write_part
from llava_arrow.outputs.processes import run_numbered
from llava_arrow.outputs.target import Target
from llava_arrow.outputs.units import ConfigUnits, plan_all_units
from llava_arrow.plan_cache import PlanCache

__all__ = ["SentParts"]

NUM_UPLOADS = 2
"""Files on their way at once; each is sent over one connection."""


class SentParts:
    """What is at the Hub already, noted in `target`, a local folder; `marks` are part of the names of files, `known`
    the SHA-256 of files that the repository holds.
    """

    def __init__(
        self,
        datas: Sequence[ConfigData],
        repo: HubRepo,
        target: Target,
        marks: Mapping[str, str],
        *,
        known: frozenset[str] = frozenset(),
    ) -> None:
        self._datas, self._repo, self.target, self._marks, self._known = datas, repo, target, marks, known
        self.num_sent = 0
        self.configs: list[ConfigUnits] = []
        self.units: list[tuple[ConfigUnits, int]] = []
        self.records: dict[int, PartRecord] = {}
        self._digests: dict[tuple[int, int], str] = {}
        self._local: set[tuple[int, int]] = set()

    def records_of(self, config: ConfigUnits) -> list[PartRecord]:
        """The records of a config's parts, in order."""
        return [self.records[number] for number, (of, _) in enumerate(self.units) if of is config]

    def files_of(self, config: ConfigUnits) -> list[tuple[PartFile, str, str | None]]:
        """The files of a config in order: each with its SHA-256, and its local path where it travels in the commit."""
        found = []
        for number, (of, _) in enumerate(self.units):
            for file in self.records[number].files if of is config else ():
                key = (number, file.number)
                local = self.target.path(_part_name(*key)) if key in self._local else None
                found.append((file, self._digests[key], local))
        return found

    def make_and_send(
        self,
        max_shard_bytes: int,
        cache: PlanCache,
        num_proc: int | None,
        progress: Callable[[str], None],
    ) -> None:
        """All parts at the Hub, those of earlier runs included; each is freed here as soon as it is there."""
        self.configs = plan_all_units(self._datas, max_shard_bytes, cache, self.target)
        self.units = [(config, index) for config in self.configs for index in range(len(config.units))]
        self._recall()
        todo = [number for number in range(len(self.units)) if number not in self.records]

        def make(number: int) -> PartRecord:
            config, index = self.units[number]
            return write_part(
                config.data,
                config.units[index],
                lambda file_number: self.target.create(_part_name(number, file_number)),
                max_file_bytes=max_shard_bytes,
            )

        pending: dict[Future[dict[int, str | None]], tuple[int, PartRecord]] = {}
        with ThreadPoolExecutor(NUM_UPLOADS) as pool:
            with closing(run_numbered(make, todo, num_proc=num_proc)) as made:
                for number, record in made:
                    while len(pending) >= NUM_UPLOADS:
                        self._settle(pending, progress)
                    pending[pool.submit(self._send, number, record)] = (number, record)
            while pending:
                self._settle(pending, progress)

    def _recall(self) -> None:
        """What earlier runs have sent, as far as the Hub still holds it."""
        for number in range(len(self.units)):
            stored = self.target.read_json(_record_name(number))
            if stored is not None:
                digests = {int(file): digest for file, digest in stored["sha256"].items()}
                kept = [file for file, digest in digests.items() if stored["is_local"][str(file)]]
                if all(self.target.exists(_part_name(number, file)) for file in kept):
                    self._remember(number, PartRecord.from_json(stored["record"]), digests, kept)
        sizes = {
            (number, file.number): file.num_bytes for number, record in self.records.items() for file in record.files
        }
        objects = {self._digests[key]: size for key, size in sizes.items() if key not in self._local}
        lost = self._repo.missing(list(objects.items())) if objects else set()
        dropped = {number for (number, _), digest in self._digests.items() if digest in lost}
        for number in dropped:
            self.records.pop(number, None)
        self._digests = {key: digest for key, digest in self._digests.items() if key[0] not in dropped}
        self._local = {key for key in self._local if key[0] not in dropped}

    def _remember(self, number: int, record: PartRecord, digests: dict[int, str], kept: Sequence[int]) -> None:
        self.records[number] = record
        self._digests.update({(number, file): digest for file, digest in digests.items()})
        self._local.update((number, file) for file in kept)

    def _send(self, number: int, record: PartRecord) -> dict[int, str | None]:
        """File → its SHA-256, once its content is at the Hub."""
        config, index = self.units[number]
        sent: dict[int, str | None] = {}
        for file in record.files:
            local = self.target.path(_part_name(number, file.number))
            name = config.data.config_name
            path = f"{config_folder(name)}/part-{index:05d}-{file.number:03d}-{self._marks[name]}.parquet"
            digest = _sha256(local)
            is_there = digest in self._known or self._repo.upload(local, path)
            sent[file.number] = digest if is_there else None
        return sent

    def _settle(
        self,
        pending: dict[Future[dict[int, str | None]], tuple[int, PartRecord]],
        progress: Callable[[str], None],
    ) -> None:
        """Wait for uploads; note what was sent, and free it."""
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            number, record = pending.pop(future)
            sent = future.result()
            kept = [file for file, digest in sent.items() if digest is None]
            digests = {f: d or _sha256(self.target.path(_part_name(number, f))) for f, d in sent.items()}
            self._remember(number, record, digests, kept)
            stored = {"record": record.to_json(), "sha256": digests, "is_local": {f: f in kept for f in digests}}
            self.target.write_text(_record_name(number), json.dumps(stored))
            for file_number in digests:
                if file_number not in kept:
                    self.target.remove(_part_name(number, file_number))
            self.num_sent += sum(digest not in self._known for digest in digests.values())
            progress(f"sent {len(self.records)} of {len(self.units)} parts")


def _record_name(number: int) -> str:
    return f"sent/{number:06d}.json"


def _part_name(number: int, file_number: int) -> str:
    return f"parts/{number:06d}-{file_number:04d}.parquet"


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
