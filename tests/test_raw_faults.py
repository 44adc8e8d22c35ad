"""The raw way out when something goes wrong: bad images, hostile names, full disks, kills. Never a wrong folder that
looks whole.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from llava_arrow import ConfigError, ImageError, Mixture, MixtureError, OutputError, SchemaError, export_raw
from llava_arrow.outputs import image_files as image_files_module
from tests.conftest import MakeMixture, chat, write_json, write_table
from tests.test_raw import FEATURES, as_llava_reads, dataset_of, embedded, files_of, picture, records_of, row

STATE = ".llava-mixture"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def mixture_of(folder: Path, make_mixture: MakeMixture) -> Callable[..., Any]:
    """An entry `a` whose rows have these images; `images` below the mixture is the image root, `good.png` is in it."""
    (folder / "images").mkdir()
    (folder / "images" / "good.png").write_bytes(picture(1))

    def make(*images: str | None, **entry: Any) -> Any:
        records = [
            {
                "id": f"r{i}",
                "conversations": chat("q" if path is None else "<image>", "a"),
                **({} if path is None else {"image": path}),
            }
            for i, path in enumerate(images)
        ]
        write_json(folder / "a.json", records)
        return make_mixture({"name": "a", "json_path": "a.json", "image_root": "images", **entry})

    return make


def looks_whole(out_dir: Path) -> bool:
    return (
        (out_dir / "data.json").exists()
        or (out_dir / "mixture.yaml").exists()
        or (out_dir / STATE / "manifest.json").exists()
    )


def is_accounted_for(report: dict[str, Any]) -> bool:
    """Law 3, for every entry of a report."""
    return all(
        counts["rows"]
        == counts["delivered"] + sum(counts["filtered"].values()) + counts["not_sampled"] + counts["ledger"]
        for counts in report.values()
    )


def ledger_of(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


def message_of(error: type[MixtureError], call: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        call()
    return caught.value.message


# Bad images.


def spoil(path: Path, how: str) -> None:
    if how == "no image":
        path.write_bytes(b"<html>not found</html>")
    elif how == "empty":
        path.touch()
    elif how == "directory":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "broken link":
        path.symlink_to("nowhere.png")
    elif how == "link to itself":
        path.symlink_to(path.name)
    elif how == "too large":
        path.touch()
        os.truncate(path, (1 << 29) + 1)
    elif how == "device":
        path.symlink_to("/dev/zero")


BAD_IMAGES = [
    ("missing", "image_missing", "{path} does not exist"),
    ("broken link", "image_missing", None),
    ("no image", "no_image", "{path} is no image (it begins with b'<html>not fo')"),
    ("empty", "image_empty", "{path} is empty"),
    ("directory", "image_unreadable", "{path} is a directory"),
    ("pipe", "image_unreadable", "{path} is no regular file"),
    ("link to itself", None, None),
    ("too large", "image_too_large", "{path} has 536,870,913 bytes: an image may have at most 536,870,912"),
    ("device", "image_outside_root", "{path} is a link to /dev/zero, outside of the image root {root}"),
]


@pytest.mark.parametrize(("how", "code", "reason"), BAD_IMAGES, ids=[how for how, _, _ in BAD_IMAGES])
def test_a_bad_image_is_an_error_that_names_it_or_a_ledger_line(
    how: str, code: str | None, reason: str | None, folder: Path, mixture_of: Any, out: Path
) -> None:
    root = folder / "images"
    num_proc = 2 if how in ("missing", "pipe") else None
    mixture = mixture_of("good.png", "bad.png", None)
    spoil(root / "bad.png", how)
    message = message_of(ImageError, lambda: export_raw(mixture, out, num_proc=num_proc))
    place = f"{folder}/a.json row 1 (sample 'r1'): "
    assert message.startswith(f"{place}{root}/bad.png ")
    if reason is not None:
        assert message == place + reason.format(path=root / "bad.png", root=root)
    assert not looks_whole(out)
    result = export_raw(mixture, out.with_name("skipped"), on_error="skip", num_proc=num_proc)
    assert [record["id"] for record in records_of(result.out_dir)] == ["r0", "r2"]
    (line,) = ledger_of(out.with_name("skipped"))
    assert (line["config"], line["file"], line["row"], line["id"]) == ("a", f"{folder}/a.json", 1, "r1")
    assert line["reason"] == message.removeprefix(place)
    assert code is None or line["code"] == code
    counts = result.report["a"]
    assert (counts["rows"], counts["delivered"], counts["samples"], counts["ledger"]) == (3, 2, 2, 1)
    assert is_accounted_for(result.report)
    assert json.loads(Path(result.out_dir, "report.json").read_text()) == result.report


def test_a_bad_image_among_copies_filters_and_samples_is_one_row(
    folder: Path, mixture_of: Any, make_mixture: MakeMixture, out: Path
) -> None:
    rows = 20
    write_table(
        folder / "t.parquet",
        {
            "image": ["good.png" if i % 5 else f"bad{i}.png" for i in range(rows)],
            "fltLaionAesthScore": [float(i >= 4) * 9 for i in range(rows)],
            "conversations": [chat("<image>", "a")] * rows,
        },
    )
    entry = {
        "name": "t",
        "json_path": "t.parquet",
        "image_root": "images",
        "sampling_strategy": "dup:3",
        "on_error": "skip",
    }
    first = {**entry, "name": "f", "sampling_strategy": "first:10", "aes_cutoff": None}
    expected: dict[str, Any] | None = None
    for num_proc in (None, 2):
        target = out / str(num_proc)
        result = export_raw(make_mixture(entry, first), target, num_proc=num_proc)
        assert is_accounted_for(result.report)
        counts = result.report["t"]  # rows 4 … 19 pass; 5, 10 and 15 are bad
        assert (counts["rows"], counts["filtered"], counts["delivered"], counts["samples"], counts["ledger"]) == (
            20,
            {"aes_cutoff": 4},
            13,
            39,
            3,
        )
        counts = result.report["f"]  # rows 0 … 9; 0 and 5 are bad
        assert (counts["rows"], counts["not_sampled"], counts["delivered"], counts["samples"], counts["ledger"]) == (
            20,
            10,
            8,
            8,
            2,
        )
        assert [(line["config"], line["row"]) for line in ledger_of(target)] == [
            ("t", 5),
            ("t", 10),
            ("t", 15),
            ("f", 0),
            ("f", 5),
        ]
        assert len(records_of(target)) == result.num_samples == 47
        expected = expected or files_of(target)
        assert files_of(target) == expected


def test_one_bad_image_of_several_takes_its_sample_along(
    mixture_of: Any, folder: Path, out: Path, make_mixture: MakeMixture
) -> None:
    records = [{"id": "0", "image": ["good.png", "nope.png", "nada.png"], "conversations": chat("<image><image><image>", "a")}, {"id": "1", "image": ["good.png"], "conversations": chat("<image>", "a")}]  # fmt: skip
    mixture_of()
    write_json(folder / "m.json", records)
    mixture = make_mixture({"name": "m", "json_path": "m.json", "image_root": "images"})
    result = export_raw(mixture, out, on_error="skip")
    assert [record["id"] for record in records_of(out)] == ["1"]
    assert [line["reason"] for line in ledger_of(out)] == [f"{folder}/images/nope.png does not exist"]
    assert result.report["m"]["ledger"] == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "embedded image x.png is empty"),
        (b"no image at all", "embedded image x.png is no image (it begins with b'no image at ')"),
    ],
)
def test_embedded_bytes_are_looked_at(data: bytes, reason: str, out: Path) -> None:
    dataset = dataset_of(row("0", embedded(1)), row("1", {"bytes": data, "path": "x.png"}))
    assert message_of(ImageError, lambda: export_raw(dataset, out)) == f"dataset row 1 (sample '1'): {reason}"
    assert not looks_whole(out)
    export_raw(dataset, out.with_name("skipped"), on_error="skip")
    assert [line["reason"] for line in ledger_of(out.with_name("skipped"))] == [reason]


def test_when_nothing_is_left_it_is_an_error(mixture_of: Any, folder: Path, out: Path) -> None:
    message = message_of(OutputError, lambda: export_raw(mixture_of("nope.png"), out, on_error="skip"))
    assert message == f"there is no sample to write: image_missing: {folder}/images/nope.png does not exist"
    assert not looks_whole(out)
    assert (
        message_of(OutputError, lambda: export_raw(dataset_of(row("0")).select([]), out.with_name("b")))
        == "there is no sample to write"
    )


def test_a_bad_row_of_the_mixture_is_an_error_before_anything_looks_whole(
    folder: Path, make_mixture: MakeMixture, out: Path
) -> None:
    records = [{"id": "0", "conversations": chat("q", "a")}, {"id": "1", "conversations": []}]
    mixture = make_mixture({"name": "a", "json_path": write_json(folder / "a.json", records), "multi_image": False})
    message = message_of(SchemaError, lambda: export_raw(mixture, out))
    assert (
        message == f"{folder}/a.json row 1 (entry 'a'): the conversation is empty: it needs a human turn and an answer"
    )
    assert not looks_whole(out)


# What may be read.


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image that no export may publish."""
    path = tmp_path / "secret" / "s.png"
    path.parent.mkdir()
    path.write_bytes(picture(99))
    return path


