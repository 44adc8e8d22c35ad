"""The builder: literal calls, laws, cache rules, and what a user sees when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.utils.data
from datasets.distributed import split_dataset_by_node

import llava_mixture
from llava_arrow import ConfigError, Mixture, MixtureError, PreprocessError, SchemaError
from llava_arrow.config_data import ConfigData
from llava_arrow.plan_cache import PlanCache
from llava_arrow.shards import join_neighbours
from llava_mixture import LlavaMixture
from tests.conftest import MakeMixture, captions, chat, write_json, write_table

SCRIPT = "./llava_mixture.py"
CONFIGS = LlavaMixture.builder_configs
T2I = {"preprocess_fn": "preproces_text_to_image_generation_s3"}


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    """Samples as plain values: images as what Arrow holds."""
    if isinstance(dataset, datasets.Dataset):
        return dataset.with_format("arrow")[:].to_pylist()  # type: ignore[no-any-return]
    return [row for table in dataset.with_format("arrow") for row in table.to_pylist()]


def build(config_name: str | None, **arguments: Any) -> datasets.Dataset:
    return datasets.load_dataset(SCRIPT, config_name, split="train", **arguments)


def stream(config_name: str | None, **arguments: Any) -> datasets.IterableDataset:
    return datasets.load_dataset(SCRIPT, config_name, split="train", streaming=True, **arguments)


@pytest.fixture
def big(folder: Path, make_mixture: MakeMixture) -> Any:
    """10,000 rows in row groups of 500; rows pass where the number's last digit is above 4, and none in the middle."""
    scores = [0.0 if 4000 <= i < 6000 else float(i % 10) for i in range(10_000)]
    write_table(folder / "big.parquet", captions(10_000, fltLaionAesthScore=scores), row_group_size=500)
    return make_mixture({"name": "big", "json_path": "big.parquet", "aes_cutoff": 4, **T2I})


EXPECTED_BIG = [f"big-big-{i:09d}" for i in range(10_000) if i % 10 > 4 and not 4000 <= i < 6000]


@pytest.mark.parametrize("config_name", CONFIGS)
def test_built_and_streamed_are_the_same_for_every_config(config_name: str, tmp_path: Path) -> None:
    built = build(config_name, cache_dir=str(tmp_path))
    assert rows_of(stream(config_name)) == rows_of(built)
    assert rows_of(build(config_name, cache_dir=str(tmp_path / "2"), num_proc=2)) == rows_of(built)
    examples = LlavaMixture(config_name=config_name)
    (split,) = examples._split_generators(None)
    assert [sample for _, sample in examples._generate_examples(**split.gen_kwargs)] == rows_of(built)


def test_our_dataset_keeps_the_rows_that_its_filters_say() -> None:
    dataset = build("our-dataset")
    names = [os.path.basename(row["image_gen"]["path"]) for row in rows_of(dataset)]
    kept = ["astronaut", "hubble_deep_field", "retina", "camera"]
    assert names[:4] == [f"{name}.jpg" for name in kept]
    assert {name: names.count(f"{name}.jpg") for name in kept} == {
        "astronaut": 3, "hubble_deep_field": 3, "retina": 2, "camera": 3,
    }  # fmt: skip
    assert all(min(image.size) >= 512 for image in dataset["image_gen"])
    assert min(score for (score,) in dataset["gen_score"]) > 5.67


def test_without_a_name_the_whole_mixture_is_loaded() -> None:
    assert rows_of(build(None)) == rows_of(build("mixture"))
    single = [row["id"] for name in CONFIGS if name != "mixture" for row in rows_of(build(name))]
    assert [row["id"] for row in rows_of(build(None))] == single


def test_slices_and_names() -> None:
    assert len(datasets.load_dataset(SCRIPT, "boxes", split="train[:3]")) == 3
    assert list(datasets.load_dataset("llava_mixture", "boxes")) == ["train"]
    assert datasets.get_dataset_config_names(SCRIPT) == list(CONFIGS)
    assert datasets.get_dataset_config_names("llava_mixture")[0] == "mixture"


