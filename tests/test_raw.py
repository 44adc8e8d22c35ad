"""The raw way out: what LLaVA and our own builder read is what went in, and names are safe, distinct and stable."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import llava_arrow
import llava_mixture
from llava_arrow import ConfigError, ImageError, Mixture, MixtureError, OutputError, export_raw
from llava_arrow.column_types import IMAGE_COLUMNS
from llava_arrow.mixture import builder_configs_dir
from llava_arrow.outputs.target import STATE_DIR
from llava_arrow.plan_cache import PlanCache
from tests.conftest import MakeMixture, chat, samples_of, write_json, write_table

PHOTOS = builder_configs_dir() / "default" / "photos"
TEXT = datasets.Value("string")
FEATURES = {
    "id": TEXT,
    "image": datasets.Image(),
    "conversations": [{"from": TEXT, "value": TEXT}],
    "data_source": TEXT,
}  # the columns of LLaVA-NeXT-Data
CONFIGS = [
    (path.stem, name)
    for path in sorted(builder_configs_dir().glob("*.y*ml"))
    for name in Mixture.load(path.stem).config_names
]


def picture(number: int = 0, kind: str = "PNG") -> bytes:
    """A small image file; another number, other bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256, 7)).save(buffer, kind)
    return buffer.getvalue()


def embedded(number: int = 0, path: str | None = None, kind: str = "PNG") -> dict[str, Any]:
    return {"bytes": picture(number, kind), "path": path}


def row(sample_id: Any, image: Any = None, data_source: Any = "s", **more: Any) -> dict[str, Any]:
    turns = chat("<image>\nq" if image is not None else "q", "a")
    return {"id": sample_id, "image": image, "conversations": turns, "data_source": data_source, **more}


def dataset_of(*rows: dict[str, Any], **features: Any) -> datasets.Dataset:
    """A dataset such as somebody else's; `features` for further columns, or other types."""
    return datasets.Dataset.from_list(list(rows), features=datasets.Features({**FEATURES, **features}))


def files_of(folder: Any) -> dict[str, bytes]:
    """All files below a folder, but not our own state."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".llava-mixture"]
        found.update({os.path.relpath(os.path.join(parent, n), folder): Path(parent, n).read_bytes() for n in names})
    return found


def records_of(out_dir: Any, name: str = "data.json") -> list[dict[str, Any]]:
    return json.loads(Path(out_dir, name).read_bytes())  # type: ignore[no-any-return]


def as_llava_reads(out_dir: Any, columns: tuple[str, ...] = IMAGE_COLUMNS) -> list[dict[str, list[bytes]]]:
    """Per sample the bytes of its images, found as LLaVA's `LazySupervisedDataset` finds them: `"image" in sample`, the
    path joined to the image folder; a list as each of its items.
    """
    found = []
    for sample in records_of(out_dir):
        images: dict[str, list[bytes]] = {}
        for column in columns:
            if column in sample:
                value = sample[column]
                paths = value if isinstance(value, list) else [value]
                images[column] = [
                    Path(os.path.join(os.path.join(out_dir, "images"), path)).read_bytes() for path in paths
                ]
        found.append(images)
    return found


def image_files(out_dir: Any) -> dict[str, bytes]:
    return {name: data for name, data in files_of(out_dir).items() if name.startswith("images/")}


def with_bytes(value: Any) -> Any:
    """Samples with the bytes of images in place of references."""
    if isinstance(value, dict):
        if set(value) == {"bytes", "path"}:
            return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return {key: with_bytes(item) for key, item in value.items()}
    return [with_bytes(item) for item in value] if isinstance(value, list) else value


def is_same(one: Any, other: Any) -> bool:
    """Equal values of equal types; NaN is NaN, and 0.0 is not -0.0."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def built(mixture: Any, name: str | None, cache_dir: Any) -> datasets.Dataset:
    return datasets.load_dataset("llava_mixture", name, mixture=mixture, split="train", cache_dir=str(cache_dir))


def values_of(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    return with_bytes(dataset.with_format("arrow")[:].to_pylist())  # type: ignore[no-any-return]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def come_back(mixture: Mixture, out: Path, cache: PlanCache, **arguments: Any) -> None:
    """Build → raw → build gives the same configs, columns, types and values, images by their bytes."""
    export_raw(mixture, out, **arguments)
    again = Mixture.load(out / "mixture.yaml")
    assert again.config_names == mixture.config_names
    for name in mixture.config_names:
        before, after = (llava_arrow.config_data.ConfigData.open(m, name, cache=cache) for m in (mixture, again))
        assert after.layout.features() == before.layout.features()
        assert list(after.layout.kinds.items()) == list(before.layout.kinds.items())
        samples = with_bytes(samples_of(mixture, name, cache)[0])
        assert samples
        assert is_same(with_bytes(samples_of(again, name, cache)[0]), samples)


# What is written.


def test_the_json_is_what_llava_reads(folder: Path, make_mixture: MakeMixture, out: Path) -> None:
    (folder / "train").mkdir()
    for name, photo in (("a.jpg", "cat.jpg"), ("train/b.JPG", "coffee.jpg"), ("c.jpg", "cat.jpg")):
        (folder / name).write_bytes((PHOTOS / photo).read_bytes())
    records = [
        {"id": "one", "image": "a.jpg", "conversations": chat("<image>\nWhat?", "A cat.")},
        {"id": 7, "conversations": chat("Grüße, 世界 🌍", "\t\x01")},
        {"image": ["train/b.JPG", "c.jpg"], "conversations": chat("<image><image>", "ok"), "data_source": "mine"},
    ]
    mixture = make_mixture({"name": "chat", "json_path": write_json(folder / "chat.json", records)})
    result = export_raw(mixture, out)
    assert records_of(out) == [
        {"id": "one", "data_source": "chat", "image": "chat/a.jpg", "conversations": chat("<image>\nWhat?", "A cat.")},
        {"id": "7", "data_source": "chat", "conversations": chat("Grüße, 世界 🌍", "\t\x01")},
        {"id": "chat-chat-000000002", "data_source": "mine", "image": ["mine/train/b.JPG", "mine/c.jpg"], "conversations": chat("<image><image>", "ok")},
    ]  # fmt: skip
    cat, coffee = (PHOTOS / "cat.jpg").read_bytes(), (PHOTOS / "coffee.jpg").read_bytes()
    assert as_llava_reads(out) == [{"image": [cat]}, {}, {"image": [coffee, cat]}]
    assert sorted(files_of(out)) == [
        "data.json", "images/chat/a.jpg", "images/mine/c.jpg", "images/mine/train/b.JPG", "ledger.jsonl", "mixture.yaml", "report.json",
    ]  # fmt: skip
    text = (out / "data.json").read_text(encoding="utf-8")
    assert "Grüße, 世界 🌍" in text
    assert text.count("\\u") == text.count("\\u0001") == 1, "only control characters are escaped"
    assert (result.out_dir, result.json_path, result.num_samples) == (str(out), str(out / "data.json"), 3)
    assert not result.was_complete
    assert result.report == json.loads((out / "report.json").read_text()) == {
        "chat": {"rows": 3, "filtered": {}, "not_sampled": 0, "delivered": 3, "samples": 3, "repaired": 0, "trimmed": 0,
                 "undeclared": {}, "ledger": 0}
    }  # fmt: skip
    assert (out / "ledger.jsonl").read_bytes() == b""


def test_one_image_is_a_text_several_are_a_list_none_is_no_key(out: Path) -> None:
    many = [datasets.Image()]
    export_raw(
        dataset_of(
            row("0", [embedded(1, "a.png")], image_gen=embedded(2, "b.png"), image_gen_enc=None),
            row("1", [embedded(1, "a.png"), embedded(3, "c.png")], image_gen=None, image_gen_enc=[]),
            row("2", [], image_gen=None, image_gen_enc=[embedded(2, "b.png"), embedded(1, "a.png")]),
            row("3", None, image_gen=None, image_gen_enc=[embedded(4, "d.png")]),
            image=many,
            image_gen=datasets.Image(),
            image_gen_enc=many,
        ),
        out,
    )
    images = [{c: record[c] for c in IMAGE_COLUMNS if c in record} for record in records_of(out)]
    assert images == [
        {"image": "s/a.png", "image_gen": "s/b.png"},
        {"image": ["s/a.png", "s/c.png"]},
        {"image_gen_enc": ["s/b.png", "s/a.png"]},
        {"image_gen_enc": "s/d.png"},
    ]
    assert set(image_files(out)) == {f"images/s/{name}.png" for name in "abcd"}


def test_extra_columns_are_kept_null_is_no_key_and_an_empty_list_is_one(out: Path) -> None:
    features = {
        "score": datasets.Value("float32"),
        "tags": datasets.Sequence(TEXT),
        "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("int32"))),
        "meta": {"width": datasets.Value("int64"), "note": TEXT},
        "big": datasets.Value("int64"),
    }
    export_raw(
        dataset_of(
            row("0", score=0.5, tags=["x", None], boxes=[[1, 2], []], meta={"width": 3, "note": "é"}, big=2**62 + 1),
            row("1", score=None, tags=[], boxes=[], meta=None, big=None),
            row("2", score=float("nan"), tags=None, boxes=None, meta={"width": None, "note": None}, big=-(2**63)),
            **features,
        ),
        out,
    )
    plain = [{k: v for k, v in record.items() if k in features} for record in records_of(out)]
    assert plain == [
        {
            "score": 0.5,
            "tags": ["x", None],
            "boxes": [[1, 2], []],
            "meta": {"width": 3, "note": "é"},
            "big": 2**62 + 1,
        },
        {"tags": [], "boxes": []},
        {"score": "NaN", "meta": {"width": None, "note": None}, "big": -(2**63)},
    ]


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        (datasets.Sequence(datasets.Value("float32")), [math.nan, math.inf], ["NaN", "Infinity"]),
        (datasets.Sequence(datasets.Value("float32"), length=2), [math.nan, -math.inf], ["NaN", "-Infinity"]),
        (datasets.Array2D((1, 2), "float32"), [[math.nan, 1.0]], [["NaN", 1.0]]),
        ({"a": datasets.Value("float64")}, {"a": math.inf}, {"a": "Infinity"}),
        ([{"a": datasets.Value("float64")}], [{"a": math.nan}], [{"a": "NaN"}]),
    ],
)
def test_floats_that_json_cannot_say_are_never_lost(feature: Any, value: Any, expected: Any, out: Path) -> None:
    export_raw(dataset_of(row("0", value=value), value=feature), out)
    assert records_of(out)[0]["value"] == expected