def outside(path: Any, root: Any) -> str:
    return f"{path} is outside of the image root {root}, and an export reads images from there only: set image_root to a folder or URL that holds them"


def test_absolute_paths_and_urls_lead_nowhere_but_into_the_root(
    folder: Path, mixture_of: Any, secret: Path, out: Path
) -> None:
    root = folder / "images"
    for reference in (str(secret), f"file://{secret}", f"local://{secret}", f"FILE://{secret}", f"{root}/../../secret/s.png", "http://localhost:9/x.png",
                      f"zip://s.png::{secret}", f"file://{root}/good.png::file://{secret}", f"memory://x::file://{secret}"):  # fmt: skip
        message = message_of(ImageError, lambda ref=reference: export_raw(mixture_of(ref), out / "x", overwrite=True))
        place = f"{folder}/a.json row 0 (sample 'r0'): "
        if ".." in reference:
            assert (
                message == f"{place}{reference} is a link to {secret}, outside of the image root {root}"
                or message == place + outside(reference, root)
            )
        elif "good.png" not in reference:
            assert message == place + outside(reference, root)
        assert not looks_whole(out / "x")
    for reference in (f"{root}/good.png", f"file://{root}/good.png"):
        export_raw(mixture_of(reference), out / "x", overwrite=True)
        assert as_llava_reads(out / "x") == [{"image": [picture(1)]}]


