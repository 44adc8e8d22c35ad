"""The same on every supported version of `datasets`. Each check runs in a process of its own, as a user's program does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent.parent
MAJOR = int(datasets.__version__.split(".")[0])
runs_scripts = pytest.mark.skipif(MAJOR >= 4, reason="datasets 4 and later run no scripts")
only_4 = pytest.mark.skipif(MAJOR < 4, reason="before datasets 4 the script itself is run")

PRELUDE = """
import json, os, sys
import datasets
from datasets import load_dataset
datasets.disable_progress_bar() if hasattr(datasets, "disable_progress_bar") else datasets.disable_progress_bars()

def rows(dataset):
    if isinstance(dataset, datasets.Dataset):
        return dataset.with_format("arrow")[:].to_pylist()
    return list(dataset.cast(datasets.Features({c: undecoded(f) for c, f in dataset.features.items()})))

def undecoded(feature):
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, list):
        return [undecoded(feature[0])]
    if isinstance(getattr(feature, "feature", None), datasets.Image):  # List, since version 4
        return type(feature)(datasets.Image(decode=False))
    return feature
"""


def run(code: str, cwd: Path, home: Path, **environment: str) -> str:
    """Run a program, offline and with a cache of its own, and give what it prints."""
    variables = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        **environment,
    }
    program = PRELUDE + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


LITERAL_CALLS = """
    {prepare}
    call = lambda *args, **kwargs: load_dataset({path!r}, *args{trust}, **kwargs)
    built = call("our-dataset", split="train")
    assert len(built) == 11 and built[0]["image_gen"].size == (512, 512), built
    streamed = call("our-dataset", split="train", streaming=True)
    first = next(iter(streamed))
    assert first["image_gen"].size == (512, 512) and first["id"] == built[0]["id"]
    assert rows(streamed) == rows(built)
    assert rows(call("our-dataset", split="train", num_proc=2)) == rows(built)
    assert rows(call("our-dataset", split="train[:10]")) == rows(built)[:10]
    whole = call(split="train")
    assert len(whole) == 34 and isinstance(whole[11]["image"], list)
    by_path = call("our-dataset", split="train", mixture={mixture!r})
    assert rows(by_path) == rows(built)
    names = datasets.get_dataset_config_names({path!r}{trust})
    assert names == ["mixture", "our-dataset", "instruct", "edits", "boxes", "long-captions", "embedded"], names
    print(datasets.__version__)
