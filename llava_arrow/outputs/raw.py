"""The raw LLaVA layout: one JSON of records beside a folder of images, as the trainers read it.

    OUT_DIR/data.json          [{"id": …, "image": "<data_source>/a.jpg", "conversations": […]}, …]; written last
    OUT_DIR/images/…           the bytes of the images, as they are
    OUT_DIR/mixture.yaml       the same samples as a mixture: load it, and every column is as it was
    OUT_DIR/report.json, ledger.jsonl

Names depend on the samples before them, so one process gives all names, in order; images and records are written by as
many processes as asked for. An image that is there is not written again: that is how a killed run goes on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from llava_arrow.column_types import is_list_type
from llava_arrow.errors import ConfigError, OutputError
from llava_arrow.ledger import LedgerLine, Tally, sum_by_place
from llava_arrow.mixture import Mixture
from llava_arrow.outputs.dataset_origin import dataset_origin, is_parquet_folder, parquet_origin
from llava_arrow.outputs.image_files import ImageFile, ImageFolder, images_of, lines_of, name_images
from llava_arrow.outputs.names import ImageNames, is_safe_path
from llava_arrow.outputs.origins import Origin, Part, mixture_origin
from llava_arrow.outputs.processes import check_num_proc, run_numbered
from llava_arrow.outputs.raw_mixture import PartSummary, new_mixture
from llava_arrow.outputs.target import LEDGER, REPORT, STATE_DIR, Target
from llava_arrow.paths import is_url
from llava_arrow.plan_cache import PlanCache
from llava_arrow.sources import ROW
from llava_arrow.sources.files import detect_format

__all__ = ["RawExport", "export_raw"]

FORMAT = 1
PARTS = f"{STATE_DIR}/parts"
MIXTURE = "mixture.yaml"


@dataclass(frozen=True)
class RawExport:
    """What `export_raw` wrote. `report` is as `builder.report()`, per entry; a dataset is reported as `data`.
    `num_images_written` are those of this run: what an earlier one has written is left.
    """

    out_dir: str
    json_path: str
    num_samples: int
    num_images_written: int
    report: dict[str, Any] = field(repr=False)
    was_complete: bool = False


def export_raw(
    source: Any,
    out_dir: str | os.PathLike[str],
    *,
    config_names: Sequence[str] | None = None,
    json_name: str = "data.json",
    image_dir: str = "images",
    jsonl: bool = False,
    num_proc: int | None = None,
    on_error: str = "raise",
    by_bytes: bool = False,
    image_root: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    cache_dir: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> RawExport:
    """Write samples as LLaVA JSON and an image folder.

    Args:
        source: a mixture (`Mixture`, path or name), a `datasets.Dataset`, an `IterableDataset`, or a folder or URL of
            Parquet files.
        out_dir: a local folder; new, empty, or left by an earlier run.
        config_names: configs of the mixture or Parquet folder; None is every entry of a mixture.
        json_name: the file of records. With `jsonl`, or a name that ends so, one record per line instead of an array.
        image_dir: the folder of images beside it; `image` of a record is relative to it.
        num_proc: processes.
        on_error: `skip` puts a sample whose image cannot be read into the ledger (as `on_error: skip` of its entry
            does), `raise` stops there.
        by_bytes: images with equal bytes become one file, also when they come from different places.
        image_root: wins over that of the entries; of a dataset: below which references are read.
        overwrite: replace what an earlier export wrote into `out_dir`.
        progress: called now and then with what is being worked on.

    Raises:
        ConfigError: a wrong argument or mixture. ImageError: an image cannot be read. OutputError: `out_dir` holds
        something else, or cannot be written. A run that was stopped or killed goes on when it is started again.
    """
    _check_arguments(json_name, image_dir, on_error, num_proc)
    if is_url(os.fspath(out_dir)):
        raise ConfigError(f"out_dir must be a local folder, got {os.fspath(out_dir)!r}: image by image, a URL is slow")
    if jsonl and json_name == "data.json":
        json_name = "data.jsonl"
    cache = PlanCache(cache_dir)
    origin = _open(source, config_names, image_root, on_error, num_proc, cache)
    if origin.is_stream and (num_proc or 1) > 1:
        raise ConfigError("a stream is read by one process: leave num_proc out")
    target = Target(out_dir)
    plan = {
        "format": FORMAT,
        "kind": "raw",
        **origin.identity,
        "mixture_file": origin.settings,
        "json_name": json_name,
        "image_dir": image_dir,
        "on_error": on_error,
        "by_bytes": by_bytes,
        "jsonl": jsonl or not json_name.endswith(".json"),
    }
    try:
        if target.claim(plan, overwrite=overwrite, sources=origin.places) == "complete":
            manifest = target.manifest() or {}
            report = target.read_json(REPORT) or {}
            return RawExport(
                target.root, target.path(json_name), int(manifest.get("num_samples", 0)), 0, report, was_complete=True
            )
        return _Exporter(origin, target, plan).run(num_proc, progress)
    finally:
        target.close()


def _check_arguments(json_name: str, image_dir: str, on_error: str, num_proc: int | None) -> None:
    reserved = (MIXTURE, REPORT, LEDGER, STATE_DIR)
    for key, name in (("json_name", json_name), ("image_dir", image_dir)):
        if not is_safe_path(name) or "/" in name or name in reserved:
            raise ConfigError(f"{key} must be a plain name and none of {', '.join(reserved)}, got {name!r}")
    if detect_format(json_name) not in (("json", None), ("jsonl", None)) or "$" in json_name:
        raise ConfigError(f"json_name must end in .json or .jsonl, so that it can be read again, got {json_name!r}")
    if json_name == image_dir:
        raise ConfigError(f"json_name and image_dir must differ, both are {json_name!r}")
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    check_num_proc(num_proc)


def _open(
    source: Any,
    config_names: Sequence[str] | None,
    image_root: str | os.PathLike[str] | None,
    on_error: str,
    num_proc: int | None,
    cache: PlanCache,
) -> Origin:
    root = None if image_root is None else os.fspath(image_root)
    if root is not None and not is_url(root):
        root = os.path.abspath(root)
    if isinstance(source, (str, os.PathLike)) and is_parquet_folder(source):
        return parquet_origin(os.fspath(source), config_names, image_root=root, on_error=on_error)
    if source is None or isinstance(source, (str, os.PathLike, Mixture)):
        mixture = Mixture.load(source, image_root=root)
        num_parts = None if (num_proc or 1) == 1 else 8 * (num_proc or 1)
        return mixture_origin(mixture, config_names, num_parts=num_parts, on_error=on_error, cache=cache)
    if config_names:
        raise ConfigError("config_names is for mixtures and Parquet folders: a dataset is one config already")
    return dataset_origin(source, image_root=root, on_error=on_error)


class _Exporter:
    """One export into a claimed folder."""

    def __init__(self, origin: Origin, target: Target, plan: Mapping[str, Any]) -> None:
        self.origin, self.target, self.plan = origin, target, plan
        self.image_dir: str = plan["image_dir"]
        self.image_columns = frozenset(origin.layout.all_image_columns)
        self.names = ImageNames()
        self._progress: Callable[[str], None] | None = None

    def run(self, num_proc: int | None, progress: Callable[[str], None]) -> RawExport:
        """Write everything."""
        numbers = range(len(self.origin.parts))
        is_alone = (num_proc or 1) == 1
        given = numbers if is_alone else self._named_ahead(numbers)
        summaries: dict[int, PartSummary] = {}
        self._progress = progress if is_alone else None
        with closing(run_numbered(lambda n: self._write_part(n, is_alone), given, num_proc=num_proc)) as written:
            for number, summary in written:
                summaries[number] = summary
                progress(f"{sum(done.num_samples for done in summaries.values()):,} samples")
        return self._finish([summaries[number] for number in numbers])

    def _named_ahead(self, numbers: Sequence[int]) -> Iterator[int]:
        """The numbers of the parts, each when the names of its images are in a file."""
        for number in numbers:
            part = self.origin.parts[number]
            with self.target.create(f"{PARTS}/names-{number:06d}.txt") as file:
                for table in part.read(Tally()):
                    images = self._named(table, part)
                    file.write("".join(f"{image.name}\t{_mark_of(image)}\n" for image in images).encode())
            yield number

    def _named(self, table: pa.Table, part: Part) -> list[ImageFile]:
        images = images_of(table, self.image_columns)
        name_images(images, table, self.names, part.roots, by_bytes=self.plan["by_bytes"])
        self.target.log_files(lines_of(images, self.image_dir))
        return images

    def _known_names(self, number: int) -> Iterator[tuple[str, str]]:
        with open(self.target.path(f"{PARTS}/names-{number:06d}.txt"), encoding="utf-8", newline="\n") as file:
            for line in file:
                name, _, mark = line.rstrip("\n").rpartition("\t")
                yield name, mark

    def _write_part(self, number: int, is_alone: bool) -> PartSummary:
        """The images and records of one part."""
        part = self.origin.parts[number]
        summary = PartSummary(entry=part.entry)
        known = iter(()) if is_alone else self._known_names(number)
        folder = ImageFolder(self.target.path(self.image_dir), self.target.path(f"{STATE_DIR}/unfinished"), part.roots)
        try:
            with self.target.create(f"{PARTS}/{number:06d}.jsonl") as file:
                for table in part.read(summary.tally):
                    if is_alone:
                        images = self._named(table, part)
                    else:
                        images = images_of(table, self.image_columns)
                        for image in images:
                            image.name, mark = next(known)
                            image.is_open, image.is_unnamed = mark == "?", mark == "!"
                    folder.store(images)
                    self._write_records(table, images, part, summary, file)
                    if self._progress is not None:
                        self._progress(f"{summary.num_samples:,} samples of part {number + 1}")
        finally:
            folder.close()
        summary.num_images_written = folder.num_written
        return summary

    def _write_records(
        self, table: pa.Table, images: Sequence[ImageFile], part: Part, summary: PartSummary, file: BinaryIO
    ) -> None:
        rows = table.column(ROW).to_pylist()
        bad = self._settle(images, rows, table, part, summary)
        plain = [name for name in table.column_names if name not in self.image_columns and name != ROW]
        columns = {name: _as_json(table.column(name)) for name in plain}
        paths: dict[tuple[int, str], list[str]] = {}
        for image in images:
            paths.setdefault((image.row, image.column), []).append(image.name)
        order = [name for name in table.column_names if name != ROW]
        lines = bytearray()
        num_samples = 0
        for i in range(table.num_rows):
            if rows[i] in bad:
                continue
            record: dict[str, Any] = {}
            for name in order:
                if name in columns:
                    value = columns[name][i]
                else:
                    found = paths.get((i, name))
                    value = found[0] if found is not None and len(found) == 1 else found
                if value is not None:
                    record[name] = value
            lines += _ENCODER.encode(record) + b"\n"
            num_samples += 1
            source = record.get("data_source")
            summary.note_source(source if source is None else str(source))
        file.write(bytes(lines))
        summary.num_samples += num_samples

    def _settle(
        self, images: Sequence[ImageFile], rows: Sequence[int], table: pa.Table, part: Part, summary: PartSummary
    ) -> set[int]:
        """The rows that cannot leave, into the ledger with all samples made of them; or the first error."""
        bad: set[int] = set()
        for image in images:
            row = rows[image.row]
            if image.error is None or row in bad:
                continue
            sample_id = str(table.column("id")[image.row].as_py()) if "id" in table.column_names else None
            if not part.skips:
                raise image.error.at(f"{part.label} row {row} (sample {sample_id!r})") from image.error.__cause__
            bad.add(row)
            summary.tally.ledger.append(LedgerLine(part.label, row, sample_id, image.error.code, image.error.message))
        summary.tally.delivered -= len(bad)
        summary.tally.samples -= sum(row in bad for row in rows) if bad else 0
        return bad

    def _finish(self, summaries: Sequence[PartSummary]) -> RawExport:
        target, plan = self.target, self.plan
        num_samples = sum(summary.num_samples for summary in summaries)
        tallies = self._tallies(summaries)
        if not num_samples:
            first = next((line for tally in tallies.values() for line in tally.ledger), None)
            reason = f": {first.code}: {first.reason}" if first is not None else ""
            raise OutputError(f"there is no sample to write{reason}", code="nothing_to_write")
        report = {name: tally.to_report() for name, tally in tallies.items()}
        mixture, mark = new_mixture(self.origin, summaries, json_name=plan["json_name"], image_dir=self.image_dir)
        target.log_files([MIXTURE, REPORT, LEDGER, plan["json_name"]])
        target.write_account(report, [tallies])
        target.write_text(MIXTURE, mixture)
        with target.create(plan["json_name"]) as file:
            self._join(summaries, mark, file)
        sizes = {name: target.size(name) for name in (MIXTURE, plan["json_name"])}
        target.finish({**plan, "num_samples": num_samples, "sizes": sizes})
        num_images = sum(summary.num_images_written for summary in summaries)
        return RawExport(target.root, target.path(plan["json_name"]), num_samples, num_images, report)

    def _tallies(self, summaries: Sequence[PartSummary]) -> dict[str, Tally]:
        names = [entry.name for entry in self.origin.entries] or [""]
        unread = {entry.name: entry.unread for entry in self.origin.entries}
        tallies = {}
        for name in names:
            parts = [summary.tally for summary in summaries if summary.entry == name]
            tallies[name or "data"] = sum_by_place([*parts, unread.get(name, Tally())])
        return tallies

    def _join(self, summaries: Sequence[PartSummary], mark: str | None, file: BinaryIO) -> None:
        """All records in one file, each with the entry it is of under the key `mark`."""
        is_array = not self.plan["jsonl"]
        separator = b",\n" if is_array else b"\n"
        is_first = True
        if is_array:
            file.write(b"[\n")
        for number, summary in enumerate(summaries):
            beginning = b"" if mark is None else b"{%b:%b," % tuple(map(msgspec.json.encode, (mark, summary.entry)))
            with open(self.target.path(f"{PARTS}/{number:06d}.jsonl"), "rb") as part:
                while True:
                    lines = part.readlines(1 << 20)
                    if not lines:
                        break
                    texts = [line[:-1] for line in lines]
                    if mark is not None:
                        texts = [beginning + text[1:] for text in texts]
                    file.write((b"" if is_first else separator) + separator.join(texts))
                    is_first = False
        file.write(b"\n]\n" if is_array else b"\n")


def _mark_of(image: ImageFile) -> str:
    """`?` for a name that lacks its extension, `!` for an image that could not be read and has no name."""
    return "!" if image.error is not None else "?" if image.is_open else ""


def _other_values(value: Any) -> Any:
    """Points in time of any unit; JSON has none of them."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise NotImplementedError


_ENCODER = msgspec.json.Encoder(enc_hook=_other_values)


def _as_json(column: pa.ChunkedArray) -> list[Any]:
    """Values as JSON has them: NaN and the infinities become texts, for which it has no numbers."""
    values: list[Any] = column.to_pylist()
    kind = getattr(column.type, "storage_type", column.type)  # arrays of datasets are lists in disguise
    return [_finite(value) for value in values] if _holds_floats(kind) else values


def _holds_floats(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_floats(kind.field(i).type) for i in range(kind.num_fields))
    return _holds_floats(kind.value_type) if is_list_type(kind) else bool(pa.types.is_floating(kind))


def _finite(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return "NaN"
        return float(value) if math.isfinite(value) else "-Infinity" if value < 0 else "Infinity"
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return {key: _finite(item) for key, item in value.items()} if isinstance(value, dict) else value
