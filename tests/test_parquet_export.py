"""`export_parquet`: the files are what `datasets` and the viewer expect, the same however they are made, and a run that
was stopped anywhere goes on as if nothing had been.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import inspect
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile
from huggingface_hub import metadata_load
from PIL import Image

from llava_arrow import (
    ConfigError,
    Mixture,
    MixtureError,
    OutputError,
    PreprocessError,
    export_parquet,
    register_preprocess,
)
from llava_arrow.config_data import ConfigData
from llava_arrow.ledger import Tally
from llava_arrow.plan_cache import PlanCache
from llava_mixture import LlavaMixture
from tests.conftest import MakeMixture, captions, chat, write_json, write_table

STATE = ".llava-mixture"
MAIN_PROCESS = os.getpid()


def photo(number: int, num_bytes: int = 1000) -> bytes:
    """A small real JPEG, followed by bytes up to the size."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number % 256, number // 256, 7)).save(buffer, "JPEG")
    head, tail = buffer.getvalue(), str(number).encode() + b"."
    return (head + tail * (max(0, num_bytes - len(head)) // len(tail) + 1))[:num_bytes]


def write_photos(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """`p/0.jpg`, `p/1.jpg` … of these sizes, and a row for each."""
    (folder / "p").mkdir(exist_ok=True)
    for i, size in enumerate(sizes):
        (folder / "p" / f"{i}.jpg").write_bytes(photo(i, min(size, 1_000_000)))
        os.truncate(folder / "p" / f"{i}.jpg", size)
    return [
        {"id": f"r{i}", "image": f"p/{i}.jpg", "conversations": chat("<image>\nq", f"a{i}")} for i in range(len(sizes))
    ]


def image_entry(folder: Path, sizes: list[int], **more: Any) -> dict[str, Any]:
    """An entry of as many rows as sizes."""
    write_json(folder / "a.json", write_photos(folder, sizes))
    return {"name": "a", "json_path": "a.json", "multi_image": False, **more}


class Out:
    """Exports into a folder, and what is there."""

    def __init__(self, root: Path, cache_dir: Path) -> None:
        self.root, self.cache_dir = root, cache_dir

    def export(self, mixture: Any, **arguments: Any) -> Any:
        return export_parquet(mixture, self.root, cache_dir=str(self.cache_dir), **arguments)

    def fails(self, mixture: Any, kind: type[MixtureError] = MixtureError, **arguments: Any) -> str:
        """The message of an export that fails and leaves nothing that looks whole."""
        with pytest.raises(kind) as error:
            self.export(mixture, **arguments)
        assert not self.looks_whole()
        return error.value.message

    def looks_whole(self) -> bool:
        """Whether somebody could take it for a dataset."""
        return any(not name.startswith(STATE) for name in self.files()) or f"{STATE}/manifest.json" in self.files()

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def tree(self) -> dict[str, str]:
        """Digest of every file that is not part of our own account of the export."""
        return {
            name: hashlib.sha256((self.root / name).read_bytes()).hexdigest()
            for name in self.files()
            if not name.startswith(STATE)
        }

    def parts(self, config: str = "a") -> list[Path]:
        return sorted((self.root / config).iterdir())

    def rows(self, config: str = "a") -> list[dict[str, Any]]:
        return [row for path in self.parts(config) for row in pq.ParquetFile(path).read().to_pylist()]

    def ids(self, config: str = "a") -> list[str]:
        return [row["id"] for row in self.rows(config)]

    def report(self, config: str = "a", entry: str = "a") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "report.json").read_text(encoding="utf-8"))
        return found[config][entry]

    def ledger(self) -> list[dict[str, Any]]:
        lines = (self.root / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path / "out", tmp_path / "plan-cache")


@pytest.fixture
def another(tmp_path: Path) -> Callable[[str], Out]:
    return lambda name: Out(tmp_path / name, tmp_path / "plan-cache")


def in_child(work: Callable[[], Any]) -> int:
    """`work()` in a process of its own; its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


_opened: list[str] | None = None


def _audit(event: str, arguments: Any) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_audit)


@contextmanager
def opened_images() -> Iterator[list[str]]:
    """The image files that this process opens meanwhile, as the interpreter reports them."""
    global _opened
    found: list[str] = []
    _opened = opened = []
    try:
        yield found
    finally:
        _opened = None
        found += [name for name in opened if name.endswith(".jpg")]


# --------------------------------------------------------------------------------------------- what datasets loads


@pytest.fixture(scope="module")
def default_export(tmp_path_factory: pytest.TempPathFactory) -> Out:
    folder = tmp_path_factory.mktemp("default")
    out = Out(folder / "my data ü", folder / "plan-cache")
    out.export("default", config_names=Mixture.load("default").config_names, max_shard_bytes=300_000)
    return out


def undecoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(getattr(feature, "feature", None), datasets.Image):
        return type(feature)(datasets.Image(decode=False))
    return feature


def plain(dataset: Any) -> list[dict[str, Any]]:
    """All samples, images as `{bytes, path}`."""
    features = datasets.Features({name: undecoded(kind) for name, kind in dataset.features.items()})
    return list(dataset.cast(features))


@pytest.mark.parametrize("name", Mixture.load("default").config_names)
def test_a_config_loads_without_this_package_and_holds_what_a_build_holds(name: str, default_export: Out) -> None:
    folder = str(default_export.root)
    loaded = datasets.load_dataset(folder, name, split="train")
    streamed = datasets.load_dataset(folder, name, split="train", streaming=True)
    builder = LlavaMixture(config_name=name)
    builder.download_and_prepare()
    built = builder.as_dataset("train")
    assert loaded.features == streamed.features == built.features
    samples = plain(loaded)
    assert plain(streamed) == samples
    for sample, reference in zip(samples, plain(built), strict=True):
        for column, value in reference.items():
            if not column.startswith("image"):
                assert sample[column] == value
                continue
            images, references = (v if isinstance(v, list) else [v] for v in (sample[column], value))
            for image, given in zip(images, references, strict=True):
                if given is None:
                    assert image is None
                    continue
                assert image["bytes"] == (given["bytes"] or Path(given["path"]).read_bytes())
                assert not os.path.isabs(image["path"])
    assert len(list(loaded)) == len(samples)  # all of it decodes


def test_the_files_carry_the_features_in_the_spelling_of_all_versions(default_export: Out) -> None:
    (path, *_) = default_export.parts("edits")
    schema = pq.read_schema(path)
    text = {"dtype": "string", "_type": "Value"}
    flag = {"dtype": "bool", "_type": "Value"}
    assert json.loads(schema.metadata[b"huggingface"]) == {
        "info": {
            "features": {
                "id": text,
                "data_source": text,
                "image": [{"_type": "Image"}],
                "image_gen": {"_type": "Image"},
                "image_gen_enc": [{"_type": "Image"}],
                "conversations": [{"from": text, "value": text}],
                "pad_image_gen": flag,
                "reweight": flag,
                "pixel_diff": flag,
            }
        }
    }
    alone = datasets.load_dataset("parquet", data_files=str(path), split="train")
    assert alone.features == datasets.load_dataset(str(default_export.root), "edits", split="train").features


def test_the_config_mixture_has_the_widest_columns(default_export: Out) -> None:
    rows = default_export.rows("mixture")
    single = [row for name in Mixture.load("default").config_names[1:] for row in default_export.rows(name)]
    assert [row["id"] for row in rows] == [row["id"] for row in single]
    for row, own in zip(rows, single, strict=True):
        for column, value in row.items():
            given = own.get(column)
            if column in ("image", "image_gen", "image_gen_enc") and isinstance(value, list):
                given = given if isinstance(given, list) else [] if given is None else [given]
            assert value == given, (row["id"], column)
    kinds = {field.name: field.type for field in pq.read_schema(default_export.parts("mixture")[0])}
    assert pa.types.is_list(kinds["image"])
    assert pa.types.is_struct(kinds["image_gen"])


def test_every_image_column_can_be_a_list(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    rows = write_photos(folder, [900, 900])
    rows.insert(1, {"id": "text", "conversations": chat("q", "a")})
    write_json(folder / "a.json", rows)
    out.export(make_mixture({"name": "a", "json_path": "a.json", "multi_image": False}), image_columns="list")
    images = [[image["path"] for image in row["image"]] for row in out.rows()]
    assert images == [["p/0.jpg"], [], ["p/1.jpg"]]
    loaded = datasets.load_dataset(str(out.root), "a", split="train")
    assert [[image.size for image in row["image"]] for row in loaded] == [[(8, 6)], [], [(8, 6)]]
    assert (
        loaded.features["image"]
        == LlavaMixture(config_name="a", mixture=str(folder / "x.yaml"), image_columns="list").info.features["image"]
    )


def test_null_images_and_empty_lists_stay_what_they_are(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    write_photos(folder, [900])
    one = [{"id": "t", "conversations": chat("q", "a")}, {"id": "n", "image": None, "conversations": chat("q", "a")}]
    write_json(folder / "one.json", one)
    many = [{"id": "e", "image": [], "conversations": chat("q", "a")}, *one]
    many.append({"id": "p", "image": ["p/0.jpg"] * 2, "conversations": chat("<image><image>q", "a")})
    write_json(folder / "many.json", many)
    entries = [{"name": name, "json_path": f"{name}.json", "multi_image": name == "many"} for name in ("one", "many")]
    out.export(make_mixture(*entries))
    assert [row["image"] for row in out.rows("one")] == [None, None]
    assert [len(row["image"]) for row in out.rows("many")] == [0, 0, 0, 2]
    assert [row["image"] for row in datasets.load_dataset(str(out.root), "one", split="train")] == [None, None]


# ------------------------------------------------------------------------------------------- what the files look like


def groups_of(paths: list[Path]) -> list[Any]:
    metas = [pq.read_metadata(path) for path in paths]
    return [meta.row_group(i) for meta in metas for i in range(meta.num_row_groups)]


def test_row_groups_with_images_are_small_enough_for_the_viewer(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    out.export(make_mixture(image_entry(folder, [900] * 250)))
    groups = groups_of(out.parts())
    assert [group.num_rows for group in groups] == [100, 100, 50]
    for group in groups:
        for i in range(group.num_columns):
            column = group.column(i)
            assert column.has_offset_index, column.path_in_schema
            is_image = column.path_in_schema == "image.bytes"
            is_text = column.path_in_schema.startswith("conversations.")
            assert column.has_column_index == column.is_stats_set == (not is_image and not is_text)
            assert column.compression == ("UNCOMPRESSED" if is_image else "ZSTD")
            assert ("RLE_DICTIONARY" in column.encodings) != is_image


def test_row_groups_are_cut_at_a_hundred_million_bytes(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    out.export(make_mixture(image_entry(folder, [45_000_000] * 3)))
    groups = groups_of(out.parts())
    assert [group.num_rows for group in groups] == [2, 1]
    assert max(group.total_byte_size for group in groups) <= 100_000_000


def text_rows(num_rows: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "conversations": chat(f"question {i}", "a")} for i in range(num_rows)]


@pytest.mark.parametrize("features", [{"image": "none"}, None])
def test_row_groups_without_images_are_large(
    features: dict[str, str] | None, folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    write_json(folder / "a.json", text_rows(25_000))
    entry = (
        {"name": "a", "json_path": "a.json", "features": features}
        if features
        else {"name": "a", "json_path": "a.json"}
    )
    out.export(make_mixture(entry))
    sizes = [group.num_rows for group in groups_of(out.parts())]
    assert sum(sizes) == 25_000
    assert min(sizes[:-1]) >= 10_000


def test_chunks_are_cut_by_content_and_pages_indexed_where_pyarrow_can(
    folder: Path, make_mixture: MakeMixture, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    signature = inspect.signature(pq.ParquetWriter.__init__)

    class Spy(pq.ParquetWriter):
        __init__ = pq.ParquetWriter.__init__

    def make(*args: Any, **options: Any) -> Any:
        given.append(options)
        return Spy(*args, **options)

    make.__init__ = pq.ParquetWriter.__init__  # type: ignore[attr-defined]
    monkeypatch.setattr(pq, "ParquetWriter", make)
    monkeypatch.setattr(inspect, "signature", lambda function: signature)
    out.export(make_mixture(image_entry(folder, [900])))
    assert given[0]["write_page_index"]
    assert given[0].get("use_content_defined_chunking", False) == (
        "use_content_defined_chunking" in signature.parameters
    )


SHAPES = {
    "equal": [9_990] * 40,
    "ten of them fill a file": [9_880] * 40,
    "growing": [1_000 * i for i in range(1, 41)],
    "small, then large": [500] * 200 + [45_000] * 8,
    "alone": [60_000] * 5,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_file_is_larger_than_asked_for(shape: str, folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    sizes = SHAPES[shape]
    out.export(make_mixture(image_entry(folder, sizes)), max_shard_bytes=100_000)
    assert out.ids() == [f"r{i}" for i in range(len(sizes))]
    assert [path.stat().st_size for path in out.parts() if path.stat().st_size > 100_000] == []


def test_text_that_cannot_be_compressed_does_not_make_a_file_too_large(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    texts = [hashlib.shake_256(str(i).encode()).hexdigest(1_000) for i in range(300)]
    write_json(folder / "a.json", [{"id": f"r{i}", "conversations": chat(text, text)} for i, text in enumerate(texts)])
    out.export(make_mixture({"name": "a", "json_path": "a.json"}), max_shard_bytes=60_000)
    assert out.ids() == [f"r{i}" for i in range(300)]
    assert [path.stat().st_size for path in out.parts() if path.stat().st_size > 60_000] == []


def test_long_ids_and_paths_do_not_make_a_file_too_large(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    rows = write_photos(folder, [800] * 100)
    deep = folder / "d" / ("e" * 190) / ("f" * 190) / ("g" * 190)
    deep.mkdir(parents=True)
    for i, row in enumerate(rows):
        row["id"] = hashlib.shake_256(str(i).encode()).hexdigest(1_000)
        path = deep / f"{hashlib.shake_256(str(i).encode()).hexdigest(80)}.jpg"
        (folder / row["image"]).rename(path)
        row["image"] = str(path.relative_to(folder))
    write_json(folder / "a.json", rows)
    out.export(make_mixture({"name": "a", "json_path": "a.json", "multi_image": False}), max_shard_bytes=20_000)
    assert out.ids() == [row["id"] for row in rows]
    assert [path.stat().st_size for path in out.parts() if path.stat().st_size > 20_000] == []


def test_a_sample_larger_than_a_file_has_one_for_itself(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    out.export(make_mixture(image_entry(folder, [2_000, 2_000, 300_000, 2_000])), max_shard_bytes=100_000)
    assert out.ids() == ["r0", "r1", "r2", "r3"]
    large = [path for path in out.parts() if path.stat().st_size > 100_000]
    assert [pq.read_metadata(path).num_rows for path in large] == [1]


def test_many_small_data_files_become_few_parts(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    rows = write_photos(folder, [2_000] * 200)
    (folder / "d").mkdir()
    for i in range(50):
        write_json(folder / "d" / f"{i:02d}.json", rows[4 * i : 4 * i + 4])
    out.export(
        make_mixture({"name": "a", "json_path": "d", "image_root": ".", "multi_image": False}), max_shard_bytes=150_000
    )
    assert out.ids() == [f"r{i}" for i in range(200)]  # 400,000 bytes of images
    assert 3 <= len(out.parts()) <= 5
    assert [path.name for path in out.parts()] == [
        f"train-{i:05d}-of-{len(out.parts()):05d}.parquet" for i in range(len(out.parts()))
    ]


def test_a_filter_that_keeps_only_the_end_leaves_no_empty_file(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    write_photos(folder, [2_000] * 1000)
    scores = [1.0] * 900 + [9.0] * 50 + [1.0] * 25 + [9.0] * 25
    columns = captions(1000, fltLaionAesthScore=pa.array(scores, pa.float32()), id=[f"r{i}" for i in range(1000)])
    write_table(folder / "a.parquet", columns, row_group_size=100)
    entry = {"name": "a", "json_path": "a.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    out.export(make_mixture({**entry, "aes_cutoff": 5}), max_shard_bytes=50_000, num_proc=2)
    assert out.ids() == [f"r{i}" for i in [*range(900, 950), *range(975, 1000)]]
    assert min(pq.read_metadata(path).num_rows for path in out.parts()) > 0
    report = out.report()
    assert (report["rows"], report["filtered"], report["delivered"]) == (1000, {"aes_cutoff": 925}, 75)


def test_copies_stand_next_to_each_other(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    out.export(make_mixture(image_entry(folder, [3_000] * 5, sampling_strategy="dup:3")), max_shard_bytes=20_000)
    assert out.ids() == [f"r{i}{copy}" for i in range(5) for copy in ("", "-dup1", "-dup2")]
    images = [row["image"]["bytes"] for row in out.rows()]
    assert images == [photo(i, 3_000) for i in range(5) for _ in range(3)]
    assert out.report() | {"undeclared": 0} == {
        "rows": 5, "filtered": {}, "not_sampled": 0, "delivered": 5, "samples": 15, "repaired": 0, "trimmed": 0,
        "undeclared": 0, "ledger": 0,
    }  # fmt: skip


def test_copies_of_a_large_image_are_not_all_in_memory_at_once(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    mixture = make_mixture(image_entry(folder, [2_000_000], sampling_strategy="dup:80"))
    data = ConfigData.open(mixture, "a", cache=cache, embed_images=True, export=True)
    (shard,) = data.plan(num_shards=1, cache=cache)[0]
    tables = list(data.tables(shard, Tally()))
    assert sum(table.num_rows for table in tables) == 80
    assert max(table.get_total_buffer_size() for table in tables) < 64_000_000


@register_preprocess("test_parquet_sometimes", fills={"image": "one"})
def sometimes(row: Any, *, rng: Any) -> dict[str, Any]:
    if row["id"] == "r1" and rng.random() < 0.01:
        raise PreprocessError("bad luck", code="luck")
    return {"id": row["id"], "image": row["image"], "conversations": row["conversations"]}


def test_a_row_of_which_one_copy_of_many_fails_is_left_out_with_all_copies(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    write_json(folder / "a.json", write_photos(folder, [900] * 3))
    entry = {"name": "a", "json_path": "a.json", "preprocess_fn": "test_parquet_sometimes", "on_error": "skip"}
    out.export(make_mixture({**entry, "sampling_strategy": "dup:400"}))
    assert out.ids() == [f"r{i}" + (f"-dup{copy}" if copy else "") for i in (0, 2) for copy in range(400)]
    report = out.report()
    assert (report["rows"], report["delivered"], report["samples"], report["ledger"]) == (3, 2, 800, 1)
    assert [(line["row"], line["code"]) for line in out.ledger()] == [(1, "luck")]


# ------------------------------------------------------------------------------------------------------ determinism


def test_the_bytes_do_not_depend_on_processes_caches_or_folders(
    folder: Path, make_mixture: MakeMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [500 + 97 * (i % 50) for i in range(120)]
    entry = image_entry(folder, sizes)
    write_json(folder / "t.json", text_rows(200))
    entries = [entry, {"name": "t", "json_path": "t.json", "sampling_strategy": "random:50%"}]
    names = ["mixture", "a", "t"]
    mixture = make_mixture(*entries)
    trees = []
    for i, num_proc in enumerate((None, 1, 2, 3)):
        made = Out(tmp_path / f"out{i}", tmp_path / f"cache{i}")
        made.export(mixture, config_names=names, num_proc=num_proc, max_shard_bytes=60_000)
        trees.append(made.tree())
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    monkeypatch.chdir(moved)
    made = Out(tmp_path / "out9", tmp_path / "cache9")
    made.export("x.yaml", config_names=names, num_proc=2, max_shard_bytes=60_000)
    monkeypatch.undo()
    assert len(trees[0]) > 15
    assert all(tree == trees[0] for tree in [*trees, made.tree()])


# ---------------------------------------------------------------------------------------------------------- resuming


class StoppedError(Exception):
    """Somebody pressed Ctrl-C."""


def stop_after(num_parts: int) -> Callable[[str], None]:
    def progress(text: str) -> None:
        if text.startswith(f"{num_parts} of"):
            raise StoppedError

    return progress


def test_killed_anywhere_and_run_again_it_is_as_if_never_killed(
    folder: Path, make_mixture: MakeMixture, out: Out, another: Callable[[str], Out]
) -> None:
    mixture = make_mixture(image_entry(folder, [3_000] * 7))
    reference = another("reference")
    reference.export(mixture, max_shard_bytes=12_000)
    moments = 0

    def killed_at(moment: int) -> None:
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count > moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def wrapped(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                tick()
                result = function(*args, **kwargs)
                tick()
                return result

            return call

        for module, name in ((os, "replace"), (shutil, "rmtree"), (os, "remove")):
            setattr(module, name, wrapped(getattr(module, name)))
        out.export(mixture, max_shard_bytes=12_000)

    leftovers: dict[int, list[str]] = {}
    while (code := in_child(functools.partial(killed_at, moments))) != 0:
        assert code == -signal.SIGKILL
        is_whole = f"{STATE}/manifest.json" in out.files()
        assert not is_whole or out.tree() == reference.tree(), moments
        done = {path.name: path.stat().st_mtime_ns for path in (out.root / STATE / "parts").rglob("*.parquet")}
        records = len(list((out.root / STATE / "parts").rglob("0*.json")))
        out.export(mixture, max_shard_bytes=12_000)
        assert out.tree() == reference.tree(), moments
        times = {path.stat().st_mtime_ns for path in out.root.glob("*/*.parquet")}
        kept = sum(time in times for time in done.values())
        assert kept >= min(records, len(done)), moments  # what was finished is not made again
        extra = sorted(set(out.files()) - set(reference.files()))
        if extra:
            leftovers[moments] = extra
        shutil.rmtree(out.root)
        moments += 1
    assert moments > 20
    assert leftovers == {}


def wait_for_lock(out: Out) -> None:
    """Workers hold the folder until they see that their parent is gone, which they look for each second."""
    with open(out.root / STATE / "lock") as file:
        for _ in range(50):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
    raise AssertionError("workers of a killed run do not end")


def test_a_run_with_several_processes_is_killed_from_outside(
    folder: Path, make_mixture: MakeMixture, out: Out, another: Callable[[str], Out]
) -> None:
    mixture = make_mixture(image_entry(folder, [3_000] * 60))
    another("reference").export(mixture, max_shard_bytes=15_000)
    for num_parts in (2, 9):

        def kill_myself(text: str, num_parts: int = num_parts) -> None:
            if text.startswith(f"{num_parts} of"):
                os.kill(os.getpid(), signal.SIGKILL)

        code = in_child(
            lambda kill=kill_myself: out.export(mixture, max_shard_bytes=15_000, num_proc=2, progress=kill)
        )
        assert code == -signal.SIGKILL
        assert not out.looks_whole()
        wait_for_lock(out)
    out.export(mixture, max_shard_bytes=15_000, num_proc=2)
    assert out.tree() == another("reference").tree()


def test_finished_parts_are_not_read_again(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    mixture = make_mixture(image_entry(folder, [1_000] * 600))
    arguments = {"max_shard_bytes": 60_000}
    total = 0

    def remember(text: str) -> None:
        nonlocal total
        total = int(text.split()[2])

    with opened_images() as whole:
        another = Out(out.root.parent / "whole", out.cache_dir)
        another.export(mixture, progress=remember, **arguments)
    assert total >= 10
    with pytest.raises(StoppedError):
        out.export(mixture, progress=stop_after(total - 2), **arguments)
    said: list[str] = []
    with opened_images() as again:
        out.export(mixture, progress=said.append, **arguments)
    assert said == [f"{total - 1} of {total} parts", f"{total} of {total} parts"]
    first_table = len(whole) - 600  # its size is what parts are estimated from
    assert 0 <= first_table <= 100
    assert len(again) <= first_table + 600 * 3 // total
    assert out.tree() == another.tree()


def test_no_sample_is_lost_or_doubled_when_images_change_between_two_runs(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    mixture = make_mixture(image_entry(folder, [10_000] * 40))
    with pytest.raises(StoppedError):
        out.export(mixture, max_shard_bytes=100_000, progress=stop_after(3))
    write_photos(folder, [25_000] * 20)
    try:
        out.export(mixture, max_shard_bytes=100_000)
    except MixtureError:
        return  # to refuse is right, too
    assert out.ids() == [f"r{i}" for i in range(40)]
    assert out.report()["rows"] == 40


def test_a_finished_export_is_left_alone(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    mixture = make_mixture(image_entry(folder, [1_000] * 5))
    first = out.export(mixture)
    assert not first.was_complete
    before = {name: (out.root / name).stat().st_mtime_ns for name in out.files()}
    second = out.export(mixture, num_proc=2)
    assert second.was_complete
    assert (second.files, second.report, second.out_dir) == (first.files, first.report, first.out_dir)
    assert {name: (out.root / name).stat().st_mtime_ns for name in out.files()} == before


OTHER = (
    "{root} holds {state} of something else (another mixture, other data or options): choose another folder, or replace "
    "it with overwrite=True (--overwrite)"
)


def test_another_size_or_mixture_does_not_go_on_where_this_one_stopped(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    entry = image_entry(folder, [3_000] * 30)
    with pytest.raises(StoppedError):
        out.export(make_mixture(entry), max_shard_bytes=30_000, progress=stop_after(1))
    message = OTHER.format(root=out.root, state="an unfinished export")
    assert out.fails(make_mixture(entry), max_shard_bytes=30_001) == message
    assert out.fails(make_mixture({**entry, "sampling_strategy": "first:9"}), max_shard_bytes=30_000) == message
    assert out.fails(make_mixture(entry), max_shard_bytes=30_000, image_columns="list") == message
    out.export(make_mixture({**entry, "sampling_strategy": "first:9"}), max_shard_bytes=30_000, overwrite=True)
    assert out.ids() == [f"r{i}" for i in range(9)]
    with pytest.raises(OutputError) as error:
        out.export(make_mixture(entry))
    assert error.value.message == OTHER.format(root=out.root, state="a finished export")
    assert out.ids() == [f"r{i}" for i in range(9)]


def test_a_changed_licence_or_weight_reaches_the_card(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    entry = image_entry(folder, [1_000])
    out.export(make_mixture({**entry, "license": "mit"}, weights={"default": 10}))
    changed = make_mixture({**entry, "license": "apache-2.0"}, weights={"default": 77})
    try:
        out.export(changed)
    except OutputError:
        return  # to say that the folder holds another mixture is right, too
    assert metadata_load(out.root / "README.md")["license"] == "apache-2.0"
    assert "77" in (out.root / "README.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- the target


def test_a_folder_with_something_else_is_refused(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    mixture = make_mixture(image_entry(folder, [1_000]))
    out.root.mkdir()
    (out.root / "thesis.txt").write_text("all my work")
    message = f"{out.root} is not empty and holds no export of ours (there is 'thesis.txt'): choose another folder"
    for overwrite in (False, True):
        with pytest.raises(OutputError) as error:
            out.export(mixture, overwrite=overwrite)
        assert error.value.message == message
        assert out.files() == ["thesis.txt"]


def test_overwriting_touches_only_what_an_export_wrote(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    entry = image_entry(folder, [1_000] * 4)
    out.export(make_mixture(entry))
    (out.root / "a" / "notes.txt").write_text("mine")
    before = out.tree()
    with pytest.raises(OutputError) as error:
        out.export(make_mixture({**entry, "name": "b"}), overwrite=True)
    assert error.value.message == (
        f"{out.root} also holds files that no export of ours wrote (1, the first: 'a/notes.txt'): move them away, or "
        "choose another folder"
    )
    assert out.tree() == before
    (out.root / "a" / "notes.txt").unlink()
    out.export(make_mixture({**entry, "name": "b"}), overwrite=True)
    assert sorted(out.tree()) == ["README.md", "b/train-00000-of-00001.parquet", "ledger.jsonl", "report.json"]
    assert [config["config_name"] for config in metadata_load(out.root / "README.md")["configs"]] == ["b"]


def test_a_file_or_a_place_that_cannot_be_written_is_refused(
    folder: Path, make_mixture: MakeMixture, tmp_path: Path
) -> None:
    mixture = make_mixture(image_entry(folder, [1_000]))
    file = tmp_path / "file"
    file.write_text("x")
    for path, message in (
        (file, f"{file} is a file: an export needs a folder"),
        (file / "out", f"{file / 'out'} cannot be written: Not a directory"),
    ):
        with pytest.raises(OutputError) as error:
            export_parquet(mixture, path, cache_dir=str(tmp_path / "c"))
        assert error.value.message == message
    assert file.read_text() == "x"


def test_a_read_only_folder_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chmod(folder, 0o755)
        write_json(folder / "a.json", text_rows(3))
        (folder / "x.yaml").write_text("datasets: [{name: a, json_path: a.json}]")
        (folder / "out").mkdir(mode=0o555)

        def export() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)  # root may write everywhere
            export_parquet(folder / "x.yaml", folder / "out", cache_dir=str(folder / "c"))

        assert in_child(export) == 1
        assert list((folder / "out").iterdir()) == []
        assert capfd.readouterr().err == f"{folder / 'out'} cannot be written: Permission denied\n"


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(
    folder: Path, make_mixture: MakeMixture, out: Out, another: Callable[[str], Out], capfd: pytest.CaptureFixture[str]
) -> None:
    mixture = make_mixture(image_entry(folder, [3_000] * 40 + [90_000] + [3_000] * 5))
    arguments = {"max_shard_bytes": 200_000}
    another("reference").export(mixture, **arguments)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        out.export(mixture, **arguments)

    assert in_child(limited) == 1
    message = capfd.readouterr().err
    assert re.fullmatch(
        re.escape(f"{out.root}/{STATE}/parts/a/") + r"\d{6}-0000\.parquet cannot be written: .*File too large\n",
        message,
    )
    assert not out.looks_whole()
    out.export(mixture, **arguments)
    assert out.tree() == another("reference").tree()


def test_two_runs_do_not_write_into_one_folder(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    mixture = make_mixture(image_entry(folder, [1_000] * 3))
    messages = []

    def run_again(text: str) -> None:
        with pytest.raises(OutputError) as error:
            out.export(mixture)
        messages.append(error.value.message)

    out.export(mixture, progress=run_again)
    assert messages == [f"another run is writing into {out.root}: wait for it to end"]


HOSTILE = [
    "1", "1.0", "true", "null", "no", "~", "2020-01-01", "..", ".x", "-x", "x.", "a b", "a,b", "a;b", "$(id)", "a`b",
    'q"uo\'te', "ü…", "{{ entries }}", "a#b", "%20", "__x__", "_x", "train", "test", "default", "data", "a\nb", "a&b",
    ".llava-mixture", "plan.json", "\u2028", "😀", "'", "@x", "a b ", "a\tb", "a_b", "---", "- x", "!x", "&x", "*x", "|",
]  # fmt: skip


def test_any_name_is_a_config_that_loads(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    entry = image_entry(folder, [900])
    before = sorted(path.name for path in out.root.parent.iterdir())
    mixture = make_mixture(*({**entry, "name": name} for name in HOSTILE))
    done = out.export(mixture)
    names = mixture.config_names[1:]
    assert [config["config_name"] for config in metadata_load(out.root / "README.md")["configs"]] == names
    assert datasets.get_dataset_config_names(str(out.root)) == names
    assert len({path for paths in done.files.values() for path in paths}) == len(HOSTILE)
    for name, config in zip(HOSTILE, names, strict=True):
        (path,) = done.files[config]
        (row,) = pq.read_table(out.root / path, columns=["id", "data_source"]).to_pylist()
        assert row == {"id": "r0", "data_source": name}
        if name in ("1", "..", "a b", "__x__", "a\nb", "train"):
            (sample,) = datasets.load_dataset(str(out.root), config, split="train", streaming=True)
            assert sample["data_source"] == name
    assert all(path.resolve().is_relative_to(out.root) for path in out.root.rglob("*"))
    assert sorted(path.name for path in out.root.parent.iterdir()) == sorted([*before, "out", "plan-cache"])


@pytest.mark.parametrize("name", ["README.md", "report.json", "ledger.jsonl", "moves.json"])
def test_a_config_may_be_called_like_one_of_our_files(
    name: str, folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    out.export(make_mixture(image_entry(folder, [900], name=name)))
    (row,) = datasets.load_dataset(str(out.root), name, split="train", streaming=True)
    assert row["id"] == "r0"


def test_a_name_of_300_characters_gives_a_folder_all_the_same(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    mixture = make_mixture(image_entry(folder, [900], name="ü" * 300))
    out.export(mixture)
    (config,) = metadata_load(out.root / "README.md")["configs"]
    assert config["config_name"] == mixture.config_names[1]
    (path,) = out.root.glob(config["data_files"][0]["path"])
    assert pq.read_table(path)["id"].to_pylist() == ["r0"]
    assert max(len(part.encode()) for part in path.relative_to(out.root).parts) <= 255


def test_what_is_exported_is_not_overwritten_by_its_export(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    out.export(make_mixture(image_entry(folder, [900] * 3)))
    before = out.tree()
    (folder / "y.yaml").write_text(yaml.safe_dump({"datasets": [{"name": "again", "json_path": str(out.root / "a")}]}))
    with pytest.raises(OutputError) as error:
        out.export(folder / "y.yaml", overwrite=True)
    assert error.value.message == (
        f"{out.root} holds what is to be exported ({out.root}/a/train-00000-of-00001.parquet): choose another folder"
    )
    assert out.tree() == before


# ------------------------------------------------------------------------------------------------------- remote targets


def test_a_url_gets_the_same_bytes_as_a_folder(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    mixture = make_mixture(image_entry(folder, [3_000] * 30))
    out.export(mixture, max_shard_bytes=40_000)
    url = f"memory://{out.root.parent.name}/x y"
    done = export_parquet(mixture, url, cache_dir=str(out.cache_dir), max_shard_bytes=40_000)
    memory = fsspec.filesystem("memory")
    prefix = f"/{out.root.parent.name}/x y/"
    stored = {name.removeprefix(prefix): memory.cat(name) for name in memory.find(prefix)}
    assert done.out_dir == url
    assert {name: hashlib.sha256(data).hexdigest() for name, data in stored.items() if not name.startswith(STATE)} == (
        out.tree()
    )
    assert export_parquet(mixture, url, cache_dir=str(out.cache_dir), max_shard_bytes=40_000).was_complete
    with pytest.raises(OutputError) as error:
        export_parquet(mixture, url, cache_dir=str(out.cache_dir))
    assert error.value.message == OTHER.format(root=url, state="a finished export")
    export_parquet(mixture, url, cache_dir=str(out.cache_dir), overwrite=True)
    assert [name.removeprefix(prefix) for name in memory.find(prefix + "a")] == ["a/train-00000-of-00001.parquet"]


@pytest.mark.parametrize("failing_write", [1, 5, 30, 80, 120])
def test_a_remote_write_that_fails_leaves_nothing_that_looks_whole(
    failing_write: int, folder: Path, make_mixture: MakeMixture, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = make_mixture(image_entry(folder, [3_000] * 60))
    out.export(mixture, max_shard_bytes=40_000)
    name = f"{out.root.parent.name}-{failing_write}"
    count = 0
    write = MemoryFile.write

    def failing(self: Any, data: Any) -> Any:
        nonlocal count
        count += 1
        if count == failing_write:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(MemoryFile, "write", failing)
    with pytest.raises(OutputError) as error:
        export_parquet(mixture, f"memory://{name}", cache_dir=str(out.cache_dir), max_shard_bytes=40_000)
    assert re.fullmatch(
        rf"/{name}/{STATE}/.+ cannot be written: No space left on device: free some space and run the same command "
        "again, what is finished is kept",
        error.value.message,
    )
    memory = fsspec.filesystem("memory")
    left = [path.removeprefix(f"/{name}/") for path in memory.find(f"/{name}")]
    assert [path for path in left if not path.startswith(f"{STATE}/")] == []
    assert f"{STATE}/manifest.json" not in left
    monkeypatch.undo()
    export_parquet(mixture, f"memory://{name}", cache_dir=str(out.cache_dir), max_shard_bytes=40_000)
    found = {path.removeprefix(f"/{name}/"): memory.cat(path) for path in memory.find(f"/{name}")}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in found.items() if not path.startswith(STATE)} == (
        out.tree()
    )


def test_a_filesystem_that_processes_do_not_share_is_not_left_half_empty(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    mixture = make_mixture(image_entry(folder, [3_000] * 30))
    name = f"{out.root.parent.name}-two"
    try:
        done = export_parquet(
            mixture, f"memory://{name}", cache_dir=str(out.cache_dir), max_shard_bytes=40_000, num_proc=2
        )
    except MixtureError:
        done = None
    memory = fsspec.filesystem("memory")
    if done is None:
        assert not memory.exists(f"/{name}/{STATE}/manifest.json")
        assert not memory.exists(f"/{name}/README.md")
        return
    assert [path for path in done.files["a"] if not memory.exists(f"/{name}/{path}")] == []


class AsyncLocal(AsyncFileSystem):
    """Local files through an event loop, as S3, Google and Azure are reached: an instance serves one process."""

    protocol = "asynclocal"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("asynclocal://")

    @property
    def local(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    async def _info(self, path: str, **kwargs: Any) -> Any:
        return self.local.info(path)

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        return self.local.ls(path, detail=detail)

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> Any:
        return self.local.cat_file(path, start, end)

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.local.pipe_file(path, value)

    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        os.rmdir(path) if os.path.isdir(path) else os.remove(path)

    async def _cp_file(self, one: str, two: str, **kwargs: Any) -> None:
        self.local.cp_file(one, two)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return _SentWhenClosed(self, path) if "w" in mode else self.local.open(path, mode)


class _SentWhenClosed(io.BytesIO):
    def __init__(self, fs: AsyncLocal, path: str) -> None:
        super().__init__()
        self._fs, self._path = fs, path

    def close(self) -> None:
        if not self.closed:
            self._fs.pipe_file(self._path, self.getvalue())
        super().close()


@pytest.mark.parametrize("num_proc", [1, 2])
def test_an_object_store_is_written_by_any_number_of_processes(
    num_proc: int, folder: Path, make_mixture: MakeMixture, out: Out, another: Callable[[str], Out]
) -> None:
    fsspec.register_implementation("asynclocal", AsyncLocal, clobber=True)
    mixture = make_mixture(image_entry(folder, [3_000] * 30))
    another("reference").export(mixture, max_shard_bytes=40_000)
    url = f"asynclocal://{out.root}"
    export_parquet(mixture, url, cache_dir=str(out.cache_dir), max_shard_bytes=40_000, num_proc=num_proc)
    assert out.tree() == another("reference").tree()


# ----------------------------------------------------------------------------------------------------------- bad input


def bad_images(folder: Path, tmp_path: Path) -> list[tuple[Any, str, str]]:
    """(reference, ledger code, reason), beside rows that are right."""
    (tmp_path / "secret").mkdir()
    secret = tmp_path / "secret" / "s.jpg"
    secret.write_bytes(photo(99))
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("<html>not found</html>")
    (folder / "folder.jpg").mkdir()
    (folder / "link.jpg").symlink_to(secret)
    (folder / "inner").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe.jpg")
    outside = (
        "{path} is outside of the image root {root}, and an export reads images from there only: set image_root to a "
        "folder or URL that holds them"
    )

    def not_below(path: str) -> str:
        return outside.format(path=path, root=folder)

    return [
        ("missing.jpg", "image_missing", f"{folder}/missing.jpg does not exist"),
        ("empty.jpg", "image_empty", f"{folder}/empty.jpg is empty"),
        ("text.jpg", "no_image", f"{folder}/text.jpg is no image (it begins with b'<html>not fo')"),
        ("folder.jpg", "image_unreadable", f"{folder}/folder.jpg is a directory"),
        ("pipe.jpg", "image_unreadable", f"{folder}/pipe.jpg is no regular file"),
        (
            "link.jpg", "image_outside_root",
            f"{folder}/link.jpg is a link to {secret}, outside of the image root {folder}",
        ),
        (
            "inner/s.jpg", "image_outside_root",
            f"{folder}/inner/s.jpg is a link to {secret}, outside of the image root {folder}",
        ),
        (str(secret), "image_outside_root", not_below(str(secret))),
        (f"file://{secret}", "image_outside_root", not_below(f"file://{secret}")),
        ("/etc/passwd", "image_outside_root", not_below("/etc/passwd")),
        ("file:///etc/passwd", "image_outside_root", not_below("file:///etc/passwd")),
        ("memory://x/s.jpg", "image_outside_root", not_below("memory://x/s.jpg")),
        ("simplecache::file:///etc/passwd", "image_missing", f"{folder}/simplecache::file:/etc/passwd does not exist"),
        (
            "../secret/s.jpg", "image_outside_root",
            f"image reference '../secret/s.jpg' leaves the image root {folder}: relative references must stay in it",
        ),
        (
            "p/../../secret/s.jpg", "image_outside_root",
            f"image reference 'p/../../secret/s.jpg' leaves the image root {folder}: relative references must stay in it",
        ),
        ({"bytes": "text", "path": "x.jpg"}, "type_image", "'image' must hold paths, URLs or {bytes, path}, got"),
    ]  # fmt: skip


def test_images_that_cannot_leave_are_named_or_go_into_the_ledger(
    folder: Path, make_mixture: MakeMixture, out: Out, tmp_path: Path
) -> None:
    good = write_photos(folder, [900, 900])
    bad = bad_images(folder, tmp_path)
    rows = [
        {"id": f"b{i}", "image": given, "conversations": chat("<image>q", "a")} for i, (given, *_) in enumerate(bad)
    ]
    entry = {"name": "a", "json_path": "a.json", "multi_image": False}
    for i, row in enumerate(rows[:-1]):
        write_json(folder / "a.json", [good[0], row])
        message = out.fails(make_mixture(entry))
        assert message == f"{folder}/a.json row 1 (entry 'a'): {bad[i][2]}"
        shutil.rmtree(out.root, ignore_errors=True)
    write_json(folder / "a.json", [good[0], *rows, good[1]])
    out.export(make_mixture({**entry, "on_error": "skip"}), max_shard_bytes=2_500)
    assert out.ids() == ["r0", "r1"]
    assert [(line["config"], line["row"], line["id"], line["code"]) for line in out.ledger()] == [
        ("a", i + 1, f"b{i}", code) for i, (_, code, _) in enumerate(bad)
    ]
    assert all(line["reason"].startswith(reason) for line, (_, _, reason) in zip(out.ledger(), bad, strict=True))
    report = out.report()
    assert (report["rows"], report["delivered"], report["ledger"]) == (len(bad) + 2, 2, len(bad))
    secret = (tmp_path / "secret" / "s.jpg").read_bytes()
    assert all(secret not in path.read_bytes() for path in out.parts())


def test_every_row_is_accounted_for(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    rows = write_photos(folder, [900] * 30)
    for i in range(30):
        rows[i]["fltLaionAesthScore"] = 9 if i % 3 else 1  # 10 are filtered
    (folder / "p" / "4.jpg").unlink()
    rows[7]["conversations"] = []
    write_json(folder / "a.json", rows)
    entry = {"name": "a", "json_path": "a.json", "multi_image": False, "aes_cutoff": 5, "on_error": "skip"}
    out.export(make_mixture({**entry, "sampling_strategy": "first:15"}), num_proc=2, max_shard_bytes=4_000)
    assert out.report() | {"undeclared": 0} == {
        "rows": 30, "filtered": {"aes_cutoff": 10}, "not_sampled": 5, "delivered": 13, "samples": 13, "repaired": 0,
        "trimmed": 0, "undeclared": 0, "ledger": 2,
    }  # fmt: skip
    assert out.ids() == [f"r{i}" for i in range(23) if i % 3 and i not in (4, 7)]
    assert [(line["row"], line["code"]) for line in out.ledger()] == [(4, "image_missing"), (7, "empty_conversation")]


def test_an_entry_of_which_nothing_is_left_is_an_error(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    good = image_entry(folder, [900] * 3)
    missing = [{"id": f"m{i}", "image": f"no/{i}.jpg", "conversations": chat("<image>q", "a")} for i in range(3)]
    write_json(folder / "b.json", missing)
    bad = {"name": "b", "json_path": "b.json", "multi_image": False, "on_error": "skip"}
    assert out.fails(make_mixture(good, bad)) == (
        f"entry 'b': none of its 3 rows was delivered, 3 failed: image_missing: {folder}/no/0.jpg does not exist"
    )


@pytest.mark.parametrize("num_proc", [1, 2])
def test_an_error_in_the_middle_leaves_nothing_that_looks_whole(
    num_proc: int, folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    mixture = make_mixture(image_entry(folder, [3_000] * 150))
    (folder / "p" / "140.jpg").write_text("no photo")
    message = out.fails(mixture, max_shard_bytes=40_000, num_proc=num_proc)
    assert message == (
        f"{folder}/a.json row 140 (entry 'a'): {folder}/p/140.jpg is no image (it begins with b'no photo')"
    )
    (folder / "p" / "140.jpg").write_bytes(photo(140, 3_000))
    out.export(mixture, max_shard_bytes=40_000, num_proc=num_proc)
    assert out.ids() == [f"r{i}" for i in range(150)]


def test_a_sample_with_more_bytes_of_images_than_arrow_can_count_goes_into_the_ledger(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    rows = write_photos(folder, [900, *[450_000_000] * 5])  # sparse files; together more than 2 GiB
    rows[1]["image"] = [row["image"] for row in rows[1:]]
    rows[1]["conversations"] = chat("<image>" * 5 + "q", "a")
    write_json(folder / "a.json", rows[:2])
    out.export(make_mixture({"name": "a", "json_path": "a.json", "multi_image": True, "on_error": "skip"}))
    assert out.ids() == ["r0"]
    assert [(line["row"], line["code"]) for line in out.ledger()] == [(1, "image_too_large")]


@register_preprocess("test_parquet_dies", fills={"image": "one"})
def dies(row: Any) -> dict[str, Any]:
    if row["image"] == "p/33.jpg" and os.getpid() != MAIN_PROCESS and os.path.exists(os.environ["DIE"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"image": row["image"], "conversations": row["conversations"]}


def test_a_worker_that_is_killed_is_an_error_and_the_next_run_goes_on(
    folder: Path, make_mixture: MakeMixture, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(folder / "a.json", write_photos(folder, [3_000] * 40))
    monkeypatch.setenv("DIE", str(folder / "die"))
    (folder / "die").touch()
    mixture = make_mixture({"name": "a", "json_path": "a.json", "preprocess_fn": "test_parquet_dies"})
    assert out.fails(mixture, OutputError, max_shard_bytes=15_000, num_proc=2) == (
        "a worker process was killed (out of memory?): run the same command again, what is finished is kept"
    )
    (folder / "die").unlink()
    out.export(mixture, max_shard_bytes=15_000, num_proc=2)
    assert out.ids() == [f"r{i}" for i in range(40)]


def with_sides(width: int, height: int) -> bytes:
    """A GIF that says it is so large."""
    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def broken_avif() -> bytes:
    """It begins as an AVIF image does; where its parts lie is not said."""
    if "AVIF" not in Image.SAVE and "AVIF" not in Image.registered_extensions().values():  # an old Pillow
        return b"\x00\x00\x00\x18ftypavif"
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "AVIF")
    return buffer.getvalue().replace(b"iloc", b"free")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR",
        b"BM",
        b"II*\x00\xff\xff\xff\xff",
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        with_sides(10_000, 9_000),
        with_sides(65_535, 65_535),
        broken_avif(),
    ],
    ids=["jpeg", "png", "bmp", "tiff", "webp", "90 megapixels", "4 gigapixels", "avif"],
)
def test_images_that_the_card_cannot_measure_are_written_all_the_same(
    data: bytes, folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    entry = image_entry(folder, [900, 900])
    (folder / "p" / "0.jpg").write_bytes(data)
    out.export(make_mixture(entry))
    assert [row["image"]["bytes"] for row in out.rows()] == [data, photo(1, 900)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_shard_bytes": 0}, "max_shard_bytes must be a whole number of bytes ≥ 1, got 0"),
        ({"max_shard_bytes": "500MB"}, "max_shard_bytes must be a whole number of bytes ≥ 1, got '500MB'"),
        ({"max_shard_bytes": True}, "max_shard_bytes must be a whole number of bytes ≥ 1, got True"),
        ({"num_proc": 0}, "num_proc must be a whole number ≥ 1, got 0"),
        ({"num_proc": 1.5}, "num_proc must be a whole number ≥ 1, got 1.5"),
        ({"image_columns": "lists"}, "image_columns must be 'list' or not given, got 'lists'"),
        ({"config_names": "a"}, "config_names must be a list of names, got 'a': say ['a']"),
        ({"config_names": ["aa"]}, "{path}: no config 'aa': did you mean 'a'?"),
    ],
)
def test_arguments_that_are_wrong(
    arguments: dict[str, Any], message: str, folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    mixture = make_mixture(image_entry(folder, [900]))
    assert out.fails(mixture, ConfigError, **arguments) == message.format(path=folder / "x.yaml")
    assert not out.root.exists()


def test_the_smallest_size_gives_each_sample_a_file(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    done = out.export(make_mixture(image_entry(folder, [900] * 5)), max_shard_bytes=1)
    assert out.ids() == [f"r{i}" for i in range(5)]
    assert [pq.read_metadata(out.root / path).num_rows for path in done.files["a"]] == [1] * 5


def test_what_is_returned_is_what_is_there(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    mixture = make_mixture(
        image_entry(folder, [3_000] * 20), {"name": "b", "json_path": "a.json", "multi_image": False}
    )
    said: list[str] = []
    done = out.export(mixture, config_names=["b", "a", "b"], max_shard_bytes=40_000, progress=said.append)
    assert list(done.files) == ["b", "a"]
    assert sorted(path for paths in done.files.values() for path in paths) == [
        path for path in out.files() if path.endswith(".parquet")
    ]
    assert done.report == json.loads((out.root / "report.json").read_text())
    assert said == [f"{i + 1} of {len(said)} parts" for i in range(len(said))]
    builder = LlavaMixture(config_name="a", mixture=mixture)
    builder.download_and_prepare()
    assert done.report["a"] == builder.report()
    assert done.out_dir == str(out.root)


# ----------------------------------------------------------------------------------------------- nobody's business


def test_no_path_of_this_machine_is_in_the_files(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    write_photos(folder, [900] * 2)
    own = [
        {"bytes": photo(0), "path": "/home/me/project/x.jpg"},
        {"bytes": photo(1), "path": "C:\\Users\\me\\x.jpg"},
        {"bytes": photo(2), "path": "https://me:pw@host/a/x.jpg?token=hf_abc"},
        {"bytes": photo(3), "path": "../../home/me/x.jpg"},
        {"bytes": photo(4), "path": "coco/x.jpg"},
        {"bytes": photo(5), "path": None},
        {"bytes": None, "path": f"{folder}/p/1.jpg"},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    conversations = [chat("<image>q", "a")] * len(own)
    write_table(folder / "a.parquet", {"image": pa.array(own, kind), "conversations": conversations})
    out.export(make_mixture({"name": "a", "json_path": "a.parquet"}))
    rows = out.rows()
    assert [row["image"]["path"] for row in rows] == [
        "x.jpg", "x.jpg", "x.jpg", "x.jpg", "coco/x.jpg", None, "p/1.jpg"
    ]  # fmt: skip
    assert [row["image"]["bytes"] for row in rows] == [*(photo(i) for i in range(6)), photo(1, 900)]
    everything = b"".join(path.read_bytes() for path in [*out.parts(), out.root / "README.md"])
    for word in (b"Users", b"/home", b"pw@", b"token", str(folder).encode()):
        assert word not in everything


def test_a_mixture_made_in_python_is_exported_too(folder: Path, out: Out) -> None:
    entry = image_entry(folder, [900] * 3)
    out.export(Mixture.from_dict({"datasets": [entry]}, base_dir=str(folder)))
    assert out.ids() == ["r0", "r1", "r2"]
    text = (out.root / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert yaml.safe_load(block) == {"datasets": [entry]}


def test_a_card_that_was_edited_by_hand_stays_and_a_removed_file_comes_back(
    folder: Path, make_mixture: MakeMixture, out: Out
) -> None:
    mixture = make_mixture(image_entry(folder, [20_000] * 12))
    out.export(mixture, max_shard_bytes=100_000)
    names = [path.name for path in out.parts()]
    assert len(names) > 2
    with open(out.root / "README.md", "a", encoding="utf-8") as file:
        file.write("\nmine\n")
    assert out.export(mixture, max_shard_bytes=100_000).was_complete
    assert (out.root / "README.md").read_text(encoding="utf-8").endswith("\nmine\n")
    ids = out.ids()
    out.parts()[1].unlink()
    assert not out.export(mixture, max_shard_bytes=100_000).was_complete
    assert ([path.name for path in out.parts()], out.ids()) == (names, ids)


def test_files_of_an_earlier_cut_do_not_stay(folder: Path, make_mixture: MakeMixture, out: Out) -> None:
    mixture = make_mixture(image_entry(folder, [20_000] * 12))
    out.export(mixture, max_shard_bytes=100_000)
    expected = out.ids()
    for path in folder.rglob("*.jpg"):  # images grow, and one part has to be made again
        path.write_bytes(path.read_bytes() + bytes(25_000))
    out.parts()[0].unlink()
    out.export(mixture, max_shard_bytes=100_000)
    assert out.ids() == expected