"""


@runs_scripts
@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_the_literal_call_as_a_script(place: str, tmp_path: Path) -> None:
    path = "./llava_mixture.py" if place == "checkout" else str(ROOT / "llava_mixture.py")
    mixture = str(ROOT / "builder_configs" / "default.yaml") if place == "checkout" else "default"
    code = LITERAL_CALLS.format(prepare="", path=path, trust=", trust_remote_code=True", mixture=mixture)
    assert run(code, ROOT if place == "checkout" else tmp_path, tmp_path) == f"{datasets.__version__}\n"


@pytest.mark.parametrize(("path", "place"), [("./llava_mixture.py", "checkout"), ("llava_mixture", "elsewhere")])
def test_the_literal_call_after_the_import(path: str, place: str, tmp_path: Path) -> None:
    mixture = "builder_configs/default.yaml" if place == "checkout" else "default"
    code = LITERAL_CALLS.format(prepare="import llava_mixture", path=path, trust="", mixture=mixture)
    assert run(code, ROOT if place == "checkout" else tmp_path, tmp_path) == f"{datasets.__version__}\n"


@only_4
def test_without_the_import_datasets_itself_refuses(tmp_path: Path) -> None:
    code = """
    try:
        load_dataset("./llava_mixture.py", "our-dataset")
    except RuntimeError as error:
        print(error)
    """
    assert run(code, ROOT, tmp_path) == "Dataset scripts are no longer supported, but found llava_mixture.py\n"


def test_the_installed_wheel_brings_the_mixtures(tmp_path: Path) -> None:
    code = """
    import llava_mixture, llava_arrow
    assert "site-packages" in llava_mixture.__file__, llava_mixture.__file__
    from llava_arrow import Mixture
    print(Mixture.load().path)
    """
    assert run(code, tmp_path, tmp_path).endswith("site-packages/llava_arrow/builder_configs/default.yaml\n")


def test_every_config_built_streamed_and_in_pieces_is_the_same(tmp_path: Path) -> None:
    code = """
    import hashlib, llava_mixture
    digest = hashlib.sha256()
    for name in llava_mixture.LlavaMixture.builder_configs:
        built = rows(load_dataset("llava_mixture", name, split="train"))
        assert rows(load_dataset("llava_mixture", name, split="train", streaming=True, num_shards=3)) == built
        builder = llava_mixture.LlavaMixture(config_name=name, cache_dir="direct", num_shards=4, embed_images=True)
        builder.download_and_prepare(num_proc=2)
        embedded = rows(builder.as_dataset("train"))
        assert [row["id"] for row in embedded] == [row["id"] for row in built]
        report = builder.report()
        assert sum(part["samples"] for part in report.values()) == len(built), report
        for row in embedded:
            for column in ("image", "image_gen", "image_gen_enc"):
                images = row.get(column)
                row[column] = [image["bytes"].hex() for image in (images if isinstance(images, list) else [images] if images else [])]
            digest.update(json.dumps(row, sort_keys=True).encode())
    print(digest.hexdigest())
    """
    output = run(code, tmp_path, tmp_path)
    digests = ROOT / ".venvs" / "digests"
    if digests.is_dir():
        (digests / datasets.__version__).write_text(output)
        assert {path.read_text() for path in digests.iterdir()} == {output}, (
            "versions of datasets give different samples"
        )


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A mixture of 3,000 rows of which 1,000 pass, none of them in the middle third."""
    scores = [0.0 if 1000 <= i < 2000 else float(i % 4) for i in range(3000)]
    turns = [[{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": "a"}] for i in range(3000)]
    table = pa.table({"conversations": turns, "fltLaionAesthScore": pa.array(scores, pa.float32())})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=100)
    path = tmp_path / "big.yaml"
    path.write_text("datasets:\n  - {name: big, json_path: big.parquet, aes_cutoff: 1}\n")
    return path


STREAMS = """
    import llava_mixture
    from datasets.distributed import split_dataset_by_node
    expected = [f"big-big-{i:09d}" for i in range(3000) if not 1000 <= i < 2000 and i % 4 > 1]
    def stream():
        data = load_dataset("llava_mixture", "big", split="train", mixture="big.yaml", streaming=True, num_shards=9)
        return data.select_columns(["id"])
    ids = lambda data: [row["id"] for row in data]
"""


def test_streams_divide(big: Path, tmp_path: Path) -> None:
    code = f"""
    {STREAMS}
    whole = stream()
    assert getattr(whole, "num_shards", None) or whole.n_shards == 9
    assert ids(whole) == expected
    for world_size in (2, 3, 4):
        parts = [ids(split_dataset_by_node(stream(), rank, world_size)) for rank in range(world_size)]
        assert sorted(sum(parts, [])) == expected
    shuffled = ids(whole.shuffle(seed=1, buffer_size=50))
    assert shuffled != expected and sorted(shuffled) == expected
    assert ids(whole.take(3)) == expected[:3]
    print("ok")
    """
    assert run(code, big.parent, tmp_path) == "ok\n"


def test_dataloader_workers_divide_the_stream(big: Path, tmp_path: Path) -> None:
    code = f"""
    {STREAMS}
    from torch.utils.data import DataLoader
    for num_workers in (0, 2):
        loader = DataLoader(stream(), batch_size=32, num_workers=num_workers)
        assert sorted(i for batch in loader for i in batch["id"]) == expected
    built = load_dataset("llava_mixture", "big", split="train", mixture="big.yaml").select_columns(["id"])
    loader = DataLoader(built, batch_size=32, num_workers=2)
    assert [i for batch in loader for i in batch["id"]] == expected
    print("ok")
    """
    assert run(code, big.parent, tmp_path) == "ok\n"


@pytest.mark.skipif(
    datasets.__version__.startswith("2.16"), reason="IterableDataset.state_dict came with datasets 2.20"
)
def test_a_stream_resumes(big: Path, tmp_path: Path) -> None:
    code = f"""
    {STREAMS}
    for position in (0, 1, 499, 500, 501, 999):
        first = stream()
        iterator = iter(first)
        before = [next(iterator)["id"] for _ in range(position)]
        second = stream()
        second.load_state_dict(first.state_dict())
        assert before + ids(second) == expected, position
    print("ok")
    """
    assert run(code, big.parent, tmp_path) == "ok\n"


def test_errors_are_those_of_the_package(big: Path, tmp_path: Path) -> None:
    (big.parent / "bad.jsonl").write_text('{"id": "a", "conversations": []}\n')
    big.write_text("datasets:\n  - {name: bad, json_path: bad.jsonl}\n")
    code = """
    import llava_mixture
    for arguments in ({}, {"streaming": True}):
        try:
            rows(load_dataset("llava_mixture", "bad", split="train", mixture="big.yaml", **arguments))
        except llava_mixture.MixtureError as error:
            print(error)
    """
    message = (
        f"{big.parent}/bad.jsonl row 0 (entry 'bad'): the conversation is empty: it needs a human turn and an answer"
    )
    assert run(code, big.parent, tmp_path) == f"{message}\n" * 2


DIGEST = """
def sample_digest(data):
    import hashlib
    found = []
    for row in rows(data):
        for column in ("image", "image_gen", "image_gen_enc"):
            images = row.get(column)
            images = images if isinstance(images, list) else [images] if images else []
            row[column] = [hashlib.sha256(image["bytes"]).hexdigest() for image in images]
        found.append(json.dumps(row, sort_keys=True))
    return hashlib.sha256("".join(found).encode()).hexdigest()

def embedded(name, mixture, cache_dir):
    import llava_mixture
    builder = llava_mixture.LlavaMixture(config_name=name, mixture=mixture, cache_dir=cache_dir, embed_images=True)
    builder.download_and_prepare()
    return builder.as_dataset("train")

NAMES = ["our-dataset", "instruct", "edits", "boxes", "long-captions", "embedded", "mixture"]
"""


def test_what_is_exported_is_what_is_built(tmp_path: Path) -> None:
    """Parquet by `datasets` alone, built and streamed; raw by the builder."""
    write = """
import llava_mixture
from llava_arrow import export_parquet, export_raw
export_parquet("default", "parquet", config_names=NAMES, num_proc=2)
export_raw(load_dataset("llava_mixture", split="train", streaming=True), "streamed")
export_raw(load_dataset("llava_mixture", split="train"), "built", num_proc=2)
export_raw("default", "raw")
assert open("streamed/data.json").read() == open("built/data.json").read() == open("raw/data.json").read()
for name in NAMES:
    mine = embedded(name, "default", "mine")
    if name in ("mixture", "edits"):  # all samples, and one config by itself
        back = embedded(name, "raw/mixture.yaml", "back")
        assert mine.features == back.features
        assert sample_digest(mine) == sample_digest(back)
    print(name, sample_digest(mine))
"""
    read = """
for name in NAMES:
    built = load_dataset(os.path.abspath("parquet"), name, split="train")
    streamed = load_dataset(os.path.abspath("parquet"), name, split="train", streaming=True)
    assert sample_digest(built) == sample_digest(streamed)
    print(name, sample_digest(built))
assert "llava_arrow" not in sys.modules
"""
    written = run(DIGEST + write, tmp_path, tmp_path / "home")
    assert run(DIGEST + read, tmp_path, tmp_path / "other home") == written


def test_what_is_pushed_is_what_is_loaded(tmp_path: Path) -> None:
    push = """
from llava_arrow import push_to_hub
pushed = push_to_hub("default", "user/mixture", token="hf_of_the_test")
assert pushed.num_sent == 6, pushed
assert push_to_hub("default", "user/mixture", token="hf_of_the_test").was_complete
for name in ("our-dataset", "edits", "embedded"):
    expected = sample_digest(embedded(name, "default", "mine"))
    for streaming in (False, True):
        assert sample_digest(load_dataset("user/mixture", name, split="train", streaming=streaming)) == expected
print("ok")
"""
    (tmp_path / "push.py").write_text(PRELUDE + DIGEST + push)
    serve = f"""
import subprocess
sys.path.insert(0, {str(ROOT)!r})
from tests.hub_server import HubServer
with HubServer(token="hf_of_the_test", user="user") as server:
    online = dict(HF_ENDPOINT=server.url, HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0")
    sys.exit(subprocess.run([sys.executable, "push.py"], env=dict(os.environ, **online)).returncode)
"""
    assert run(serve, tmp_path, tmp_path / "home").endswith("ok\n")