def test_registering_twice_wraps_once() -> None:
    before = datasets.load.dataset_module_factory
    llava_mixture.register()
    assert datasets.load.dataset_module_factory is before


def test_other_paths_go_on_as_before(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [{"x": 1}])
    found = datasets.load_dataset("json", data_files=str(tmp_path / "a.json"), split="train", cache_dir=str(tmp_path))
    assert found["x"][:] == [1]


@pytest.mark.parametrize(("num_proc", "num_shards"), [(None, None), (2, None), (3, 16), (None, 5)])
def test_any_number_of_processes_and_shards_gives_the_same(
    num_proc: int | None, num_shards: int | None, big: Any, tmp_path: Path
) -> None:
    builder = LlavaMixture(config_name="big", mixture=big, cache_dir=str(tmp_path), num_shards=num_shards)
    builder.download_and_prepare(num_proc=num_proc)
    assert builder.as_dataset("train")["id"][:] == EXPECTED_BIG
    report = builder.report()["big"]
    assert (report["rows"], report["delivered"], report["filtered"]) == (10_000, 4000, {"aes_cutoff": 6000})


def test_streams_have_as_many_shards_as_asked_for_and_divide(big: Any) -> None:
    whole = stream("big", mixture=big, num_shards=12)
    assert whole.num_shards == 12
    assert [row["id"] for row in rows_of(whole)] == EXPECTED_BIG
    for world_size in (2, 3, 5):
        parts = [
            [row["id"] for row in rows_of(split_dataset_by_node(whole, rank, world_size))]
            for rank in range(world_size)
        ]
        assert sorted(sample_id for part in parts for sample_id in part) == EXPECTED_BIG
    shuffled = [row["id"] for row in rows_of(whole.shuffle(seed=3, buffer_size=100))]
    assert shuffled != EXPECTED_BIG
    assert sorted(shuffled) == EXPECTED_BIG


def test_the_shards_of_a_mixture_are_spread_by_size(
    folder: Path, make_mixture: MakeMixture, big: Any, tmp_path: Path
) -> None:
    write_json(folder / "small.json", [{"conversations": chat("q", "a")}] * 50)
    mixture = make_mixture(
        {"name": "small", "json_path": "small.json"},
        {"name": "big", "json_path": "big.parquet", "aes_cutoff": 4, **T2I},
    )
    whole = stream("mixture", mixture=mixture, num_shards=24)
    assert whole.num_shards == 24
    assert len(rows_of(whole)) == 4050


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataloader_workers_divide_the_stream(num_workers: int, big: Any) -> None:
    dataset = stream("big", mixture=big, num_shards=8).select_columns(["id"])
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=num_workers)
    assert sorted(sample_id for batch in loader for sample_id in batch["id"]) == EXPECTED_BIG


@pytest.mark.parametrize("position", [0, 1, 777, 2000, 2001, 3999])
def test_a_stream_resumes_where_it_was(position: int, big: Any) -> None:
    dataset = stream("big", mixture=big, num_shards=10).select_columns(["id"])
    iterator = iter(dataset)
    before = [next(iterator)["id"] for _ in range(position)]
    state = dataset.state_dict()
    resumed = stream("big", mixture=big, num_shards=10).select_columns(["id"])
    resumed.load_state_dict(state)
    assert before + [row["id"] for row in resumed] == EXPECTED_BIG


def test_configs_of_one_mixture_concatenate_with_list_images() -> None:
    parts = [
        build(name, image_columns="list").select_columns(["id", "conversations"]) for name in ("boxes", "instruct")
    ]
    assert len(datasets.concatenate_datasets(parts)) == 12
    wide = [build(name, image_columns="list") for name in ("boxes", "instruct", "embedded")]
    assert datasets.concatenate_datasets(wide)[0]["image"][0].size == (512, 512)


def test_embedded_images_are_the_bytes_of_the_files(tmp_path: Path) -> None:
    embedded, referenced = build("our-dataset", embed_images=True), build("our-dataset")
    for inside, outside in zip(rows_of(embedded), rows_of(referenced), strict=True):
        assert inside["image_gen"]["bytes"] == Path(outside["image_gen"]["path"]).read_bytes()
        assert outside["image_gen"]["bytes"] is None