@pytest.mark.parametrize(
    "reference", ["../secret.png", "x/../../secret.png", "..", "x/..", "", "a\0b.png", f"{'../' * 30}etc/passwd"]
)
def test_references_that_leave_the_root_or_name_nothing_are_errors(
    reference: str, folder: Path, mixture_of: Any, out: Path
) -> None:
    (folder / "secret.png").write_bytes(picture(99))
    message = message_of(MixtureError, lambda: export_raw(mixture_of(reference), out))
    reason = (
        f"image reference {reference!r} leaves the image root {folder}/images: relative references must stay in it"
        if "../" in reference
        else f"image reference {reference!r} names no file"
    )
    assert message == f"{folder}/a.json row 0 (entry 'a'): {reason}"
    assert not looks_whole(out)


@pytest.mark.parametrize(
    "reference", ["simplecache::{secret}", "simplecache::file://{secret}", "file:{secret}", "~/s.png", "$HOME/s.png"]
)
def test_what_only_looks_like_a_url_is_a_path_in_the_root(
    reference: str, folder: Path, mixture_of: Any, secret: Path, out: Path
) -> None:
    message = message_of(ImageError, lambda: export_raw(mixture_of(reference.format(secret=secret)), out))
    assert message.startswith(f"{folder}/a.json row 0 (sample 'r0'): {folder}/images/")
    assert message.endswith(" does not exist")


def test_links_that_leave_the_root_are_errors_and_others_are_followed(
    folder: Path, mixture_of: Any, secret: Path, out: Path
) -> None:
    root = folder / "images"
    (root / "file.png").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    (root / "inner.png").symlink_to("good.png")
    (root / "loop").symlink_to(".")
    for reference in ("file.png", "folder/s.png"):
        message = message_of(ImageError, lambda ref=reference: export_raw(mixture_of(ref), out / "x", overwrite=True))
        assert (
            message
            == f"{folder}/a.json row 0 (sample 'r0'): {root}/{reference} is a link to {secret}, outside of the image root {root}"
        )
    export_raw(mixture_of("inner.png", "loop/good.png"), out / "x", overwrite=True)
    assert as_llava_reads(out / "x") == [{"image": [picture(1)]}] * 2