def test_points_in_time_are_kept_in_any_unit(out: Path) -> None:
    time = np.datetime64("2024-02-03T04:05:06").astype(object)
    units = {f"time_{unit}": datasets.Value(f"timestamp[{unit}]") for unit in ("s", "ms", "us", "ns")}
    export_raw(dataset_of(row("0", **dict.fromkeys(units, time)), **units), out)
    assert [records_of(out)[0][name][:19] for name in units] == ["2024-02-03T04:05:06"] * 4


def test_json_lines_hold_the_same_records(folder: Path, make_mixture: MakeMixture, out: Path, tmp_path: Path) -> None:
    records = [{"id": str(i), "conversations": chat("a\u2028b\x85c\r\n", "é")} for i in range(5)]
    mixture = make_mixture({"name": "a", "json_path": write_json(folder / "a.json", records)})
    assert export_raw(mixture, out, jsonl=True).json_path == str(out / "data.jsonl")
    lines = (out / "data.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    export_raw(mixture, tmp_path / "array")
    assert [json.loads(line) for line in lines] == records_of(tmp_path / "array")
    assert [record["conversations"] for record in records_of(tmp_path / "array")] == [
        r["conversations"] for r in records
    ]
    assert not (out / "data.json").exists()
    assert export_raw(mixture, tmp_path / "named", json_name="x.jsonl").num_samples == 5
    assert (tmp_path / "named" / "x.jsonl").read_bytes() == (out / "data.jsonl").read_bytes()


def test_the_json_and_the_folder_may_have_other_names(out: Path, cache: PlanCache) -> None:
    export_raw(dataset_of(row("0", embedded(1, "a.png"))), out, json_name="train.json", image_dir="pixels")
    assert records_of(out, "train.json")[0]["image"] == "s/a.png"
    assert (out / "pixels" / "s" / "a.png").read_bytes() == picture(1)
    (sample,) = samples_of(Mixture.load(out / "mixture.yaml"), "s", cache)[0]
    assert with_bytes(sample["image"]) == picture(1)


@pytest.mark.parametrize("name", ["data.txt", "data", "data.parquet", "data.json.gz", "${HOME}.json"])
def test_a_name_under_which_the_json_could_not_be_read_again_is_an_error(name: str, out: Path) -> None:
    with pytest.raises(ConfigError):
        export_raw(dataset_of(row("0")), out, json_name=name)
    assert not out.exists()


# Names and bytes.


@pytest.mark.parametrize(
    ("kind", "extension"),
    [("PNG", ".png"), ("JPEG", ".jpg"), ("GIF", ".gif"), ("BMP", ".bmp"), ("TIFF", ".tif"), ("WEBP", ".webp")],
)
def test_generated_names_follow_the_format_and_bytes_stay(kind: str, extension: str, out: Path) -> None:
    data = picture(3, kind)
    export_raw(dataset_of(row("x", {"bytes": data, "path": None})), out)
    (name,) = image_files(out)
    assert os.path.splitext(name)[1] == extension
    with Image.open(out / name) as image:
        assert image.format == kind
    assert hashlib.sha256((out / name).read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_photo_with_metadata_and_trailing_bytes_is_not_touched(out: Path) -> None:
    data = (PHOTOS / "retina.jpg").read_bytes() + b"trailing"
    export_raw(dataset_of(row("x", {"bytes": data, "path": "r.png"})), out)
    assert image_files(out) == {"images/s/r.png": data}


@pytest.mark.parametrize(
    "path",
    ["a.jpg", "coco/train2017/000000033471.jpg", "no extension", "a b/c.JPEG", "é/世界.png", "x.tar.gz.png", "-a.png", ".a/b", "d" * 200],
)  # fmt: skip
def test_a_safe_path_is_kept_as_it_is(path: str, out: Path) -> None:
    export_raw(dataset_of(row("x", embedded(1, path))), out)
    assert image_files(out) == {f"images/s/{path}": picture(1)}
    assert records_of(out)[0]["image"] == f"s/{path}"


def test_paths_that_differ_are_all_kept(out: Path) -> None:
    paths = ["photo", "photo.jpg", "photo.jpg.png", "photo.png", "a/photo", "a/photo.jpg"]
    export_raw(dataset_of(*(row(str(i), embedded(i, path)) for i, path in enumerate(paths))), out)
    assert [record["image"] for record in records_of(out)] == [f"s/{path}" for path in paths]


UNSAFE_PATHS = ["../x.png", "a/../../x.png", "/abs.png", "a\\b.png", "a\nb.png", "a\0b.png", "C:x.png", "a//b", "./a", "..", "a/", "a" * 201, "x*y", "file:///x.png", "s3://b/../x.png"]  # fmt: skip


@pytest.mark.parametrize("path", UNSAFE_PATHS)
def test_an_unsafe_path_is_replaced_by_a_name_from_the_id(path: str, out: Path, tmp_path: Path) -> None:
    export_raw(dataset_of(row("the-id", embedded(1, path))), out)
    (name,) = image_files(out)
    assert os.path.basename(name) == "the-id.png"
    assert as_llava_reads(out) == [{"image": [picture(1)]}]
    assert {entry.name for entry in tmp_path.iterdir()} == {"cwd", "out"}


IDS = ["a/b", "../../x", "..", ".", "a:b", "é", "世界", "x" * 300, "x" * 299 + "y", "same", "same", "same", "a\nb", "a\0b", "a\\b", "-x", "C:\\x", "a_b", "A_B", " ", "same-2", "", "con.", "~", "$(x)"]  # fmt: skip


def test_ids_of_any_kind_give_safe_distinct_stable_names(out: Path, tmp_path: Path) -> None:
    rows = [row(sample_id, embedded(i)) for i, sample_id in enumerate(IDS)]
    export_raw(dataset_of(*rows), out)
    assert [record["id"] for record in records_of(out)] == IDS
    assert as_llava_reads(out) == [{"image": [picture(i)]} for i in range(len(IDS))]
    names = [record["image"] for record in records_of(out)]
    assert len(set(names)) == len(names) == len(image_files(out))
    for name in names:
        assert name.isascii()
        assert not set(name) & set('\\:*?"<>|\n\0')
        assert all(0 < len(part) <= 255 and part not in (".", "..") for part in name.split("/"))
    export_raw(dataset_of(*rows), tmp_path / "again", num_proc=2)
    assert files_of(tmp_path / "again") == files_of(out)


@pytest.mark.parametrize("data_source", ["a/b", "..", ".", "../../x", "/x", "a\0b", "a\nb", "a\\b", "x" * 300, "ü", "~", " ", "-", ""])  # fmt: skip
def test_a_data_source_is_one_folder_below_the_images(data_source: str, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = f"{str(elsewhere)[1:]}/x.png"  # an absolute path, if nothing stands before it
    export_raw(dataset_of(row("0", embedded(1, path), data_source)), out)
    assert not list(elsewhere.iterdir()), "written outside of the target"
    (name,) = image_files(out)
    assert name.endswith(f"/{path}")
    assert records_of(out)[0]["data_source"] == data_source
    assert as_llava_reads(out) == [{"image": [picture(1)]}]


def test_data_sources_that_look_alike_get_folders_of_their_own(out: Path) -> None:
    sources = ["a/b", "a:b", "a_b", "a?b", None, "default"]
    export_raw(dataset_of(*(row("x", embedded(i, "p.png"), source) for i, source in enumerate(sources))), out)
    assert as_llava_reads(out) == [{"image": [picture(i)]} for i in range(len(sources))]
    assert len({os.path.dirname(record["image"]) for record in records_of(out)[:4]}) == 4


# File and folder, original and generated names in each other's way. None: an image without a path.
CONFLICTS: list[list[str | None]] = [
    ["a", "a/b.png"],
    ["a/b.png", "a"],
    ["a.png", "a.png/b.png", "a.png/b.png/c.png"],
    [None, "00000/0.png"],
    ["00000/1.png", None],
    [None, "00000/0.jpg"],
    [None, "00000/0"],
    [None, "00000/0/x.png"],
    [None, "00000/0.png/x.png"],
    ["00000/1.png/x.png", None],
    ["00000", None],
    [None, "00000"],
    ["00000.png", None],
    ["a.png", "a.png", "a.png", None],
    ["A.png", "a.png", "a.PNG"],
]


@pytest.mark.parametrize("paths", CONFLICTS, ids=[" ".join(map(str, paths)) for paths in CONFLICTS])
def test_names_in_each_others_way_all_find_a_place(paths: list[str | None], out: Path, tmp_path: Path) -> None:
    rows = [row(str(i), embedded(i, path)) for i, path in enumerate(paths)]
    export_raw(dataset_of(*rows), out)
    assert as_llava_reads(out) == [{"image": [picture(i)]} for i in range(len(paths))]
    assert len(image_files(out)) == len(paths)
    export_raw(dataset_of(*rows), tmp_path / "again", num_proc=2)
    assert files_of(tmp_path / "again") == files_of(out)


def test_the_images_of_several_columns_have_names_of_their_own(out: Path, tmp_path: Path) -> None:
    rows = [
        row("x", [embedded(1), embedded(2)], image_gen=embedded(3), image_gen_enc=[embedded(4), embedded(5)], mask=embedded(6)),
        row("x", [embedded(7)], image_gen=embedded(8), image_gen_enc=[], mask=None),
        row("x-image_gen", [embedded(9)], image_gen=None, image_gen_enc=None, mask=embedded(10)),
    ]  # fmt: skip
    features = {"image": [datasets.Image()], "image_gen": datasets.Image(), "image_gen_enc": [datasets.Image()], "mask": datasets.Image()}  # fmt: skip
    export_raw(dataset_of(*rows, **features), out)
    columns = (*IMAGE_COLUMNS, "mask")
    assert as_llava_reads(out, columns) == [
        {"image": [picture(1), picture(2)], "image_gen": [picture(3)], "image_gen_enc": [picture(4), picture(5)], "mask": [picture(6)]},
        {"image": [picture(7)], "image_gen": [picture(8)]},
        {"image": [picture(9)], "mask": [picture(10)]},
    ]  # fmt: skip
    assert len(image_files(out)) == 10
    export_raw(dataset_of(*rows, **features).to_iterable_dataset(), tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(out)


def test_an_image_of_many_samples_is_stored_once(folder: Path, make_mixture: MakeMixture, out: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture(1))
    (folder / "c.png").write_bytes(picture(2))
    records = [{"id": str(i), "image": name, "conversations": chat("<image>", "a")} for i, name in enumerate(["a.png", "b.png", "a.png", "c.png", "./a.png"])]  # fmt: skip
    mixture = make_mixture({"name": "s", "json_path": write_json(folder / "x.json", records)})
    export_raw(mixture, out)
    assert [record["image"] for record in records_of(out)] == ["s/a.png", "s/b.png", "s/a.png", "s/c.png", "s/a.png"]
    assert len(image_files(out)) == 3


def test_an_image_of_two_entries_is_stored_once(
    folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache
) -> None:
    (folder / "a.png").write_bytes(picture(1))
    for name in ("s", "t"):
        write_json(folder / f"{name}.json", [{"id": name, "image": "a.png", "conversations": chat("<image>", "a")}])
    come_back(make_mixture(*({"name": name, "json_path": f"{name}.json"} for name in ("s", "t"))), out, cache)
    assert image_files(out) == {"images/s/a.png": picture(1)}


@pytest.mark.parametrize("num_proc", [None, 2])
def test_by_bytes_equal_images_are_one_file(
    num_proc: int | None, folder: Path, make_mixture: MakeMixture, out: Path
) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture(1))
    (folder / "c.png").write_bytes(picture(2))
    records = [{"id": str(i), "image": name, "conversations": chat("<image>", "a")} for i, name in enumerate(["b.png", "a.png", "c.png"])]  # fmt: skip
    images = pa.array(
        [embedded(1, "z.png"), embedded(2), embedded(3)], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    write_table(folder / "e.parquet", {"image": images, "conversations": [chat("<image>", "a")] * 3})
    mixture = make_mixture(
        {"name": "s", "json_path": write_json(folder / "x.json", records)}, {"name": "t", "json_path": "e.parquet"}
    )
    export_raw(mixture, out, by_bytes=True, num_proc=num_proc)
    assert as_llava_reads(out) == [{"image": [picture(i)]} for i in (1, 1, 2, 1, 2, 3)]
    assert len(image_files(out)) == 3
    assert [record["image"] for record in records_of(out)][:5] == [
        "s/b.png",
        "s/b.png",
        "s/c.png",
        "s/b.png",
        "s/c.png",
    ]


def test_the_same_relative_path_below_two_roots_is_two_images(
    folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache
) -> None:
    for number, root in enumerate(("one", "two")):
        (folder / root).mkdir()
        (folder / root / "a.png").write_bytes(picture(number))
        write_json(folder / f"{root}.json", [{"id": root, "image": "a.png", "conversations": chat("<image>", "a")}])
    mixture = make_mixture(
        *({"name": "s", "json_path": f"{root}.json", "image_root": root} for root in ("one", "two"))
    )
    come_back(mixture, out, cache)
    assert as_llava_reads(out) == [{"image": [picture(0)]}, {"image": [picture(1)]}]


def test_generated_names_fill_at_most_ten_thousand_files_per_directory(out: Path) -> None:
    data = pa.array([{"bytes": b"GIF89a%05d" % i, "path": None} for i in range(10_001)], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    turns = pa.array([chat("<image>", "a")] * 10_001)
    ids = pa.array([f"{i % 7000}" for i in range(10_001)])
    pq.write_table(pa.table({"id": ids, "image": data, "conversations": turns}), out.with_suffix(".parquet"))
    (out.parent / "hub").mkdir()
    os.rename(out.with_suffix(".parquet"), out.parent / "hub" / "a.parquet")
    export_raw(out.parent / "hub", out)
    names = [record["image"] for record in records_of(out)]
    assert len(set(names)) == 10_001
    assert sorted(Counter(os.path.dirname(name) for name in names).values()) == [1, 10_000]
    assert Path(out, "images", names[10_000]).read_bytes() == b"GIF89a10000"
    assert Path(out, "images", names[7_000]).read_bytes() == b"GIF89a07000"


# Pixels.


def test_pixels_without_a_file_become_png(out: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    export_raw(dataset_of(row("x", pixels.tolist()), row("y"), image=datasets.Array3D((4, 5, 3), "uint8")), out)
    (name,) = image_files(out)
    assert name.endswith("/x.png")
    with Image.open(out / name) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels)
    assert "image" not in records_of(out)[1]


@pytest.mark.parametrize(
    ("feature", "pixels"),
    [
        (datasets.Array2D((2, 2), "int32"), [[0, 300], [65535, 1]]),
        (datasets.Array2D((2, 2), "uint8"), [[0, 30], [255, 1]]),
        (datasets.Array3D((2, 2, 4), "uint8"), [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2),
        ([[[datasets.Value("uint8")]]], [[[9, 8, 7], [6, 5, 4]]]),
        (datasets.Array3D((2, 2, 1), "uint8"), [[[1], [2]], [[3], [4]]]),
    ],
)
def test_pixels_keep_their_values(feature: Any, pixels: Any, out: Path) -> None:
    export_raw(dataset_of(row("x", pixels), image=feature), out)
    with Image.open(out / next(iter(image_files(out)))) as image:
        assert image.format == "PNG"
        assert np.array_equal(
            np.asarray(image),
            np.squeeze(np.asarray(pixels), axis=2) if np.shape(pixels)[2:] == (1,) else np.asarray(pixels),
        )


@pytest.mark.parametrize(
    ("feature", "pixels"),
    [
        (datasets.Array3D((2, 2, 3), "float32"), np.linspace(0, 1, 12).reshape(2, 2, 3).tolist()),
        (datasets.Array3D((2, 2, 3), "int32"), [[[-1, 0, 0]] * 2] * 2),
        (datasets.Array3D((2, 2, 3), "int32"), [[[256, 0, 0]] * 2] * 2),
        (datasets.Array3D((5, 5, 5), "uint8"), np.zeros((5, 5, 5), int).tolist()),
        ([[[datasets.Value("uint8")]]], [[[1, 2, 3]], [[1, 2, 3], [4, 5, 6]]]),
        ([[[datasets.Value("uint8")]]], [[[1, None, 3]]]),
    ],
)
def test_an_array_that_is_no_picture_is_an_error_not_a_black_square(feature: Any, pixels: Any, out: Path) -> None:
    with pytest.raises(ImageError, match=r"^dataset row 0: column 'image' holds an array that is no picture: "):
        export_raw(dataset_of(row("x", pixels), image=feature), out)


def test_pictures_of_a_generator_are_written(out: Path, tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield row("x", Image.new("RGB", (3, 4), (1, 2, 3)))
        yield row("y")

    export_raw(datasets.Dataset.from_generator(rows, cache_dir=str(tmp_path / "cache")), out)
    with Image.open(out / next(iter(image_files(out)))) as image:
        assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (3, 4), (1, 2, 3))
    assert [("image" in record) for record in records_of(out)] == [True, False]


# Where samples come from.


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "sub/b.png")):
        (root / name).write_bytes(picture(i))
    return root


@pytest.mark.parametrize(
    ("feature", "values", "expected"),
    [
        (TEXT, ["a.png", None, "sub/b.png", "a.png"], [[0], [], [1], [0]]),
        (datasets.Value("large_string"), ["a.png", "sub/b.png"], [[0], [1]]),
        ([TEXT], [["a.png", "sub/b.png"], [], None, ["a.png"]], [[0, 1], [], [], [0]]),
        (datasets.Value("binary"), [picture(3), None], [[3], []]),
        ([datasets.Value("binary")], [[picture(3), picture(4)], [], None], [[3, 4], [], []]),
        (datasets.Image(), [{"bytes": None, "path": "a.png"}, embedded(3), None], [[0], [3], []]),
        (datasets.LargeList(datasets.Image()), [[embedded(3)], [], None], [[3], [], []]),
        (datasets.Sequence(datasets.Image()), [[embedded(3), {"bytes": None, "path": "a.png"}]], [[3, 0]]),
    ],
)
def test_image_columns_of_any_make_are_read(
    feature: Any, values: list[Any], expected: list[list[int]], pictures: Path, out: Path, tmp_path: Path
) -> None:
    dataset = dataset_of(*(row(str(i), value) for i, value in enumerate(values)), image=feature)
    export_raw(dataset, out, image_root=pictures)
    assert as_llava_reads(out) == [{"image": [picture(i) for i in numbers]} if numbers else {} for numbers in expected]
    export_raw(dataset.to_iterable_dataset(), tmp_path / "streamed", image_root=pictures)
    assert files_of(tmp_path / "streamed") == files_of(out)


def test_a_missing_image_inside_a_list_is_an_error_not_a_shorter_list(out: Path) -> None:
    with pytest.raises(MixtureError):
        export_raw(dataset_of(row("0", [embedded(1), None, embedded(2)]), image=[datasets.Image()]), out)


def test_references_without_a_root_are_an_error(out: Path) -> None:
    with pytest.raises(ConfigError) as error:
        export_raw(dataset_of(row("0", "a.png"), image=TEXT), out)
    assert error.value.message == (
        "column 'image' holds references, and nobody says where images may be read: give image_root= (--image-root), "
        "the folder or URL that they are in"
    )


TURNS = {"from": ["human", "gpt"], "value": ["q", "a"]}


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ([{"from": TEXT, "value": TEXT}], chat("q", "a")),
        (datasets.Sequence({"from": TEXT, "value": TEXT}), TURNS),
        (datasets.LargeList({"from": TEXT, "value": datasets.Value("large_string")}), chat("q", "a")),
        ([{"value": TEXT, "from": TEXT}], chat("q", "a")),
        ([{"role": TEXT, "content": TEXT}], [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]),
    ],
)
def test_conversations_of_any_make_are_turns_again(feature: Any, value: Any, out: Path) -> None:
    export_raw(dataset_of({**row("0"), "conversations": value}, conversations=feature), out)
    assert records_of(out)[0]["conversations"] == [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("feature", "value", "reason"),
    [
        ([{"from": TEXT, "value": TEXT}], None, "'conversations' must be a list of turns, got None"),
        (
            [{"from": TEXT, "value": TEXT}],
            [{"from": "bot", "value": "x"}],
            "a turn is of neither human, gpt nor system",
        ),
        ([{"from": TEXT, "value": TEXT}], [{"from": "human", "value": None}, {"from": "gpt", "value": "a"}], None),
        (datasets.Sequence({"from": TEXT, "value": TEXT}), None, None),
        (datasets.Sequence({"from": TEXT, "value": TEXT}), {"from": ["human"], "value": ["q", "a"]}, None),
        (TEXT, "hello", "'conversations' must be a list of turns, got 'hello'"),
    ],
)
def test_what_is_no_conversation_is_an_error_or_a_ledger_line(
    feature: Any, value: Any, reason: str | None, out: Path, tmp_path: Path
) -> None:
    good = chat("q", "a") if not isinstance(feature, dict) else TURNS
    rows = [{**row("0"), "conversations": good if feature is not TEXT else "x"}, {**row("1"), "conversations": value}]
    if feature is TEXT:
        rows = rows[1:]
    with pytest.raises(MixtureError) as error:
        export_raw(dataset_of(*rows, conversations=feature), out)
    assert error.value.message.startswith(f"dataset row {len(rows) - 1}: ")
    if reason is not None:
        assert error.value.message == f"dataset row {len(rows) - 1}: {reason}"
    if feature is not TEXT:
        result = export_raw(dataset_of(*rows, conversations=feature), tmp_path / "skipped", on_error="skip")
        assert (
            result.report["data"]["rows"],
            result.report["data"]["delivered"],
            result.report["data"]["ledger"],
        ) == (2, 1, 1)


@pytest.mark.parametrize("feature", [datasets.Value("int64"), datasets.ClassLabel(names=["a", "b"])])
def test_a_data_source_that_is_no_text_does_not_break_the_export(feature: Any, out: Path) -> None:
    export_raw(dataset_of(row("0", embedded(1), 1), data_source=feature), out)
    assert as_llava_reads(out) == [{"image": [picture(1)]}]


def test_ids_may_be_numbers_or_missing(out: Path, tmp_path: Path) -> None:
    export_raw(dataset_of(row(5, embedded(1)), row(None, embedded(2)), id=datasets.Value("int64")), out)
    assert as_llava_reads(out) == [{"image": [picture(1)]}, {"image": [picture(2)]}]
    export_raw(dataset_of(row("0", embedded(1))).remove_columns(["id", "data_source"]), tmp_path / "bare")
    assert records_of(tmp_path / "bare")[0].keys() == {"image", "conversations"}
    assert as_llava_reads(tmp_path / "bare") == [{"image": [picture(1)]}]


def test_a_dataset_without_conversations_is_no_llava_data(out: Path) -> None:
    with pytest.raises(ConfigError) as error:
        export_raw(dataset_of(row("0")).remove_columns("conversations"), out)
    assert error.value.message == (
        "the data has no column 'conversations', only id, image, data_source: these are no LLaVA samples"
    )


def test_a_dataset_is_written_as_it_is_now(out: Path, tmp_path: Path) -> None:
    dataset = dataset_of(*(row(str(i), embedded(i)) for i in range(20)))
    changed = dataset.shuffle(seed=1).select(range(15)).filter(lambda sample: int(sample["id"]) % 2).map(lambda sample: {"id": sample["id"] + "!"})  # fmt: skip
    expected = list(changed["id"][:])
    export_raw(changed, out)
    assert [record["id"] for record in records_of(out)] == expected
    assert as_llava_reads(out) == [{"image": [picture(int(sample_id[:-1]))]} for sample_id in expected]
    stream = dataset.to_iterable_dataset(num_shards=3).shuffle(seed=2, buffer_size=7).skip(2).take(9)
    expected = [sample["id"] for sample in stream]
    export_raw(stream, tmp_path / "stream")
    assert [record["id"] for record in records_of(tmp_path / "stream")] == expected
    assert as_llava_reads(tmp_path / "stream") == [{"image": [picture(int(sample_id))]} for sample_id in expected]


def test_a_stream_that_was_mapped_says_what_it_lacks(out: Path) -> None:
    stream = dataset_of(row("0", embedded(1))).to_iterable_dataset()
    with pytest.raises(ConfigError) as error:
        export_raw(stream.map(lambda sample: sample), out)
    assert error.value.message == (
        "the stream does not say which columns it has: give features= to its map(), or export it before that"
    )
    undecoded = stream.cast_column("image", datasets.Image(decode=False))
    export_raw(undecoded.map(lambda sample: sample, features=undecoded.features), out)
    assert as_llava_reads(out) == [{"image": [picture(1)]}]


def test_an_error_of_a_stream_is_not_called_an_error_of_the_target(out: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield row("0", embedded(1))
        raise ConnectionError("the network is gone")

    stream = datasets.IterableDataset.from_generator(rows, features=datasets.Features(FEATURES))
    with pytest.raises((ConnectionError, MixtureError)) as error:
        export_raw(stream, out)
    assert "the network is gone" in str(error.value)
    assert "cannot be written" not in str(error.value)


def test_what_is_no_source_is_an_error(out: Path) -> None:
    with pytest.raises(ConfigError) as error:
        export_raw(5, out)
    assert error.value.message == "an export takes a mixture, a dataset or a folder of Parquet files, got 5"
    one = dataset_of(row("0"))
    with pytest.raises(ConfigError) as error:
        export_raw(datasets.DatasetDict(train=one, test=one), out)
    assert error.value.message == "the dataset has the splits train, test: export one, as in dataset['train']"
    with pytest.raises(ConfigError) as error:
        export_raw(one, out, config_names=["a"])
    assert error.value.message == "config_names is for mixtures and Parquet folders: a dataset is one config already"
    with pytest.raises(ConfigError) as error:
        export_raw(one.to_iterable_dataset(), out, num_proc=2)
    assert error.value.message == "a stream is read by one process: leave num_proc out"
    assert export_raw(datasets.DatasetDict(train=one), out).num_samples == 1


# Parquet folders.


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Two configs as on the Hub: `a` in two files, `b` in one."""
    root = tmp_path / "hub"
    for name, first, count in (("a/train-00000", 0, 3), ("a/train-00001", 3, 2), ("b/train", 5, 4)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        table = dataset_of(*(row(str(i), embedded(i)) for i in range(first, first + count))).with_format("arrow")[:]
        pq.write_table(table, root / f"{name}.parquet")
    return root


def with_readme(folder: Path, *configs: dict[str, Any]) -> Path:
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump({'configs': list(configs)})}---\n# Title\n", encoding="utf-8"
    )
    return folder


def ids_of(out_dir: Any) -> list[int]:
    return [int(record["id"]) for record in records_of(out_dir)]


def test_a_parquet_folder_without_configs_is_read_whole(hub: Path, out: Path) -> None:
    (hub / "_extra").mkdir()
    (hub / "_extra" / "x.parquet").write_bytes(b"no parquet")
    export_raw(hub, out)
    assert ids_of(out) == list(range(9))
    assert as_llava_reads(out) == [{"image": [picture(i)]} for i in range(9)]


A, B = {"config_name": "a", "data_files": "a/*.parquet"}, {"config_name": "b", "data_files": [{"split": "train", "path": ["b/*"]}]}  # fmt: skip


@pytest.mark.parametrize(
    ("configs", "names", "expected"),
    [
        ([A], None, [0, 1, 2, 3, 4]),
        ([A, B], ["b"], [5, 6, 7, 8]),
        ([A, B], ["b", "a"], [5, 6, 7, 8, 0, 1, 2, 3, 4]),
        ([{"config_name": "a", "data_files": ["a/train-00001.parquet"]}], None, [3, 4]),
    ],
)
def test_configs_of_a_readme_choose_files(configs: Any, names: Any, expected: list[int], hub: Path, out: Path) -> None:
    export_raw(with_readme(hub, *configs), out, config_names=names)
    assert ids_of(out) == expected


def test_configs_of_a_readme_that_do_not_fit_are_errors(hub: Path, out: Path) -> None:
    with_readme(hub, A, B)
    for names, expected in (
        (None, f"{hub} has the configs a, b: say which (config_names)"),
        (["c"], f"{hub}: no config 'c': there are a, b"),
    ):
        with pytest.raises(ConfigError) as error:
            export_raw(hub, out, config_names=names)
        assert error.value.message == expected
    with_readme(hub, {"config_name": "a", "data_files": "c/*"})
    with pytest.raises(ConfigError) as error:
        export_raw(hub, out)
    assert error.value.message == f"{hub}: config 'a' has no file like 'c/*'"
    (hub / "README.md").unlink()
    with pytest.raises(ConfigError) as error:
        export_raw(hub, out, config_names=["a"])
    assert error.value.message == f"{hub}: README.md names no configs, so there is no a"
    assert not out.exists()


def test_a_config_of_a_readme_may_name_a_folder(hub: Path, out: Path) -> None:
    export_raw(with_readme(hub, {"config_name": "b", "data_dir": "b"}), out)
    assert ids_of(out) == [5, 6, 7, 8]


def test_a_readme_that_is_no_text_is_an_error_that_names_it(hub: Path, out: Path) -> None:
    (hub / "README.md").write_bytes(b"---\n\xff\n---\n")
    with pytest.raises(MixtureError, match=r"README\.md"):
        export_raw(hub, out)


def test_files_of_other_columns_are_an_error(hub: Path, out: Path) -> None:
    pq.write_table(pa.table({"conversations": [chat("q", "a")]}), hub / "c.parquet")
    with pytest.raises(ConfigError) as error:
        export_raw(hub, out)
    assert error.value.message == f"{hub}: c.parquet has other columns than a/train-00000.parquet: say which config"


@pytest.mark.parametrize("keep", [0, 100])
def test_a_parquet_file_that_was_cut_is_an_error_that_names_it(keep: int, hub: Path, out: Path) -> None:
    os.truncate(hub / "b" / "train.parquet", keep)
    with pytest.raises(MixtureError, match=r"b/train\.parquet"):
        export_raw(hub, out)


def test_text_of_a_parquet_file_that_is_no_unicode_is_an_error_that_names_the_file(hub: Path, out: Path) -> None:
    path = hub / "b" / "train.parquet"
    table = pq.read_table(path).slice(0, 1)
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32).tobytes()), pa.py_buffer(b"\xff"))
    pq.write_table(table.set_column(0, "id", broken), path)
    with pytest.raises(MixtureError, match=r"b/train\.parquet row 0"):
        export_raw(hub, out)


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_parquet_folder_may_be_a_url(num_proc: int | None, hub: Path, out: Path, tmp_path: Path) -> None:
    memory, name = fsspec.filesystem("memory"), f"hub-{tmp_path.name}-{num_proc}"
    memory.put(str(with_readme(hub, A, B)), f"/{name}", recursive=True)
    export_raw(f"memory://{name}", out, config_names=["a"], num_proc=num_proc)
    export_raw(hub, tmp_path / "local", config_names=["a"])
    assert files_of(out) == files_of(tmp_path / "local")
    memory.rm(f"/{name}", recursive=True)


def test_a_folder_without_parquet_files_is_an_error(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as error:
        export_raw(tmp_path / "empty", out)
    assert error.value.message == f"{tmp_path / 'empty'}: there is no Parquet file in it"


# Determinism.


def test_mixture_dataset_and_stream_give_the_same_bytes(out: Path, tmp_path: Path) -> None:
    for name in Mixture.load("default").config_names[1:]:
        export_raw("default", out / name, config_names=[name])
        expected = files_of(out / name)
        stream = datasets.load_dataset("llava_mixture", name, split="train", streaming=True)
        for kind, source in (("built", built("default", name, tmp_path)), ("streamed", stream)):
            export_raw(source, out / kind / name)
            found = files_of(out / kind / name)
            assert found["data.json"] == expected["data.json"]
            assert image_files(out / kind / name) == image_files(out / name)


@pytest.mark.parametrize("num_proc", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(num_proc: int, hub: Path, out: Path, tmp_path: Path) -> None:
    dataset = dataset_of(*(row(f"{i % 50}", embedded(i % 70, ["p.png", None, f"{i}.png"][i % 3])) for i in range(300)))
    for number, (source, by_bytes) in enumerate(
        [("default", False), ("default", True), (dataset, True), (hub, False)]
    ):
        for name, processes in (("one", None), ("many", num_proc)):
            export_raw(source, out / f"{number}-{name}", num_proc=processes, by_bytes=by_bytes)
        assert files_of(out / f"{number}-many") == files_of(out / f"{number}-one")


@pytest.mark.parametrize("num_proc", [None, 2, 3])
def test_a_parquet_entry_may_be_cut_inside_of_its_row_groups(
    num_proc: int | None, folder: Path, make_mixture: MakeMixture, out: Path
) -> None:
    write_table(
        folder / "p.parquet",
        {"id": [str(i) for i in range(20)], "conversations": [chat(f"q{i}", "a") for i in range(20)]},
    )
    mixture = make_mixture({"name": "p", "json_path": "p.parquet", "features": {"image": "none"}})
    export_raw(mixture, out, num_proc=num_proc)
    expected = [{"id": str(i), "data_source": "p", "conversations": chat(f"q{i}", "a")} for i in range(20)]
    assert records_of(out) == expected
    stream = datasets.load_dataset(
        "llava_mixture", "p", mixture=mixture, split="train", streaming=True, num_shards=num_proc
    )
    assert list(stream) == expected


@pytest.mark.parametrize("seed", range(12))
def test_any_rows_find_their_way(seed: int, out: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    flat = [path for paths in CONFLICTS for path in paths] + [*UNSAFE_PATHS, None, None, None]
    sources = ["s", "s", "t/u", "..", "x" * 300, "S", None]

    def image() -> Any:
        return embedded(rng.randrange(9), rng.choice(flat), rng.choice(["PNG", "JPEG", "GIF"]))

    rows = [
        row(rng.choice(IDS), rng.choice([None, image()]), rng.choice(sources), image_gen=[image() for _ in range(rng.randrange(4))])
        for _ in range(rng.randrange(1, 25))
    ]  # fmt: skip
    dataset = dataset_of(*rows, image_gen=[datasets.Image()])
    by_bytes = rng.random() < 0.5
    export_raw(dataset, out, by_bytes=by_bytes)
    expected = [
        {c: images for c in ("image", "image_gen") if (images := [i["bytes"] for i in (r[c] if isinstance(r[c], list) else [r[c]]) if i])}
        for r in rows
    ]  # fmt: skip
    assert as_llava_reads(out) == expected
    assert [(r.get("id"), r.get("data_source")) for r in records_of(out)] == [
        (r["id"], r["data_source"]) for r in rows
    ]
    if by_bytes:
        assert len(image_files(out)) == len({i for images in expected for many in images.values() for i in many})
    export_raw(dataset.to_iterable_dataset(), tmp_path / "again", by_bytes=by_bytes)
    assert files_of(tmp_path / "again") == files_of(out)


# What was finished, and what only looks like it.


def test_a_finished_export_is_not_written_again(out: Path) -> None:
    dataset = dataset_of(row("0", embedded(1)))
    first = export_raw(dataset, out)
    before = {path: path.stat() for path in out.rglob("*") if path.is_file() and path.name != "lock"}
    second = export_raw(dataset, out)
    assert second.was_complete
    assert (second.num_samples, second.report) == (first.num_samples, first.report)
    after = {path: path.stat() for path in out.rglob("*") if path.is_file() and path.name != "lock"}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()
    }


def is_written_or_refused(source: Any, out_dir: Path, expected: list[str], **arguments: Any) -> None:
    """Another export into a folder that holds a finished one: never that one, called complete."""
    try:
        result = export_raw(source, out_dir, **arguments)
    except OutputError as error:
        assert error.code == "target_occupied"
    else:
        assert not result.was_complete
        assert [record["id"] for record in records_of(out_dir)] == expected


def test_another_part_of_a_stream_is_another_export(out: Path) -> None:
    stream = dataset_of(*(row(str(i)) for i in range(9))).to_iterable_dataset()
    export_raw(stream.take(3), out)
    is_written_or_refused(stream.skip(3).take(4), out, ["3", "4", "5", "6"])


def test_the_images_of_a_stream_that_broke_off_are_not_taken_for_those_of_another(out: Path) -> None:
    def rows(first: int, stop: int) -> Iterator[dict[str, Any]]:
        for i in range(200):
            if i == stop:
                raise KeyboardInterrupt
            yield row(str(i), embedded(first + i))

    def stream(first: int, stop: int) -> datasets.IterableDataset:
        features = datasets.Features(FEATURES)
        return datasets.IterableDataset.from_generator(
            rows, features=features, gen_kwargs={"first": first, "stop": stop}
        )

    with pytest.raises(KeyboardInterrupt):
        export_raw(stream(0, 150), out)
    try:
        export_raw(stream(1000, 200), out)
    except OutputError as error:
        assert error.code == "target_occupied"
    else:
        assert as_llava_reads(out) == [{"image": [picture(1000 + i)]} for i in range(200)]


def test_other_parquet_files_of_the_same_size_are_another_export(tmp_path: Path, out: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        table = dataset_of(row(name, embedded(int(name)))).with_format("arrow")[:]
        pq.write_table(table, tmp_path / name / "a.parquet", compression="none")
    assert (tmp_path / "1" / "a.parquet").stat().st_size == (tmp_path / "2" / "a.parquet").stat().st_size
    export_raw(tmp_path / "1", out)
    is_written_or_refused(tmp_path / "2", out, ["2"])


def test_another_image_root_is_another_export(tmp_path: Path, out: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").write_bytes(picture(number))
    dataset = dataset_of(row("0", "a.png"), image=TEXT)
    export_raw(dataset, out, image_root=tmp_path / "1")
    is_written_or_refused(dataset, out, ["0"], image_root=tmp_path / "2")


def test_another_order_of_configs_is_another_export(folder: Path, make_mixture: MakeMixture, out: Path) -> None:
    names = ["a", "b"]
    mixture = make_mixture(
        *(
            {"name": n, "json_path": write_json(folder / f"{n}.json", [{"id": n, "conversations": chat("q", "a")}])}
            for n in names
        )
    )
    export_raw(mixture, out, config_names=["a", "b"])
    is_written_or_refused(mixture, out, ["b", "a"], config_names=["b", "a"])


def test_other_weights_are_in_the_mixture_file_of_the_next_export(
    folder: Path, make_mixture: MakeMixture, out: Path
) -> None:
    entry = {"name": "a", "json_path": write_json(folder / "a.json", [{"id": "0", "conversations": chat("q", "a")}])}
    export_raw(make_mixture(entry), out)
    changed = make_mixture({**entry, "length_group": "g", "license": "mit"}, weights={"g": 7})
    is_written_or_refused(changed, out, ["0"])
    export_raw(changed, out, overwrite=True)
    again = Mixture.load(out / "mixture.yaml")
    assert (again.weights, again.entries[0].length_group, again.entries[0].license) == ({"g": 7.0}, "g", "mit")


# Build → raw → build.


@pytest.mark.parametrize(("mixture", "name"), CONFIGS, ids=[f"{mixture}-{name}" for mixture, name in CONFIGS])
def test_every_config_comes_back_as_it_was(mixture: str, name: str, out: Path, tmp_path: Path) -> None:
    before = built(mixture, name, tmp_path / "1")
    export_raw(mixture, out, config_names=[name])
    after = built(out / "mixture.yaml", None if name == "mixture" else name, tmp_path / "2")
    assert after.features == before.features
    assert after.column_names == before.column_names
    assert is_same(values_of(after), values_of(before))


@pytest.mark.parametrize("arguments", [{"num_proc": 2}, {"by_bytes": True}, {"jsonl": True}])
def test_a_whole_mixture_comes_back_however_it_is_written(
    arguments: dict[str, Any], out: Path, cache: PlanCache
) -> None:
    come_back(Mixture.load("default"), out, cache, **arguments)


def test_groups_weights_licences_and_sources_come_back(out: Path) -> None:
    before = Mixture.load("default")
    export_raw(before, out)
    after = Mixture.load(out / "mixture.yaml")
    assert (after.weights, after.batch_sizes, after.seed, after.notes) == (
        before.weights,
        before.batch_sizes,
        before.seed,
        (),
    )
    for new, old in zip(after.entries, before.entries, strict=True):
        assert (new.config_name, new.length_group, new.license, new.source) == (
            old.config_name,
            old.length_group,
            old.license,
            old.source,
        )


PLAIN: dict[str, Any] = {"conversations": chat("q", "a")}
SPECIAL = '\x00\x01\t\n\r\x1f\x7f\x85\u2028\ufeff é 世界 🌍 \\ " </s> NaN null'
ROUND_TRIPS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "floats": (
        [
            {**PLAIN, "f": 0.1, "g": [0.1, "NaN", "-Infinity", None, -0.0, 3.4028234663852886e38, 1e-45], "h": 5e-324},
            {**PLAIN, "f": "Infinity", "g": [], "h": "NaN"},
            {**PLAIN, "f": None, "h": 1.7976931348623157e308},
        ],
        {"features": {"f": "float32", "g": "list<float32>", "h": "float64"}},
    ),
    "integers": (
        [
            {**PLAIN, "a": 2**63 - 1, "b": 2**64 - 1, "c": [[1, -2], [], [2**31 - 1]], "d": -128},
            {**PLAIN, "a": -(2**63), "b": 0, "c": [], "d": None},
            {**PLAIN, "c": None},
        ],
        {"features": {"a": "int64", "b": "uint64", "c": "list<list<int32>>", "d": "int8"}},
    ),
    "empty lists and null": (
        [{**PLAIN, "a": [], "b": [[], None, ["", None]]}, {**PLAIN, "a": None, "b": []}, {**PLAIN, "a": [None, True]}],
        {"features": {"a": "list<bool>", "b": "list<list<string>>"}},
    ),
    "texts that look like something else": (
        [{**PLAIN, "a": text} for text in ("NaN", "null", "", "true", "1", "[1]", SPECIAL)],
        {"keep_columns": ["a"]},
    ),
    "kept values of any type": (
        [{**PLAIN, "a": {"x": 1}, "b": 1, "c": [1, 2]}, {**PLAIN, "a": "text", "b": 2.5, "c": []}, {**PLAIN, "b": None}],
        {"keep_columns": ["a", "b", "c"]},
    ),
    "ids": (
        [{**PLAIN, "id": sample_id} for sample_id in ("a/b", "..", 7, 7, "7", None, "é", "x" * 300, " ", SPECIAL)],
        {},
    ),
    "data sources of the rows": (
        [{**PLAIN, "data_source": name} for name in ("b", "e", "a/b", "mixture", "", SPECIAL, "1", "b")] + [PLAIN],
        {},
    ),
    "text": ([{"conversations": chat(SPECIAL, SPECIAL[::-1])}], {}),
    "system turns": (
        [{"conversations": [{"from": "system", "value": "be kind"}, *chat("q", "a")]}, {"conversations": chat("q", "a", "r", "b")}],
        {},
    ),
    "images one": (
        [{"image": "p.png", "conversations": chat("<image>", "a")}, PLAIN, {"image": "sub/q.png", "conversations": chat("<image>", "a")}],
        {},
    ),
    "images many": (
        [{"image": ["p.png", "sub/q.png", "p.png"], "conversations": chat("<image><image>", "<image>")}, {"image": [], **PLAIN},
         {"image": "p.png", "conversations": chat("<image>", "a")}, PLAIN],
        {"multi_image": True},
    ),
    "generated images": (
        [{"image_gen": "p.png", "image_gen_enc": ["p.png", "sub/q.png"], "conversations": chat("<image_gen_enc><image_gen_enc>", "<image_gen>")},
         {"image_gen_enc": ["p.png"], "conversations": chat("<image_gen_enc>", "a")}],
        {"features": {"image": "none", "image_gen": "one", "image_gen_enc": "many"}},
    ),
    "copies": ([{"id": "x", **PLAIN}, {"image": "p.png", "conversations": chat("<image>", "a")}], {"sampling_strategy": "dup:3"}),
    "a sample of the rows": ([{"id": str(i), **PLAIN} for i in range(20)], {"sampling_strategy": "random:35%"}),
    "placeholders that nobody counts": ([{"conversations": chat("<image><image_gen>", "a")}], {"placeholders": "off"}),
    "placeholders that are repaired": ([{"image": "p.png", "conversations": chat("q", "a")}], {}),
    "turns that are trimmed": ([{"conversations": [{"from": "gpt", "value": "hi"}, *chat("q", "a")]}], {}),
}  # fmt: skip


@pytest.mark.parametrize("what", ROUND_TRIPS)
def test_values_come_back_as_they_were(
    what: str, folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache
) -> None:
    records, entry = ROUND_TRIPS[what]
    (folder / "sub").mkdir()
    (folder / "p.png").write_bytes(picture(1))
    (folder / "sub" / "q.png").write_bytes(picture(2))
    other = {
        "name": "other",
        "json_path": write_json(folder / "other.json", [{"id": "o", **PLAIN}]),
        "multi_image": False,
    }
    come_back(
        make_mixture({"name": "e", "json_path": write_json(folder / "e.json", records), **entry}, other), out, cache
    )


def test_float32_values_are_those_that_were_written(
    folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache
) -> None:
    values = np.frombuffer(np.random.RandomState(1).bytes(4 * 2000), np.float32)
    write_table(folder / "e.parquet", {"conversations": [chat("q", "a")] * 2000, "f": pa.array(values)})
    mixture = make_mixture({"name": "e", "json_path": "e.parquet", "features": {"f": "float32", "image": "none"}})
    export_raw(mixture, out)
    found = [sample["f"] for sample in samples_of(Mixture.load(out / "mixture.yaml"), "e", cache)[0]]
    assert np.array_equal(np.array(found, np.float32), values, equal_nan=True)


NAMES = ["x", "x", "x-2", "a/b", "a:b", "a_b", "é 世界", "1", "true", "null", "~", "#c", "a: b", "- d", "'q", '"', "*a", "&a", "{a}", " lead", "trail ", "x\ty", "${HOME}", "data", "N" * 300, "é\u2028"]  # fmt: skip


def test_entries_of_any_name_come_back(folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache) -> None:
    entries = []
    for i, name in enumerate(NAMES):
        write_json(folder / f"{i}.json", [{"id": str(i), **PLAIN}, {"id": f"{i}b", **PLAIN, "data_source": NAMES[-i]}])
        entries.append({"name": name, "json_path": f"{i}.json", "multi_image": i % 2 == 0})
    come_back(make_mixture(*entries), out, cache)


def test_entries_of_different_columns_come_back(
    folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache
) -> None:
    (folder / "p.png").write_bytes(picture(1))
    with_image = {"image": "p.png", "conversations": chat("<image>", "a")}
    write_json(folder / "a.json", [with_image, {**PLAIN, "s": [1.5]}])
    write_json(folder / "b.json", [{**PLAIN, "t": True}])
    write_json(folder / "c.json", [{"image": ["p.png", "p.png"], "conversations": chat("<image><image>", "a")}])
    mixture = make_mixture(
        {"name": "e", "json_path": "a.json", "features": {"s": "list<float32>"}},
        {"name": "e", "json_path": "b.json", "features": {"image": "none", "t": "bool"}},
        {"name": "e", "json_path": "c.json"},
    )
    come_back(mixture, out, cache)


def test_a_kept_column_with_the_name_of_the_mark_comes_back(
    folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache
) -> None:
    for name in ("a", "b"):
        write_json(
            folder / f"{name}.json",
            [{"id": name, **PLAIN, "entry": "x-2"}, {"id": f"{name}2", **PLAIN, "entry": "own"}],
        )
    entries = [
        {"name": "x", "json_path": f"{name}.json", "keep_columns": ["entry"], "multi_image": False}
        for name in ("a", "b")
    ]
    come_back(make_mixture(*entries), out, cache)


def test_a_part_of_a_mixture_comes_back_under_its_names(
    folder: Path, make_mixture: MakeMixture, out: Path, cache: PlanCache
) -> None:
    for name in ("a", "b", "c"):
        write_json(folder / f"{name}.json", [{"id": name, **PLAIN}])
    mixture = make_mixture(
        *({"name": "x", "json_path": f"{name}.json", "multi_image": False} for name in ("a", "b", "c"))
    )
    export_raw(mixture, out, config_names=["x-3", "x-2"])
    again = Mixture.load(out / "mixture.yaml")
    assert again.config_names == ["mixture", "x-3", "x-2"]
    for name, sample_id in (("x-2", "b"), ("x-3", "c")):
        assert samples_of(again, name, cache)[0] == samples_of(mixture, name, cache)[0]
        assert [(s["id"], s["data_source"]) for s in samples_of(again, name, cache)[0]] == [(sample_id, "x")]


def test_an_export_of_an_export_is_the_same(out: Path, tmp_path: Path, cache: PlanCache) -> None:
    export_raw("default", out)
    export_raw(out / "mixture.yaml", tmp_path / "second")
    first, second = (
        with_bytes(samples_of(Mixture.load(d / "mixture.yaml"), "mixture", cache)[0])
        for d in (out, tmp_path / "second")
    )
    assert is_same(second, first)


@pytest.mark.parametrize("sources", [["", "b"], ["", ""], ["a", None], ["mixture", "b"], ["mixture", "mixture"], ["a/b", "a:b"], ["x\0y", "\n"], ["1", "true"], ["data", "data-2"], ["s" * 300, "é\u2028"], ["é\x85", "b"]])  # fmt: skip
def test_a_dataset_can_be_built_again_by_its_data_sources(
    sources: list[str | None], out: Path, cache: PlanCache
) -> None:
    # Paths are given: a name made from an empty data source must not become an absolute one.
    rows = [row(str(i), embedded(i, f"{str(out)[1:]}-{i}.png"), source) for i, source in enumerate(sources)]
    export_raw(dataset_of(*rows), out)
    samples = with_bytes(samples_of(Mixture.load(out / "mixture.yaml"), "mixture", cache)[0])
    expected = [(str(i), picture(i)) for i in range(len(sources))]
    assert [(s["id"], s["image"]) for s in samples] == expected
    assert [s["data_source"] for s, given in zip(samples, sources, strict=True) if given is not None] == [
        s for s in sources if s is not None
    ]


def test_a_dataset_of_our_builder_comes_back(out: Path, tmp_path: Path) -> None:
    for name in ("instruct", "mixture"):
        before = built("default", name, tmp_path / "1")
        export_raw(before, out / name)
        after = built(out / name / "mixture.yaml", None, tmp_path / "2")
        assert after.features == before.features
        found, expected = values_of(after), values_of(before)
        for data_source in {sample["data_source"] for sample in expected}:  # each is an entry now, in its order
            assert is_same(*([s for s in some if s["data_source"] == data_source] for some in (found, expected)))
        assert len(found) == len(expected)


def test_the_builder_streams_the_export(out: Path) -> None:
    export_raw("default", out)
    builder = llava_mixture.LlavaMixture(config_name="edits", mixture=out / "mixture.yaml")
    ids = [
        sample["id"]
        for sample in builder.as_streaming_dataset("train").cast_column("image_gen", datasets.Image(decode=False))
    ]
    assert ids == [record["id"] for record in records_of(out) if record["data_source"] == "edits"]


# What a review found.


@pytest.mark.parametrize("num_proc", [None, 2])
def test_by_bytes_an_image_that_cannot_be_read_goes_into_the_ledger(
    num_proc: int | None, folder: Path, make_mixture: MakeMixture, out: Path
) -> None:
    for i in range(6):
        (folder / f"{i}.png").write_bytes(picture(i % 2) if i != 3 else b"no picture")
    records = [{"id": str(i), "image": f"{i}.png", "conversations": chat("<image>", "a")} for i in range(6)]
    mixture = make_mixture({"name": "s", "json_path": write_json(folder / "a.json", records)})
    with pytest.raises(ImageError):
        export_raw(mixture, out, by_bytes=True, num_proc=num_proc)
    skipped = out.with_name("skipped")
    result = export_raw(mixture, skipped, by_bytes=True, num_proc=num_proc, on_error="skip")
    assert (result.num_samples, result.report["s"]["ledger"]) == (5, 1)
    assert [record["image"] for record in records_of(skipped)] == [
        "s/0.png",
        "s/1.png",
        "s/0.png",
        "s/0.png",
        "s/1.png",
    ]


def test_a_stream_of_another_function_is_another_export(out: Path) -> None:
    features = datasets.Features(FEATURES)
    stream = dataset_of(row("a")).to_iterable_dataset()
    export_raw(stream.map(lambda sample: {"id": sample["id"].upper()}, features=features), out)
    with pytest.raises(OutputError):
        export_raw(stream.map(lambda sample: {"id": sample["id"].lower()}, features=features), out)
    assert [record["id"] for record in records_of(out)] == ["A"]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_parquet_folder_is_not_overwritten_by_its_own_export(prefix: str, out: Path) -> None:
    dataset_of(row("a", embedded(1))).to_parquet(out / "x.parquet")
    export_raw(str(out), out.with_name("first"))
    (out / STATE_DIR).mkdir()
    (out / STATE_DIR / "plan.json").write_text('{"format": 1, "kind": "raw"}')
    (out / STATE_DIR / "files.txt").write_text("x.parquet\n")
    with pytest.raises(OutputError) as error:
        export_raw(f"{prefix}{out}", out, overwrite=True)
    assert error.value.code == "target_is_source"
    assert (out / "x.parquet").exists()


def test_several_splits_are_not_mixed(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        dataset_of(row(split)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ConfigError) as error:
        export_raw(folder.parent, out)
    assert error.value.message == (
        f"{folder.parent} has the splits test, train: export one, as a dataset: export_raw(load_dataset(…, split='test'), …)"
    )