def test_a_build_into_parquet(tmp_path: Path) -> None:
    builder = LlavaMixture(config_name="edits", cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(output_dir=str(tmp_path / "out"), file_format="parquet")
    (path,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_table(path).num_rows == 2
    assert builder.report()["edits"]["delivered"] == 2


# Cache rules: change something, the change is there; change nothing, nothing is rebuilt.


def arrow_file(config_name: str, cache_dir: Path, **arguments: Any) -> tuple[str, int]:
    dataset = build(config_name, cache_dir=str(cache_dir), **arguments)
    path = dataset.cache_files[0]["filename"]
    return path, os.stat(path).st_mtime_ns


def test_nothing_is_rebuilt_when_nothing_changed(big: Any, tmp_path: Path) -> None:
    assert arrow_file("big", tmp_path, mixture=big) == arrow_file("big", tmp_path, mixture=big)
    assert arrow_file("big", tmp_path, mixture=big) == arrow_file("big", tmp_path, mixture=big, num_shards=3)


def test_every_change_is_there(folder: Path, make_mixture: MakeMixture, tmp_path: Path) -> None:
    write_json(folder / "a.json", [{"id": i, "conversations": chat("q", "a")} for i in range(5)])
    entry = {"name": "a", "json_path": "a.json"}

    def ids(*changes: dict[str, Any], **arguments: Any) -> list[str]:
        mixture = make_mixture(*({**entry, **change} for change in changes or ({},)))
        assert mixture.config_names == ["mixture", "a"]
        path = str(folder / "x.yaml")
        return list(build("a", mixture=path, cache_dir=str(tmp_path / "c"), **arguments)["id"][:])

    assert ids() == ["0", "1", "2", "3", "4"]
    assert ids({"sampling_strategy": "end:2"}) == ["3", "4"]
    two = ids({"sampling_strategy": "random:2"})
    chosen = [ids({"sampling_strategy": "random:2"}, seed=seed) for seed in range(6)]
    for seed, found in enumerate(chosen):
        assert found == [str(i) for i in sorted(np.random.RandomState(seed).choice(5, 2, replace=False))]
    assert two == [str(i) for i in sorted(np.random.RandomState(42).choice(5, 2, replace=False))]
    write_json(folder / "a.json", [{"id": 9, "conversations": chat("q", "a")}])
    assert ids() == ["9"]


def test_a_killed_build_leaves_nothing_that_looks_finished(
    folder: Path, make_mixture: MakeMixture, tmp_path: Path
) -> None:
    write_table(folder / "a.parquet", captions(400), row_group_size=10)
    make_mixture({"name": "a", "json_path": "a.parquet", **T2I})
    code = (
        "import time, llava_arrow.pipeline as p; original = p._Stage.deliver\n"
        "def slow(self, table): time.sleep(0.02); print('.', flush=True); return original(self, table)\n"
        "p._Stage.deliver = slow\n"
        "import llava_mixture\n"
        f"llava_mixture.LlavaMixture(config_name='a', mixture={str(folder / 'x.yaml')!r}, cache_dir={str(tmp_path / 'c')!r})"
        ".download_and_prepare()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = list((tmp_path / "c").rglob("*.incomplete"))
    assert left, "the build was killed before it began to write"
    (left[0] / "ledger.jsonl").write_text("a stale file")
    builder = LlavaMixture(config_name="a", mixture=str(folder / "x.yaml"), cache_dir=str(tmp_path / "c"))
    with pytest.raises(ConfigError) as error:
        builder.report()
    assert error.value.message == "config 'a' is not built yet: call download_and_prepare() first"
    builder.download_and_prepare()
    assert len(builder.as_dataset("train")) == 400
    assert Path(builder.cache_dir, "ledger.jsonl").read_text() == ""


def test_two_processes_that_build_at_once_both_succeed(
    folder: Path, make_mixture: MakeMixture, tmp_path: Path
) -> None:
    write_table(folder / "a.parquet", captions(3000))
    make_mixture({"name": "a", "json_path": "a.parquet", **T2I})
    code = (
        "import datasets, llava_mixture, sys; datasets.disable_progress_bars()\n"
        f"d = datasets.load_dataset('llava_mixture', 'a', mixture={str(folder / 'x.yaml')!r}, cache_dir={str(tmp_path / 'c')!r},"
        " split='train'); print(len(d), d.select_columns(['id'])[2999]['id'])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path) for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert outputs == [b"3000 a-a-000002999\n"] * 2


# What a user sees


def test_a_bad_row_stops_a_build_with_its_own_message(folder: Path, make_mixture: MakeMixture, tmp_path: Path) -> None:
    rows = [{"id": i, "conversations": chat("q", "a")} for i in range(300)]
    rows[250]["conversations"] = []
    write_json(folder / "a.jsonl", rows, lines=True)
    mixture = make_mixture({"name": "a", "json_path": "a.jsonl"})
    message = f"{folder}/a.jsonl row 250 (entry 'a'): the conversation is empty: it needs a human turn and an answer"
    for num_proc in (None, 2):
        with pytest.raises(SchemaError) as error:
            build("a", mixture=mixture, cache_dir=str(tmp_path / "c"), num_proc=num_proc)
        assert error.value.message == message
    with pytest.raises(SchemaError) as error:
        rows_of(stream("a", mixture=mixture))
    assert error.value.message == message


@pytest.mark.parametrize("num_proc", [None, 2])
def test_skipped_rows_are_in_the_ledger_and_the_report(
    num_proc: int | None, folder: Path, make_mixture: MakeMixture, tmp_path: Path
) -> None:
    rows: list[Any] = [{"id": f"r{i}", "conversations": chat("q", "ä")} for i in range(60)]
    for i in (7, 45):
        rows[i]["conversations"] = []
    rows[50] = {"id": "film", "video": "v.mp4", "conversations": []}
    write_json(folder / "a.jsonl", rows, lines=True)
    mixture = make_mixture({"name": "a", "json_path": "a.jsonl", "on_error": "skip", "sampling_strategy": "first:55"})
    builder = LlavaMixture(config_name="a", mixture=mixture, cache_dir=str(tmp_path))
    builder.download_and_prepare(num_proc=num_proc)
    lines = [json.loads(line) for line in Path(builder.cache_dir, "ledger.jsonl").read_text().splitlines()]
    reason = "the conversation is empty: it needs a human turn and an answer"
    file = f"{folder}/a.jsonl"
    assert lines == [
        {"config": "a", "file": file, "row": 7, "id": "r7", "code": "empty_conversation", "reason": reason},
        {"config": "a", "file": file, "row": 45, "id": "r45", "code": "empty_conversation", "reason": reason},
        {"config": "a", "file": file, "row": 50, "id": None, "code": "video",
         "reason": "the row has a 'video': only images are supported"},
    ]  # fmt: skip
    assert builder.report() == {
        "a": {"rows": 60, "filtered": {}, "not_sampled": 5, "delivered": 52, "samples": 52, "repaired": 0, "trimmed": 0,
              "undeclared": {}, "ledger": 3}
    }  # fmt: skip


def test_a_stream_says_what_it_leaves_out(
    folder: Path, make_mixture: MakeMixture, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(folder / "a.json", [{"conversations": []}, {"conversations": chat("q", "a")}])
    mixture = make_mixture({"name": "a", "json_path": "a.json", "on_error": "skip"})
    assert len(rows_of(stream("a", mixture=mixture))) == 1
    assert caplog.messages == [
        f"{folder}/a.json: 1 rows were left out (on_error: skip), the first: row 0, empty_conversation: the conversation is "
        "empty: it needs a human turn and an answer"
    ]


def test_a_stream_says_what_the_default_cutoff_removes(
    folder: Path, make_mixture: MakeMixture, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(folder / "a.parquet", captions(3, fltLaionAesthScore=[4.0, 6.0, 4.5]))
    entry = {"json_path": "a.parquet", **T2I}
    mixture = make_mixture({"name": "a", **entry}, {"name": "b", "aes_cutoff": 5, **entry})
    assert len(rows_of(stream("b", mixture=mixture))) == 1
    assert caplog.messages == []
    assert len(rows_of(stream("a", mixture=mixture))) == 1
    assert caplog.messages == [
        f"{folder}/a.parquet: the default aes_cutoff of 5 removed 2 rows: say aes_cutoff in the entry, null for none"
    ]


def test_tables_stay_small_with_copies_and_embedded_images(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    (folder / "a.gif").write_bytes(b"GIF89a......")
    rows = [{"id": i, "image": "a.gif", "conversations": chat("<image>q", "a")} for i in range(300)]
    write_json(folder / "a.json", rows)
    mixture = make_mixture(
        {"name": "a", "json_path": "a.json"}, {"name": "b", "json_path": "a.json", "sampling_strategy": "dup:400"}
    )
    for name, embed_images, largest, total in (("a", True, 100, 300), ("b", False, 16_384, 120_000)):
        data = ConfigData.open(mixture, name, cache=cache, embed_images=embed_images)
        sizes = [table.num_rows for shard in data.plan(num_shards=1, cache=cache)[0] for table in data.tables(shard)]
        assert (max(sizes) <= largest, sum(sizes)) == (True, total)


def test_an_entry_of_which_every_row_fails_is_an_error(
    folder: Path, make_mixture: MakeMixture, tmp_path: Path
) -> None:
    write_json(folder / "a.json", [{"conversations": []}] * 3)
    mixture = make_mixture({"name": "a", "json_path": "a.json", "on_error": "skip"})
    with pytest.raises(MixtureError) as error:
        build("a", mixture=mixture, cache_dir=str(tmp_path))
    assert error.value.message == (
        "entry 'a': none of its 3 rows was delivered, 3 failed: empty_conversation: the conversation is empty: it needs a "
        "human turn and an answer"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixtur": "x"}, "the builder has no argument 'mixtur': did you mean 'mixture'?"),
        ({"num_shards": 0}, "num_shards must be a whole number ≥ 1, got 0"),
        ({"num_shards": True}, "num_shards must be a whole number ≥ 1, got True"),
        ({"path_map": {"a": 1}}, "path_map must be a mapping of texts to texts, got {'a': 1}"),
        ({"path_map": "a:b"}, "path_map must be a mapping of texts to texts, got 'a:b'"),
        ({"trust_custom_code": "no"}, "trust_custom_code must be true or false, got 'no'"),
        ({"embed_images": "yes"}, "embed_images must be true or false, got 'yes'"),
        ({"mixture": 3}, "mixture must be a Mixture, a path or a name, got 3"),
        ({"data_dir": "x"}, "data_dir= cannot be given: the mixture's entries name their files (`json_path`)"),
        ({"image_columns": "many"}, "image_columns must be 'list' or not given, got 'many'"),
        ({"mixture": "nowhere.yaml"}, "no mixture 'nowhere.yaml': neither a file nor one of the names in builder_configs (default)"),
        (
            {"features": datasets.Features({"id": datasets.Value("string")})},
            "features= cannot be given: the columns follow from the mixture (see `features:` and image_columns=)",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build("boxes", **arguments)
    assert error.value.message == message


def test_a_remote_target_keeps_what_was_there(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/deep/other.txt", b"x")
    for target in ("memory://bucket", "memory://new/prefix"):
        builder = LlavaMixture(config_name="edits", cache_dir=str(tmp_path))
        builder.download_and_prepare(target, file_format="parquet")
        inner = target.removeprefix("memory:/")
        assert memory.exists(f"{inner}/llava_mixture-train.parquet")
        assert json.loads(memory.cat(f"{inner}/report.json"))["edits"]["delivered"] == 2
    assert memory.cat("/bucket/deep/other.txt") == b"x"


def test_parquet_holds_only_what_looks_like_an_image(folder: Path, make_mixture: MakeMixture, tmp_path: Path) -> None:
    (folder / "secret.txt").write_text("root:x:0")
    write_json(folder / "a.json", [{"image": "secret.txt", "conversations": chat("<image>q", "a")}])
    builder = LlavaMixture(
        config_name="a", mixture=make_mixture({"name": "a", "json_path": "a.json"}), cache_dir=str(tmp_path / "c")
    )
    with pytest.raises(MixtureError) as error:
        builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    place = f"{folder}/a.json row 0 (entry 'a')"
    assert error.value.message == f"{place}: {folder}/secret.txt is no image (it begins with b'root:x:0')"


def test_a_disk_that_is_full_says_so(big: Any, folder: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, llava_mixture; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"llava_mixture.LlavaMixture(config_name='big', mixture={str(folder / 'x.yaml')!r}, cache_dir='c').download_and_prepare()"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    last = output.stderr.splitlines()[-1]
    assert last.startswith(f"llava_arrow.errors.MixtureError: {tmp_path}/c/llava_mixture/big-")
    assert last.endswith("cannot be written: [Errno 27] File too large")
    assert not list((tmp_path / "c").rglob("dataset_info.json"))


def test_builder_arguments_go_with_a_mixture_object(make_mixture: MakeMixture, folder: Path) -> None:
    write_json(folder / "a.json", [{"id": i, "conversations": chat("q", "a")} for i in range(9)])
    make_mixture({"name": "a", "json_path": "/mnt/a.json", "sampling_strategy": "random:3"})
    loaded = Mixture.load(folder / "x.yaml", seed=7, path_map={"/mnt": str(folder)})
    ids = [row["id"] for row in rows_of(stream("a", mixture=loaded, image_root="/elsewhere"))]
    assert ids == [str(i) for i in sorted(np.random.RandomState(7).choice(9, 3, replace=False))]
    changed = replace(loaded, entries=loaded.entries[:1] * 1, seed=8)
    assert len(rows_of(stream("a", mixture=changed, seed=3))) == 3
    by_hand = Mixture(entries=(replace(loaded.entries[0], min_size=5),), raw=loaded.raw, base_dir=loaded.base_dir)
    with pytest.raises(ConfigError) as error:
        stream("a", mixture=by_hand, seed=3)
    assert error.value.message == (
        "seed cannot be given with a Mixture whose entries were made or changed by hand: change the entries themselves "
        "(dataclasses.replace)"
    )


def test_an_unknown_config_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no config 'our-datset': did you mean 'our-dataset'"):
        build("our-datset")


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = PreprocessError("x", code="null_x").at("a.json row 1")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.code) == (PreprocessError, "a.json row 1: x", "null_x")


def test_neighbouring_shards_are_read_as_one(big: Any) -> None:
    builder = LlavaMixture(config_name="big", mixture=big, num_shards=9)
    (split,) = builder._split_generators(None)
    shards = split.gen_kwargs["shards"]
    (joined,) = join_neighbours(shards)
    assert (len(shards), joined.range.start, joined.range.stop) == (9, 0, 10_000)
    assert len(join_neighbours(shards[::2])) == 5


def test_importing_takes_no_look_at_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "llava_mixture").mkdir()
    (tmp_path / "llava_mixture" / "data.csv").write_text("not,this\n1,2\n")
    code = "import datasets, llava_mixture; print(datasets.load_dataset('llava_mixture', 'boxes', split='train').column_names)"
    output = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert output.stdout == "['id', 'data_source', 'image', 'conversations']\n", output.stderr


def test_loading_what_is_built_reads_no_data_file(big: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("big", mixture=big, cache_dir=str(tmp_path))
    monkeypatch.setattr("llava_arrow.sources.parquet._open", lambda file: pytest.fail("opened"))
    assert len(build("big", mixture=big, cache_dir=str(tmp_path))) == 4000


def test_tables_are_what_the_features_say(big: Any) -> None:
    builder = LlavaMixture(config_name="big", mixture=big)
    (split,) = builder._split_generators(None)
    for _, table in builder._generate_tables(**split.gen_kwargs):
        assert table.schema == builder.info.features.arrow_schema.remove_metadata()
        assert isinstance(table, pa.Table)