def test_a_folder_that_has_become_a_link_is_seen(folder: Path, mixture_of: Any, secret: Path, out: Path) -> None:
    sub = folder / "images" / "sub"
    sub.mkdir()
    (sub / "s.png").write_bytes(picture(1))
    export_raw(mixture_of("sub/s.png"), out / "1")
    shutil.rmtree(sub)
    sub.symlink_to(secret.parent)
    with pytest.raises(ImageError):
        export_raw(mixture_of("sub/s.png", None), out / "2")


def test_a_root_that_is_a_link_is_a_root(folder: Path, mixture_of: Any, out: Path) -> None:
    (folder / "link").symlink_to("images")
    export_raw(mixture_of("good.png", image_root="link"), out)
    assert as_llava_reads(out) == [{"image": [picture(1)]}]


def test_path_maps_and_stores_open_what_they_name_and_nothing_else(
    folder: Path, make_mixture: MakeMixture, secret: Path, out: Path
) -> None:
    (folder / "mapped").mkdir()
    (folder / "mapped" / "m.png").write_bytes(picture(5))
    references = [
        "/old/m.png",
        "pics://m.png",
        f"/old/../../{secret.parent.name}/s.png",
        f"pics://../../{secret.parent.name}/s.png",
    ]
    records = [{"id": str(i), "image": ref, "conversations": chat("<image>", "a")} for i, ref in enumerate(references)]
    write_json(folder / "a.json", records)
    mixture = make_mixture(
        {"name": "a", "json_path": "a.json"},
        path_map={"/old": str(folder / "mapped")},
        image_stores={"pics": f"file://{folder}/mapped/{{key}}"},
    )
    result = export_raw(mixture, out, on_error="skip")
    assert as_llava_reads(out) == [{"image": [picture(5)]}] * 2
    assert [line["row"] for line in ledger_of(out)] == [2, 3]
    assert {line["code"] for line in ledger_of(out)} == {"image_outside_root"}
    assert is_accounted_for(result.report)
    assert picture(99) not in files_of(out).values()


