"""`push_to_hub` where nothing fails: what is sent, what the repository then holds, and who can load it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llava_arrow import ConfigError, ImageError, OutputError, SourceError
from tests.conftest import MakeMixture, chat, write_json
from tests.hub_pushes import (
    CLIENTS_OWN_WARNING,
    REPO,
    SMALL,
    TOKEN,
    Hub,
    chat_entry,
    front_matter,
    image_entry,
    parquet,
    running_hub,
    texts,
)

pytestmark = pytest.mark.filterwarnings(CLIENTS_OWN_WARNING)
NAME = re.compile(r"chat/train-\d{5}-of-\d{5}-[0-9a-f]{12}\.parquet")
ALL = [f"r{i}" for i in range(24)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path, monkeypatch) as hub:
        yield hub


def test_a_push_is_one_commit_with_card_and_shards(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder), image_entry(folder))
    done = hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.messages == ["initial commit", "Push chat, pictures"]
    shards = hub.shards("chat")
    assert len(shards) == 5
    assert all(NAME.fullmatch(name) for name in shards)
    assert [name[11:25] for name in shards] == [f"{i:05d}-of-{len(shards):05d}" for i in range(len(shards))]
    assert sorted(hub.repo.files()) == [".gitattributes", "README.md", *shards, *hub.shards("pictures")]
    tables = [pq.read_table(io.BytesIO(hub.repo.files()[name])) for name in shards]
    assert [i for table in tables for i in table["id"].to_pylist()] == ALL
    assert done.commit == hub.repo.branches["main"]
    assert done.url == f"{hub.server.url}/datasets/{REPO}"
    sizes = {path: len(data) for path, data in hub.repo.files().items() if path.endswith(".parquet")}
    assert {path: size for path, size in done.files.items() if path.endswith(".parquet")} == sizes
    assert (done.num_samples, done.num_sent, done.deleted) == (30, len(shards) + 1, [])
    assert (done.is_dry_run, done.was_complete) == (False, False)
    assert hub.nothing_is_left()


def test_no_shard_is_larger_than_asked_for(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.push(make_mixture(chat_entry(folder)), max_shard_bytes=SMALL)
    assert [name for name in hub.shards("chat") if len(hub.repo.files()[name]) > SMALL] == []


def test_the_card_is_what_the_hub_and_datasets_read(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    entries = [chat_entry(folder, license="MIT"), {**image_entry(folder), "license": "mit"}]
    hub.push(make_mixture(*entries), max_shard_bytes=SMALL)
    card = hub.card()
    assert (card["license"], card["pretty_name"], card["size_categories"]) == ("mit", "data", ["n<1K"])
    assert card["task_categories"] == ["image-text-to-text"]
    assert hub.config_names() == ["chat", "pictures"]
    assert hub.ids("chat") == ALL
    assert hub.ids("pictures") == [f"p{i}" for i in range(6)]
    assert [info["splits"][0]["num_examples"] for info in card["dataset_info"]] == [24, 6]
    stored = [sum(len(hub.repo.files()[name]) for name in hub.shards(config)) for config in ("chat", "pictures")]
    assert [info["download_size"] for info in card["dataset_info"]] == stored


def test_pixels_arrive_as_they_were(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.push(make_mixture(image_entry(folder)))
    (name,) = hub.shards("pictures")
    images = pq.read_table(io.BytesIO(hub.repo.files()[name]))["image"].to_pylist()
    names = [f"pictures-{i}.png" for i in range(6)]
    assert images == [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]


def test_each_part_leaves_the_disk_as_soon_as_it_is_sent(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    seen = []

    def look(_: str) -> None:
        seen.append(len(list(hub.cache_dir.glob("llava_mixture_pushes/*/parts/*.parquet"))))

    hub.push(make_mixture(chat_entry(folder, num_rows=60)), max_shard_bytes=SMALL, progress=look)
    assert len(seen) > 9
    assert max(seen) <= 3
    assert len(hub.server.uploads) == len({digest for digest, _ in hub.server.uploads}) >= len(seen)


def test_the_same_push_again_sends_nothing(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    first = hub.push(mixture)
    del hub.server.requests[:]
    again = hub.push(mixture)
    assert {method for method, *_ in hub.server.requests} <= {"GET", "HEAD"}
    assert again.was_complete
    assert (again.num_sent, again.commit, again.num_samples) == (0, first.commit, 24)
    assert {path: size for path, size in again.files.items() if path != "README.md"} == {
        path: len(data) for path, data in hub.repo.files().items() if path.endswith(".parquet")
    }


def test_a_shard_that_somebody_removed_comes_back(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.push(mixture, max_shard_bytes=SMALL)
    before, removed = hub.repo.files(), hub.shards("chat")[2]
    hub.server.commit_files(REPO, {removed: None})
    hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.repo.files() == before
    assert len(hub.server.uploads) == 5  # the Hub still had it
    assert hub.repo.commits[-1].operations == 1


def test_a_config_that_somebody_took_off_the_card_comes_back(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.push(mixture)
    hub.server.commit_files(REPO, {"README.md": front_matter("license: mit")})
    hub.push(mixture)
    assert hub.ids("chat") == ALL
    assert hub.body().startswith("# By hand\n")


@pytest.mark.parametrize("is_new", [True, False])
def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    is_new: bool, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    if not is_new:
        hub.push(make_mixture(chat_entry(folder, num_rows=5)))
    old = [] if is_new else hub.shards("chat")
    mixture = make_mixture(chat_entry(folder))
    del hub.server.requests[:]
    planned = hub.push(mixture, max_shard_bytes=SMALL, dry_run=True)
    assert {method for method, *_ in hub.server.requests} <= {"GET", "HEAD"}
    assert hub.nothing_is_left()
    assert (REPO in hub.server.repos) is not is_new
    assert planned.is_dry_run
    assert (planned.num_samples, planned.num_sent, planned.deleted) == (24, 0, old)
    done = hub.push(mixture, max_shard_bytes=SMALL)
    assert [name for name in planned.files if name != "README.md"] == hub.shards("chat")
    assert planned.deleted == done.deleted
    assert list(planned.files) == list(done.files)


def test_a_dry_run_for_a_new_branch_looks_at_what_the_branch_will_start_from(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.push(make_mixture(chat_entry(folder, num_rows=5)))
    old = hub.shards("chat")
    mixture = make_mixture(chat_entry(folder))
    planned = hub.push(mixture, revision="next", dry_run=True)
    assert planned.deleted == old
    assert hub.push(mixture, revision="next").deleted == old


def test_a_config_that_is_pushed_again_is_replaced_whole(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    entries = [chat_entry(folder), chat_entry(folder, "other", 12)]
    hub.push(make_mixture(*entries), max_shard_bytes=SMALL)
    old, others = hub.shards("chat"), {name: hub.repo.files()[name] for name in hub.shards("other")}
    fewer = make_mixture(chat_entry(folder, num_rows=3), entries[1])
    done = hub.push(fewer, config_names=["chat"], max_shard_bytes=SMALL)
    assert (len(old), len(hub.shards("chat"))) > (3, 1)
    assert not set(old) & set(hub.shards("chat"))
    assert done.deleted == old
    assert {name: hub.repo.files()[name] for name in hub.shards("other")} == others
    assert hub.ids("chat") == ["r0", "r1", "r2"]
    assert hub.ids("other") == [f"r{i}" for i in range(12)]
    assert len(hub.messages) == 3
    assert hub.is_whole()


def test_configs_that_the_repository_has_stay_with_their_keys_and_text(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    theirs = """
license: mit
language: [en, de]
pretty_name: "Ours: 100 %"
tags: [curated]
extra_gated_prompt: "Please ask."
configs:
- config_name: theirs
  default: true
  data_files:
  - split: train
    path: theirs/*.parquet
  - split: test
    path: [theirs-test.parquet]
dataset_info:
- config_name: theirs
  features:
  - {name: id, dtype: string}
  splits:
  - {name: train, num_bytes: 10, num_examples: 2}
  - {name: test, num_bytes: 10, num_examples: 1}
"""
    files = {"theirs/a.parquet": parquet(["a", "b"]), "theirs-test.parquet": parquet(["c"]), "notes.txt": b"x"}
    hub.server.commit_files(REPO, {"README.md": front_matter(theirs), **files})
    before = hub.card()
    hub.push(make_mixture(chat_entry(folder, license="mit")))
    after = hub.card()
    for key in ("license", "language", "pretty_name", "extra_gated_prompt"):
        assert after[key] == before[key]
    assert after["configs"][0] == before["configs"][0]
    assert after["dataset_info"][0] == before["dataset_info"][0]
    assert hub.config_names() == ["theirs", "chat"]
    assert after["tags"][0] == "curated"
    assert hub.body().startswith("# By hand\n\nWritten with care.\n")
    assert {path: hub.repo.files()[path] for path in files} == files
    assert (hub.ids("theirs"), hub.ids("theirs", split="test"), hub.ids("chat")) == (["a", "b"], ["c"], ALL)
    edited = hub.repo.files()["README.md"].replace(b"with care", b"with more care")
    hub.server.commit_files(REPO, {"README.md": edited})
    hub.push(make_mixture(chat_entry(folder, num_rows=2, license="mit")))
    assert hub.body().startswith("# By hand\n\nWritten with more care.\n")
    assert hub.body().count("# x (llava-mixture)") == 1
    assert hub.ids("chat") == ["r0", "r1"]


def test_a_license_that_was_written_by_hand_stays_where_the_mixture_gives_none(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.push(make_mixture(chat_entry(folder)))
    assert hub.card()["license"] == "unknown"
    text = hub.repo.files()["README.md"].replace(b"license: unknown", b"license: cc-by-4.0")
    hub.server.commit_files(REPO, {"README.md": text})
    hub.push(make_mixture(chat_entry(folder, num_rows=3)))
    assert hub.card()["license"] == "cc-by-4.0"


@pytest.mark.parametrize(
    ("theirs", "ours", "merged"),
    [
        ("license: mit", "mit", {"license": "mit"}),
        ("license: mit", "CC-BY-4.0", {"license": ["mit", "cc-by-4.0"]}),
        ("license: [mit, apache-2.0]", "mit", {"license": ["mit", "apache-2.0"]}),
        ("license: mit", "our own", {"license": "other", "license_name": "mixed", "license_link": "README.md"}),
        (
            "license: other\nlicense_name: acme\nlicense_link: LICENSE",
            None,
            {"license": "other", "license_name": "acme", "license_link": "LICENSE"},
        ),
    ],
)
def test_licenses_are_merged(
    theirs: str, ours: str | None, merged: dict[str, Any], hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    text = f"{theirs}\nconfigs:\n- config_name: theirs\n  data_files: theirs.parquet"
    hub.server.commit_files(REPO, {"README.md": front_matter(text), "theirs.parquet": parquet(["a"])})
    hub.push(make_mixture(chat_entry(folder, **({} if ours is None else {"license": ours}))))
    card = hub.card()
    assert {key: card[key] for key in ("license", "license_name", "license_link") if key in card} == merged


def test_a_license_that_changes_in_the_mixture_reaches_the_card(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    entry = chat_entry(folder)
    hub.push(make_mixture({**entry, "license": "mit", "source": "the old archive"}))
    done = hub.push(make_mixture({**entry, "license": "cc-by-4.0", "source": "the new archive"}))
    assert hub.card()["license"] == "cc-by-4.0"
    assert "the new archive" in hub.body()
    assert not done.was_complete
    assert len(hub.server.uploads) == 1


def test_data_without_a_list_of_configs_stays_the_default_config(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    info = "dataset_info:\n  features:\n  - {name: id, dtype: string}\n  splits:\n  - {name: train, num_examples: 2}"
    files = {"data/train-00000-of-00001.parquet": parquet(["a", "b"]), "README.md": front_matter(info)}
    hub.server.commit_files(REPO, dict(files))
    hub.push(make_mixture(chat_entry(folder)))
    assert hub.config_names() == ["default", "chat"]
    assert hub.card()["dataset_info"][0]["config_name"] == "default"
    assert (hub.ids("default"), hub.ids("chat")) == (["a", "b"], ALL)
    assert hub.repo.files()["data/train-00000-of-00001.parquet"] == files["data/train-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    "path", ["photos.csv", "data/part-7.parquet", "a/b.jsonl.gz", "train/cat/1.jpg", "x.json.zst"]
)
def test_other_data_without_a_list_of_configs_is_refused_before_anything_is_sent(
    path: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.commit_files(REPO, {path: b"id\n1\n"})
    with pytest.raises(OutputError) as error:
        hub.push(make_mixture(chat_entry(folder)))
    assert error.value.message == (
        f"{hub.server.url}/datasets/{REPO} holds data ({path!r}) that its README.md lists under no config; with "
        "configs it would not be found any more: list it there under `configs:` first, or choose another repository"
    )
    assert len(hub.messages) == 2
    assert hub.server.uploads == []


@pytest.mark.parametrize("path", ["dataset_infos.json", "LICENSE.md", "docs/notes.md", ".cache/a.json"])
def test_files_that_datasets_takes_for_no_data_do_not_matter(
    path: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.commit_files(REPO, {path: b"{}"})
    hub.push(make_mixture(chat_entry(folder)))
    assert hub.repo.files()[path] == b"{}"
    assert hub.ids("chat") == ALL


def test_an_older_version_with_several_splits_goes_and_files_of_others_stay(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    text = """
configs:
- config_name: chat
  data_files:
  - {split: train, path: "chat/train-*"}
  - {split: test, path: ["chat/test-*", "shared/*.parquet"]}
- config_name: other
  data_files: [shared/b.parquet, "chat/test-other*"]
- config_name: by-folder
  data_dir: chat/by-folder
"""
    paths = ["chat/train-0.parquet", "chat/test-0.parquet", "shared/a.parquet", "shared/b.parquet"]
    paths += ["chat/test-other.parquet", "chat/notes.md", "unlisted/x.parquet", "chat/by-folder/train.parquet"]
    files = {path: parquet([path]) for path in paths}
    hub.server.commit_files(REPO, {**files, "README.md": front_matter(text)})
    done = hub.push(make_mixture(chat_entry(folder)))
    assert done.deleted == ["chat/test-0.parquet", "chat/train-0.parquet", "shared/a.parquet"]
    kept = {path: data for path, data in files.items() if path not in done.deleted}
    assert {path: hub.repo.files().get(path) for path in kept} == kept
    assert hub.ids("chat") == ALL
    assert hub.ids("other") == ["shared/b.parquet", "chat/test-other.parquet"]
    assert hub.ids("by-folder") == ["chat/by-folder/train.parquet"]


def test_the_folder_of_another_config_stays_even_if_its_files_are_named_like_ours(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    text = "configs:\n- config_name: legacy\n  data_dir: chat"
    files = {"chat/train-00000-of-00001.parquet": parquet(["a"]), "README.md": front_matter(text)}
    hub.server.commit_files(REPO, dict(files))
    done = hub.push(make_mixture(chat_entry(folder)))
    assert done.deleted == []
    assert hub.repo.files()["chat/train-00000-of-00001.parquet"] == files["chat/train-00000-of-00001.parquet"]


def test_a_star_in_a_pattern_does_not_reach_into_folders(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    text = 'configs:\n- config_name: chat\n  data_files: "*.parquet"'
    files = {"old.parquet": parquet(["a"]), "archive/2023.parquet": parquet(["b"]), "README.md": front_matter(text)}
    hub.server.commit_files(REPO, dict(files))
    assert hub.ids("chat") == ["a"]  # so `datasets` reads the pattern
    done = hub.push(make_mixture(chat_entry(folder)))
    assert done.deleted == ["old.parquet"]
    assert hub.repo.files()["archive/2023.parquet"] == files["archive/2023.parquet"]


def test_the_pattern_of_another_config_does_not_take_in_our_shards(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    text = 'configs:\n- config_name: legacy\n  data_files: "chat/*.parquet"'
    hub.server.commit_files(REPO, {"chat/a.parquet": parquet(["a"]), "README.md": front_matter(text)})
    try:
        hub.push(make_mixture(chat_entry(folder)))
    except OutputError:
        assert len(hub.messages) == 2  # to refuse is right, too
    assert hub.ids("legacy") == ["a"]


@pytest.mark.parametrize("line", ["language: [en, no]", "language:\n- en\n- no"])
def test_the_language_code_of_norwegian_stays_a_word(
    line: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    """The Hub reads YAML 1.2, in which `no` is a text."""
    hub.server.commit_files(REPO, {"README.md": front_matter(line)})
    hub.push(make_mixture(chat_entry(folder)))
    head = hub.repo.files()["README.md"].decode().split("\n---\n")[0]
    assert "false" not in head
    assert re.search(r"\bno\b", head)


def test_line_ends_of_windows(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    text = front_matter("license: mit\nconfigs:\n- config_name: theirs\n  data_files: a.parquet").replace(
        b"\n", b"\r\n"
    )
    hub.server.commit_files(REPO, {"README.md": text, "a.parquet": parquet(["a"])})
    hub.push(make_mixture(chat_entry(folder, license="mit")))
    assert hub.config_names() == ["theirs", "chat"]
    assert hub.card()["license"] == "mit"
    assert hub.body().replace("\r\n", "\n").startswith("# By hand\n\nWritten with care.\n")


def test_a_card_in_another_encoding_is_not_replaced(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.server.commit_files(REPO, {"README.md": "# Grüße\n".encode("latin-1")})
    with pytest.raises((ConfigError, OutputError), match=r"README\.md"):
        hub.push(make_mixture(chat_entry(folder)))
    assert len(hub.messages) == 2


def test_a_config_called_default_replaces_data_that_no_card_lists(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    path = "data/train-00000-of-00001.parquet"
    hub.server.commit_files(REPO, {path: parquet(["a"])})
    assert hub.push(make_mixture(chat_entry(folder, "default"))).deleted == [path]
    assert hub.ids("default") == ALL


def test_configs_pushed_one_after_the_other_are_all_described(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder), chat_entry(folder, "other", 12))
    hub.push(mixture, config_names=["chat"])
    hub.push(mixture, config_names=["other"])
    assert hub.config_names() == ["chat", "other"]
    assert (hub.ids("chat"), hub.ids("other")) == (ALL, [f"r{i}" for i in range(12)])
    assert "| `other` | 12 |" in hub.body()
    assert "| `chat` | 24 |" in hub.body()


def test_the_mixture_config_is_pushed_when_it_is_asked_for(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder, num_rows=3), image_entry(folder))
    hub.push(mixture, config_names=["mixture"], image_columns="list")
    assert hub.ids("mixture") == ["r0", "r1", "r2", *(f"p{i}" for i in range(6))]
    (name,) = {name.split("/")[0] for name in hub.repo.files() if name.endswith(".parquet")}
    assert name == "mixture"


def test_names_beyond_ascii_and_the_names_of_yaml_words(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    names = ["Grüße 1", "no", "2024", "1e3", "a.b", "null"]
    entries = [{**chat_entry(folder, f"file{i}", i + 1), "name": name} for i, name in enumerate(names)]
    hub.push(make_mixture(*entries))
    assert hub.config_names() == names
    assert [hub.ids(name) for name in names] == [[f"r{i}" for i in range(n + 1)] for n in range(len(names))]


def test_a_branch_is_made_and_main_is_left_alone(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    before = hub.repo.branches["main"]
    mixture = make_mixture(chat_entry(folder))
    done = hub.push(mixture, revision="next/2", max_shard_bytes=SMALL)
    assert hub.repo.branches == {"main": before, "next/2": done.commit}
    assert hub.repo.resolve("next/2").parent == before
    assert hub.ids("chat", revision="next/2") == ALL
    assert hub.push(mixture, revision="next/2", max_shard_bytes=SMALL).was_complete
    uploads = len(hub.server.uploads)
    hub.push(mixture, max_shard_bytes=SMALL)  # the Hub has the shards already
    assert len(hub.server.uploads) == uploads
    assert hub.ids("chat") == ALL


def test_a_pull_request_leaves_main_alone(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    before = hub.repo.branches["main"]
    done = hub.push(make_mixture(chat_entry(folder)), create_pr=True)
    assert done.url == f"{hub.server.url}/datasets/{REPO}/discussions/1"
    assert hub.repo.branches == {"main": before}
    assert hub.repo.refs["refs/pr/1"] == done.commit
    assert hub.repo.resolve("refs/pr/1").parent == before
    assert hub.ids("chat", revision="refs/pr/1") == ALL


def test_a_push_into_a_pull_request_that_is_there(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder), chat_entry(folder, "other", 12))
    hub.push(mixture, config_names=["chat"], create_pr=True)
    hub.push(mixture, config_names=["other"], revision="refs/pr/1")
    assert hub.repo.pull_requests() == ["refs/pr/1"]
    assert hub.config_names("refs/pr/1") == ["chat", "other"]
    assert list(hub.repo.files()) == [".gitattributes"]


def test_a_private_repository_is_made(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.push(make_mixture(chat_entry(folder)), private=True)
    assert hub.repo.private
    assert hub.ids("chat") == ALL


@pytest.mark.parametrize("is_complete", [False, True])
def test_a_private_push_does_not_go_to_a_public_repository(
    is_complete: bool, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    if is_complete:
        hub.push(mixture)
    uploads, commits = len(hub.server.uploads), len(hub.messages)
    with pytest.raises(OutputError) as error:
        hub.push(mixture, private=True)
    assert error.value.message == (
        f"{REPO} is public, and the push is to be private: make it private in its settings first, or choose another "
        "name"
    )
    assert (len(hub.server.uploads), len(hub.messages)) == (uploads, commits)


def test_two_processes_send_the_same(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder), image_entry(folder))
    hub.push(mixture, max_shard_bytes=SMALL, num_proc=2)
    hub.push(mixture, "user/again", max_shard_bytes=SMALL)
    assert hub.repo.files() == hub.files_as_if_of("user/again")


def test_shards_travel_in_the_commit_where_the_repository_has_no_large_files(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.commit_files(REPO, {".gitattributes": b"*.zip filter=lfs diff=lfs merge=lfs -text\n"})
    mixture = make_mixture(chat_entry(folder))
    done = hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.server.uploads == []
    assert len(hub.messages) == 3
    assert {type(content) for content in hub.repo.resolve().files.values()} == {bytes}
    assert hub.ids("chat") == ALL
    assert done.files.keys() >= set(hub.shards("chat"))
    assert hub.nothing_is_left()
    assert hub.push(mixture, max_shard_bytes=SMALL).was_complete
    assert done.deleted == []


@pytest.mark.parametrize("attributes", [b"", b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"])
def test_files_that_gitignore_names_are_never_promised(
    attributes: bytes, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.commit_files(REPO, {".gitignore": b"*.parquet\n", ".gitattributes": attributes})
    with pytest.raises(OutputError) as error:
        hub.push(make_mixture(chat_entry(folder)))
    assert ".gitignore" in error.value.message
    assert len(hub.messages) == 2


def test_parts_of_an_object_arrive_together(
    hub: Hub, folder: Path, make_mixture: MakeMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.server, "part_size", 5000)
    hub.push(make_mixture(chat_entry(folder)))
    assert len(hub.server.uploads) == 1
    assert hub.server.uploads[0][1] > 20_000
    assert hub.ids("chat") == ALL


def test_images_that_changed_are_sent_by_force(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(image_entry(folder))
    hub.push(mixture)
    before = hub.shards("pictures")
    json_path = folder / "pictures.json"
    (folder / "pictures-3.png").write_bytes((folder / "pictures-1.png").read_bytes())
    assert json_path.exists()
    assert hub.push(mixture).was_complete
    done = hub.push(mixture, force=True)
    assert (done.num_sent, done.was_complete) == (1, False)
    assert hub.shards("pictures") == before
    images = pq.read_table(io.BytesIO(hub.repo.files()[before[0]]))["image"].to_pylist()
    assert images[3]["bytes"] == (folder / "pictures-1.png").read_bytes()
    assert len(hub.messages) == 3
    unchanged = hub.push(mixture, force=True)
    assert len(hub.messages) == 3
    assert unchanged.commit == done.commit


def test_an_entry_whose_first_part_is_empty(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    rows = [{**row, "keep": i >= 20} for i, row in enumerate(texts(24))]
    for row in rows[:20]:
        row["conversations"] = []
    entry = {"name": "chat", "json_path": write_json(folder / "chat.jsonl", rows, lines=True), "on_error": "skip"}
    done = hub.push(make_mixture(entry), max_shard_bytes=3000)
    assert done.num_samples == 4
    assert hub.ids("chat") == ["r20", "r21", "r22", "r23"]
    assert hub.card()["dataset_info"][0]["splits"][0]["num_examples"] == 4


def test_the_ledger_stays_here(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    rows = [*texts(3), {"id": "secret row", "conversations": []}]
    entry = {"name": "chat", "json_path": write_json(folder / "chat.json", rows), "on_error": "skip"}
    hub.push(make_mixture(entry))
    text = hub.repo.files()["README.md"].decode()
    assert "| `chat` | `empty_conversation` | 1 |" in text
    assert str(folder) not in text


def test_a_bad_row_leaves_the_repository_without_a_commit(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    entry = image_entry(folder, num_rows=300)
    (folder / "pictures-250.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"/pictures\.json row 250 \(entry 'pictures'\): "):
        hub.push(make_mixture(entry), max_shard_bytes=SMALL)
    assert hub.messages == ["initial commit"]
    sent = len(hub.server.uploads)
    assert sent > 1
    hub.push(make_mixture({**entry, "on_error": "skip"}), max_shard_bytes=SMALL)
    assert hub.ids("pictures") == [f"p{i}" for i in range(300) if i != 250]


def test_an_entry_that_delivers_nothing_is_an_error(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    rows = [{"id": f"b{i}", "conversations": []} for i in range(3)]
    entry = {"name": "chat", "json_path": write_json(folder / "chat.json", rows), "on_error": "skip"}
    with pytest.raises(SourceError) as error:
        hub.push(make_mixture(entry))
    assert str(error.value).startswith("entry 'chat': none of its 3 rows was delivered, 3 failed: empty_conversation")
    assert hub.messages == ["initial commit"]


@pytest.mark.parametrize(
    "repo_id",
    ["", "data", "a/b/c", "user/", "/data", "user/da ta", "user/a..b", "user/a--b", "-user/data", "user/data.git",
     "user/.data", "user/data-", "üser/data", f"user/{'x' * 97}", "user/data\n", None, 7, "datasets/user/data",
     "https://huggingface.co/datasets/user/data"],
)  # fmt: skip
def test_a_repository_has_a_user_and_a_name(repo_id: Any, hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    with pytest.raises(ConfigError) as error:
        hub.push(make_mixture(chat_entry(folder)), repo_id)
    assert error.value.message == f"repo_id must be user/name, got {repo_id!r}"
    assert hub.server.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_shard_bytes": 0}, "max_shard_bytes must be a whole number of bytes ≥ 1, got 0"),
        ({"num_proc": 0}, "num_proc must be a whole number ≥ 1, got 0"),
        ({"config_names": "chat"}, "config_names must be a list of names, got 'chat': say ['chat']"),
        ({"image_columns": "one"}, "image_columns must be 'list' or not given, got 'one'"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, Any], message: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    with pytest.raises(ConfigError) as error:
        hub.push(make_mixture(chat_entry(folder)), **arguments)
    assert error.value.message == message
    assert hub.server.requests == []


def test_a_card_that_cannot_be_read_is_not_replaced(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.server.commit_files(REPO, {"README.md": front_matter("a: [1, 2\nb: }")})
    with pytest.raises(ConfigError, match=r"^README\.md: the YAML at its top cannot be read: "):
        hub.push(make_mixture(chat_entry(folder)), force=True)
    assert hub.server.uploads == []
    assert len(hub.messages) == 2


def test_two_pushes_at_once_of_different_configs_both_arrive(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder), chat_entry(folder, "other", 12))
    errors: list[BaseException] = []

    def push(name: str) -> None:
        try:
            hub.push(mixture, config_names=[name], max_shard_bytes=SMALL)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(name,)) for name in ("chat", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(hub.config_names()) == ["chat", "other"]
    assert (hub.ids("chat"), hub.ids("other")) == (ALL, [f"r{i}" for i in range(12)])


def test_the_same_push_twice_at_once_from_one_cache_is_refused(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))
    refused = []

    def second(_: str) -> None:
        with pytest.raises(OutputError) as error:
            hub.push(mixture)
        refused.append(error.value.message)

    hub.push(mixture, progress=second)
    (place,) = {re.sub(r"/[0-9a-f]{16}$", "/…", message.split(" into ")[1].split(":")[0]) for message in refused}
    assert place == f"{hub.cache_dir}/llava_mixture_pushes/…"
    assert all(message.startswith("another run is writing into ") for message in refused)
    assert hub.ids("chat") == ALL


def test_the_same_push_twice_at_once_from_two_machines_makes_one_commit(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))
    others = []

    def second(_: str) -> None:
        others.append(hub.push(mixture, cache_dir=str(hub.tmp_path / "another machine")))

    done = hub.push(mixture, progress=second)
    assert others[0].commit == done.commit
    assert hub.messages == ["initial commit", "Push chat"]


LOAD = f"""
import json, sys
from datasets import load_dataset
from llava_arrow import push_to_hub
done = push_to_hub("default", {REPO!r}, config_names=["our-dataset", "edits"])
again = push_to_hub("default", {REPO!r}, config_names=["our-dataset", "edits"])
print(done, again)
built = load_dataset({REPO!r}, "our-dataset", split="train")
streamed = load_dataset({REPO!r}, "our-dataset", split="train", streaming=True)
samples = [{{"id": s["id"], "size": s["image_gen"].size, "text": s["conversations"][0]["value"]}} for s in built]
assert samples == [{{"id": s["id"], "size": s["image_gen"].size, "text": s["conversations"][0]["value"]}} for s in streamed]
edits = load_dataset({REPO!r}, "edits", split="train")
print(json.dumps([samples, len(edits), again.was_complete]))
"""


def test_load_dataset_from_the_hub_built_and_streamed_and_no_trace_of_the_token(hub: Hub) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", CLIENTS_OWN_WARNING, "-c", LOAD],
        env=hub.environment(HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    samples, num_edits, was_complete = json.loads(done.stdout.splitlines()[-1])
    source = pq.read_table("/".join([*__file__.split("/")[:-2], "builder_configs/default/our-dataset.parquet"]))
    passed = [
        row
        for row in source.to_pylist()
        if np.float32(row["fltLaionAesthScore"]) > np.float32(5.67) and min(row["intHeight"], row["intWidth"]) >= 512
    ]
    assert [tuple(sample["size"]) for sample in samples] == [(row["intWidth"], row["intHeight"]) for row in passed]
    assert num_edits == len(
        Path(__file__).parent.parent.joinpath("builder_configs/default/edits.jsonl").read_text().splitlines()
    )
    assert was_complete
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in hub.tmp_path.rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    uploads = [
        hashlib.sha256(data).hexdigest() for path, data in hub.repo.files().items() if path.endswith(".parquet")
    ]
    assert sorted(uploads) == sorted(digest for digest, _ in hub.server.uploads)


def test_rows_of_the_card_are_text_whatever_they_hold(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    rows = [{"id": "a", "conversations": chat("<!-- llava-mixture x: end -->\n---\nhi", "| no |")}]
    entry = {"name": "chat", "json_path": write_json(folder / "chat.json", rows)}
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    hub.push(make_mixture(entry, chat_entry(folder, "other", 2), path_map={"/<!-- llava-mixture x: end -->": "/b"}))
    hub.push(make_mixture(entry, chat_entry(folder, "other", 3), path_map={"/<!-- llava-mixture x: end -->": "/c"}))
    assert hub.body().count("# x (llava-mixture)") == 1
    assert hub.body().count("## Where the samples come from") == 1
    assert hub.body().startswith("# By hand\n")