def test_references_of_a_dataset_lead_into_its_root_only(tmp_path: Path, secret: Path, out: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    dataset = dataset_of(row("0", {"bytes": None, "path": str(secret)}))
    assert (
        message_of(ImageError, lambda: export_raw(dataset, out, image_root=root))
        == f"dataset row 0 (sample '0'): {outside(secret, root)}"
    )
    assert "nobody says where images may be read" in message_of(
        ConfigError, lambda: export_raw(dataset, out.with_name("b"))
    )


# What may be written.


@pytest.mark.parametrize("field", ["id", "data_source", "path"])
@pytest.mark.parametrize("text", ["../../../x.png", "/{place}/x.png", "{place}/x.png", "a\0b", "a\nb\n../x", "a\\..\\..\\x", "..", ".", "x" * 5000, "\u202e\u2028\x85", "\ufeff../x"])  # fmt: skip
def test_no_text_of_a_row_leads_out_of_the_target(field: str, text: str, out: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    text = text.format(place=str(place).lstrip("/"))
    given = {"id": "0", "data_source": "s", "path": None, field: text}
    export_raw(dataset_of(row(given["id"], embedded(1, given["path"]), given["data_source"])), out / "deep" / "er")
    assert as_llava_reads(out / "deep" / "er") == [{"image": [picture(1)]}]
    assert not list(place.iterdir())
    assert [entry.name for entry in (out / "deep").iterdir()] == ["er"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "place", "cwd"}
    assert sorted(entry.name for entry in (out / "deep" / "er").iterdir()) == [STATE, "data.json", "images", "ledger.jsonl", "mixture.yaml", "report.json"]  # fmt: skip


def test_arguments_that_lead_out_of_the_target_are_errors(out: Path) -> None:
    reserved = "must be a plain name and none of mixture.yaml, report.json, ledger.jsonl, .llava-mixture, got "
    for arguments, expected in (
        ({"json_name": "../data.json"}, f"json_name {reserved}'../data.json'"),
        ({"json_name": "a/data.json"}, f"json_name {reserved}'a/data.json'"),
        ({"json_name": "mixture.yaml"}, f"json_name {reserved}'mixture.yaml'"),
        ({"image_dir": ".."}, f"image_dir {reserved}'..'"),
        ({"image_dir": STATE}, f"image_dir {reserved}'.llava-mixture'"),
        ({"image_dir": "/tmp"}, f"image_dir {reserved}'/tmp'"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
        ({"num_proc": 0}, "num_proc must be a whole number ≥ 1, got 0"),
        ({"num_proc": 1.5}, "num_proc must be a whole number ≥ 1, got 1.5"),
    ):
        assert (
            message_of(ConfigError, lambda given=arguments: export_raw(dataset_of(row("0")), out, **given)) == expected
        )  # type: ignore[misc]
    url = message_of(ConfigError, lambda: export_raw(dataset_of(row("0")), "s3://bucket/x"))
    assert url == "out_dir must be a local folder, got 's3://bucket/x': image by image, a URL is slow"
    assert not out.exists()


# The target.

ONE = "holds {what} of something else (another mixture, other data or options): choose another folder, or replace it with overwrite=True (--overwrite)"  # fmt: skip


def test_a_target_that_is_a_file_or_below_one_is_an_error(out: Path) -> None:
    out.write_text("mine")
    assert message_of(OutputError, lambda: export_raw("default", out)) == f"{out} is a file: an export needs a folder"
    assert (
        message_of(OutputError, lambda: export_raw("default", out / "x"))
        == f"{out}/x cannot be written: Not a directory"
    )
    assert out.read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(overwrite: bool, out: Path) -> None:
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "mine.txt").write_text("mine")
    message = message_of(OutputError, lambda: export_raw("default", out, overwrite=overwrite))
    assert (
        message == f"{out} is not empty and holds no export of ours (there is 'sub/mine.txt'): choose another folder"
    )
    assert [str(path.relative_to(out)) for path in out.rglob("*")] == ["sub", "sub/mine.txt"]


def test_another_export_is_replaced_only_when_asked_for(out: Path) -> None:
    export_raw(dataset_of(row("0", embedded(1)), row("1", embedded(2, "old.png"))), out)
    other = dataset_of(row("2", embedded(3)))
    before = files_of(out)
    assert message_of(OutputError, lambda: export_raw(other, out)) == f"{out} " + ONE.format(what="a finished export")
    assert files_of(out) == before
    export_raw(other, out, overwrite=True)
    export_raw(other, out.with_name("fresh"))
    assert files_of(out) == files_of(out.with_name("fresh"))
    with pytest.raises(ImageError):
        export_raw(dataset_of(row("0", {"bytes": b"x", "path": None})), out, overwrite=True)
    assert not looks_whole(out)
    assert message_of(OutputError, lambda: export_raw(other, out)) == f"{out} " + ONE.format(
        what="an unfinished export"
    )
    export_raw(other, out, overwrite=True)
    assert files_of(out) == files_of(out.with_name("fresh"))


@pytest.mark.parametrize("mine", ["notes.txt", "images/s/mine.png", "images/s/00000/0.txt", "images/s/00000/0.json"])
def test_overwriting_stops_at_a_file_that_no_export_wrote(mine: str, out: Path) -> None:
    export_raw(dataset_of(row("0", embedded(1))), out)
    (out / mine).write_text("mine")
    before = files_of(out)
    message = message_of(OutputError, lambda: export_raw(dataset_of(row("1")), out, overwrite=True))
    assert (
        message
        == f"{out} also holds files that no export of ours wrote (1, the first: {mine!r}): move them away, or choose another folder"
    )
    assert files_of(out) == before


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\u2029", "\u200b"])
def test_a_name_with_a_line_separator_does_not_list_another_file(mark: str, out: Path) -> None:
    dataset = dataset_of(row("0", embedded(1, f"a{mark}precious.txt")))
    export_raw(dataset, out)
    export_raw(dataset, out, overwrite=True)
    (out / "precious.txt").write_text("mine")
    with pytest.raises(OutputError):
        export_raw(dataset_of(row("1")), out, overwrite=True)
    assert (out / "precious.txt").read_text() == "mine"


def test_a_hostile_list_of_files_removes_nothing_elsewhere(out: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    export_raw(dataset_of(row("0", embedded(1))), out)
    (out / "link").symlink_to(tmp_path / "cwd")
    with open(out / STATE / "files.txt", "a", encoding="utf-8") as file:
        file.write(f"../victim.txt\n{victim}\nimages/../../victim.txt\nlink\nlink/x\n.\n..\n\n/\n")
    (tmp_path / "cwd" / "x").write_text("mine")
    export_raw(dataset_of(row("1", embedded(2))), out, overwrite=True)
    assert victim.read_text() == (tmp_path / "cwd" / "x").read_text() == "mine"
    (tmp_path / "cwd" / "x").unlink()
    assert as_llava_reads(out) == [{"image": [picture(2)]}]


@pytest.mark.parametrize("plan", [b"\xff\xfe", b"{", b"null", b"[]", b'{"name": "x"}'])
def test_a_plan_that_is_not_ours_does_not_give_a_folder_away(plan: bytes, out: Path) -> None:
    (out / STATE).mkdir(parents=True)
    (out / STATE / "plan.json").write_bytes(plan)
    (out / STATE / "files.txt").write_text("precious.txt\n")
    (out / "precious.txt").write_text("mine")
    with pytest.raises(OutputError):
        export_raw(dataset_of(row("1")), out, overwrite=True)
    assert (out / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_state_folder_that_is_a_link_leads_nowhere(overwrite: bool, out: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    export_raw(dataset_of(row("0")), victim)
    (victim / STATE / "parts").mkdir()
    (victim / STATE / "parts" / "mine").write_text("mine")
    before = {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()}
    out.mkdir()
    (out / STATE).symlink_to(victim / STATE)
    with pytest.raises(OutputError):
        export_raw(dataset_of(row("1", embedded(1))), out, overwrite=overwrite)
    assert {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()} == before


def test_an_export_does_not_overwrite_what_it_is_made_of(mixture_of: Any, out: Path) -> None:
    export_raw(mixture_of("good.png", None), out)
    before = files_of(out)
    with pytest.raises(MixtureError):
        export_raw(out / "mixture.yaml", out, overwrite=True)
    assert files_of(out) == before, "the data that was to be exported is gone"


def test_two_runs_at_once_do_not_meet(out: Path) -> None:
    messages = []

    def rows() -> Iterator[dict[str, Any]]:
        yield row("0", embedded(1))
        messages.append(message_of(OutputError, lambda: export_raw(dataset_of(row("2")), out)))
        yield row("1", embedded(2))

    stream = datasets.IterableDataset.from_generator(rows, features=datasets.Features(FEATURES))
    export_raw(stream, out)
    assert messages == [f"another run is writing into {out}: wait for it to end"] * len(messages)
    assert messages
    assert as_llava_reads(out) == [{"image": [picture(1)]}, {"image": [picture(2)]}]


# Full and read-only disks.


def run_apart(call: Callable[[], Any], notes: Path) -> Any:
    """What `call` returns in a process of its own, or how its MixtureError reads."""

    def run() -> None:
        try:
            said = call()
        except MixtureError as error:
            said = f"{type(error).__name__}: {error.message}"
        notes.write_text(json.dumps(said))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return json.loads(notes.read_text())


def with_small_files(call: Callable[[], Any], limit: int) -> Callable[[], Any]:
    def limited() -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return call()

    return limited


@pytest.fixture
def large(folder: Path, mixture_of: Any) -> Any:
    """A mixture whose second image is larger than the others."""
    (folder / "images" / "large.png").write_bytes(picture(2) + bytes(200_000))
    mixture_of("good.png", "large.png", None)
    return Mixture.load(folder / "x.yaml")


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(large: Any, out: Path, tmp_path: Path) -> None:
    said = run_apart(with_small_files(lambda: export_raw(large, out).num_samples, 100_000), tmp_path / "said")
    assert said == f"OutputError: {out}/images/a/large.png cannot be written: File too large"
    assert not looks_whole(out)
    assert sorted(path.name for path in (out / "images").rglob("*.png")) == ["good.png"]
    export_raw(large, out)
    export_raw(large, out.with_name("fresh"))
    assert files_of(out) == files_of(out.with_name("fresh"))


def test_a_json_that_does_not_fit_is_an_error_and_not_half_there(
    folder: Path, make_mixture: MakeMixture, out: Path, tmp_path: Path
) -> None:
    records = [{"id": str(i), "conversations": chat("q" * 100, "a")} for i in range(1500)]
    mixture = make_mixture(
        {"name": "a", "json_path": write_json(folder / "a.json", records[:750]), "multi_image": False},
        {"name": "b", "json_path": write_json(folder / "b.json", records[750:]), "multi_image": False},
    )  # each part fits, both together do not
    said = run_apart(with_small_files(lambda: export_raw(mixture, out).num_samples, 200_000), tmp_path / "said")
    assert said.startswith(f"OutputError: {out}/data.json cannot be written: ")
    assert said.endswith("File too large")
    assert not (out / "data.json").exists()
    assert not (out / STATE / "manifest.json").exists()
    assert export_raw(mixture, out).num_samples == len(records_of(out)) == 1500


def test_a_disk_without_space_says_what_to_do_and_then_goes_on(large: Any, out: Path, tmp_path: Path) -> None:
    """A small disk, which only root can mount, and only this process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()

    def export_twice() -> Any:
        if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):  # CLONE_NEWNS; MS_REC | MS_PRIVATE
            return None
        if libc.mount(b"none", str(disk).encode(), b"tmpfs", 0, b"size=128k"):
            return None
        message = message_of(OutputError, lambda: export_raw(large, disk / "out"))
        is_whole = looks_whole(disk / "out")
        assert not libc.mount(b"none", str(disk).encode(), b"tmpfs", 32, b"size=4m")  # MS_REMOUNT
        export_raw(large, disk / "out")
        return message, is_whole, {name: data.hex() for name, data in files_of(disk / "out").items()}

    if os.geteuid() != 0 or (found := run_apart(export_twice, tmp_path / "said")) is None:
        pytest.skip("mounting is not allowed here")
    message, was_whole, files = found
    assert message == (
        f"{disk}/out/images/a/large.png cannot be written: No space left on device: free some space and run the same "
        "command again, what is finished is kept"
    )
    assert not was_whole
    export_raw(large, out)
    assert {name: bytes.fromhex(data) for name, data in files.items()} == files_of(out)


def without_privileges() -> None:
    """Even root may then not write where the mode forbids it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    low, *others = struct.unpack("6I", data.raw)
    assert libc.capset(header, struct.pack("6I", low & ~0b110, *others)) == 0  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@pytest.mark.parametrize("where", ["parent", "target", "state"])
def test_a_target_that_may_not_be_written_is_an_error(where: str, mixture_of: Any, out: Path, tmp_path: Path) -> None:
    mixture = mixture_of("good.png")
    locked = tmp_path / "locked"
    locked.mkdir()
    target = locked / "out" if where == "parent" else locked
    if where == "state":
        (locked / STATE).mkdir(mode=0o555)
    locked.chmod(0o555)

    def export() -> Any:
        without_privileges()
        return export_raw(mixture, target).num_samples

    try:
        said = run_apart(export, tmp_path / "said")
    finally:
        locked.chmod(0o755)
    assert said == f"OutputError: {target} cannot be written: Permission denied"


# Kills.


@pytest.fixture
def various(folder: Path, make_mixture: MakeMixture) -> Any:
    """Two entries: references, of which one is used twice, and embedded images with and without a path."""
    (folder / "images" / "sub").mkdir(parents=True)
    for i in range(4):
        (folder / "images" / "sub" / f"{i}.png").write_bytes(picture(i))
    records = [{"id": str(i), "image": f"sub/{i % 4}.png", "conversations": chat("<image>", "a")} for i in range(5)]
    images = pa.array(
        [embedded(5), embedded(6, "own.jpg"), None, embedded(7)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    write_table(folder / "e.parquet", {"image": images, "conversations": [chat("q", "a")] * 4})
    return make_mixture(
        {"name": "r", "json_path": write_json(folder / "r.json", records), "image_root": "images"},
        {"name": "e", "json_path": "e.parquet"},
    )


class Killed:
    """Kills the process that calls it, after so many calls."""

    def __init__(self, call: Callable[..., Any], after: int, *, in_the_middle: bool = False) -> None:
        self.call, self.left, self.in_the_middle, self.pid = call, after, in_the_middle, os.getpid()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            if self.in_the_middle:
                self.call(arguments[0], bytes(arguments[1])[:10])
            os.kill(os.getpid(), signal.SIGKILL)
        return self.call(*arguments, **options)


def export_in_a_process(source: Any, out_dir: Path, name: str, after: int, **arguments: Any) -> int:
    """Export in a child that is killed at the call number `after` of `os.<name>`; its exit code."""

    def run() -> None:
        setattr(os, name, Killed(getattr(os, name), after, in_the_middle=name == "write"))
        export_raw(source, out_dir, **arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def stamps(out_dir: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.stat() for path in (out_dir / "images").rglob("*") if path.is_file()}
    return {path: (status.st_mtime_ns, status.st_ino) for path, status in found.items()}


@pytest.mark.parametrize("name", ["write", "rename", "replace"])
def test_killed_anywhere_and_run_again_it_is_as_if_never_killed(name: str, various: Any, out: Path) -> None:
    export_raw(various, out / "whole")
    expected = files_of(out / "whole")
    after = num_kills = 0
    while True:
        target = out / f"{after}"
        exit_code = export_in_a_process(various, target, name, after)
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        num_kills += 1
        if target.exists():
            found = files_of(target)
            assert {path: found[path] for path in found} == {path: expected.get(path) for path in found}, "half a file"
            if "data.json" in found:
                assert found == expected, "the json appears last"
        finished = stamps(target)
        assert not export_raw(various, target).was_complete or "data.json" in found
        assert files_of(target) == expected
        assert {path: stamp for path, stamp in stamps(target).items() if path in finished} == finished, "written again"
        assert not list((target / STATE).glob("unfinished/*"))
        after += 1
    assert files_of(out / f"{after}") == expected
    assert num_kills >= {"write": 7, "rename": 7, "replace": 6}[name]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_when_a_worker_is_killed_the_run_says_so_and_the_next_goes_on(
    after: int, various: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", Killed(os.rename, after))
        message = message_of(OutputError, lambda: export_raw(various, out, num_proc=2))
    assert (
        message == "a worker process was killed (out of memory?): run the same command again, what is finished is kept"
    )
    assert not looks_whole(out)
    finished = stamps(out)
    export_raw(various, out, num_proc=2)
    export_raw(various, out.with_name("whole"))
    assert files_of(out) == files_of(out.with_name("whole"))
    assert {path: stamp for path, stamp in stamps(out).items() if path in finished} == finished


@pytest.mark.parametrize("after", [1, 4])
def test_when_the_parent_of_workers_is_killed_the_next_run_goes_on(after: int, various: Any, out: Path) -> None:
    def run() -> None:
        parent, replace = os.getpid(), os.replace
        killed = Killed(replace, after)
        os.replace = lambda *arguments: killed(*arguments) if os.getpid() == parent else replace(*arguments)  # type: ignore[assignment]
        export_raw(various, out, num_proc=2)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not looks_whole(out)
    deadline = time.monotonic() + 10  # its workers end by themselves
    while True:
        try:
            export_raw(various, out, num_proc=2)
            break
        except OutputError as error:
            assert error.code == "target_locked"
            assert time.monotonic() < deadline
            time.sleep(0.1)
    export_raw(various, out.with_name("whole"))
    assert files_of(out) == files_of(out.with_name("whole"))


def test_killed_while_an_old_export_is_removed_the_next_run_goes_on(various: Any, out: Path) -> None:
    export_raw(various, out / "whole")
    for name in ("remove", "unlink", "rmdir"):
        after = 0
        while True:
            target = out / f"{name}-{after}"
            export_raw(dataset_of(row("0", embedded(1)), row("1", embedded(2, "old.png"))), target)
            exit_code = export_in_a_process(various, target, name, after, overwrite=True)
            if exit_code == 0:
                break
            if (target / STATE / "manifest.json").exists():
                found = [record["id"] for record in records_of(target)]
                assert found in (["0", "1"], [r["id"] for r in records_of(out / "whole")]), "it looks whole"
            export_raw(various, target, overwrite=True)
            assert files_of(target) == files_of(out / "whole")
            after += 1


def test_an_interrupted_run_goes_on_where_it_was(various: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, num_written = image_files_module._write_all, [0]

    def interrupted(*arguments: Any) -> None:
        num_written[0] += 1
        if num_written[0] == 4:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(image_files_module, "_write_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_raw(various, out)
    assert not looks_whole(out)
    finished = stamps(out)
    export_raw(various, out)
    export_raw(various, out.with_name("whole"))
    assert files_of(out) == files_of(out.with_name("whole"))
    assert {path: stamp for path, stamp in stamps(out).items() if path in finished} == finished
