"""One piece of work in a process of its own: `python benchmarks/work.py NAME DATA_DIR`. Prints its own seconds and
counts as JSON.

Names that begin with `ours_` use this package, the others are the alternatives that a user has today.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DATA = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()
COLUMNS = ["s3_path", "caption", "fltLaionAesthScore", "intHeight", "intWidth"]
LONG_COLUMNS = ["s3_path", "long_caption", "fltLaionAesthScore", "intHeight", "intWidth"]


def mixture(json_path: Path, **entry: Any) -> dict[str, Any]:
    return {"datasets": [{"name": "entry", "json_path": str(json_path), **entry}]}


def captions(num_rows: int = 3_000_000, *, long: bool = False) -> Any:
    from llava_arrow import Mixture

    entry: dict[str, Any] = {
        "columns": LONG_COLUMNS if long else COLUMNS,
        "aes_cutoff": 5.67,
        "min_size": 512,
        "preprocess_fn": "preproces_text_to_image_generation_s3",
        "process_fn_kwargs": {"caption_key": "long_caption"} if long else {},
    }
    return Mixture.from_dict(mixture(DATA / f"captions-{num_rows}.parquet", **entry))


def conversations() -> Any:
    from llava_arrow import Mixture

    return Mixture.from_dict(mixture(DATA / "llava-665000.json", multi_image=True))


def timed(prepare: Callable[[], Callable[[], int]]) -> dict[str, Any]:
    """Seconds of the work that `prepare` returns (imports are not counted), and the samples it made."""
    work = prepare()
    start = time.perf_counter()
    samples = work()
    return {"seconds": time.perf_counter() - start, "samples": samples}


def ours_build(mixture: Any, num_proc: int | None = None) -> dict[str, Any]:
    import datasets

    from llava_mixture import LlavaMixture

    datasets.disable_progress_bars()
    folder = tempfile.mkdtemp(dir=DATA)

    def work() -> int:
        builder = LlavaMixture(config_name="entry", mixture=mixture, cache_dir=folder)
        builder.download_and_prepare(num_proc=num_proc)
        return int(builder.info.splits["train"].num_examples)

    try:
        return timed(lambda: work)
    finally:
        shutil.rmtree(folder)


SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def shorten(caption: str) -> str:
    if random.random() < 0.2 and len(caption) > 150:
        sentences = SENTENCE_END.split(caption)
        caption = " ".join(sentences[: random.randint(1, len(sentences))])
    return caption[:800]


def to_sample(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {
        "id": "000951660",
        "image_gen": {"bytes": None, "path": row["s3_path"]},
        "conversations": [
            {"from": "human", "value": f"Generate an image with the caption: {shorten(row[key])}"},
            {"from": "gpt", "value": "Sure <image_gen>"},
        ],
        "gen_score": [row["fltLaionAesthScore"]],
    }


def features() -> Any:
    import datasets

    return datasets.Features(
        {
            "id": datasets.Value("string"),
            "image_gen": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
            "gen_score": datasets.Sequence(datasets.Value("float32")),
        }
    )


def filter_and_map(columns: list[str]) -> dict[str, Any]:
    """`load_dataset("parquet").filter(...).map(...)`, the filter on the columns it needs."""
    import datasets

    datasets.disable_progress_bars()
    folder = tempfile.mkdtemp(dir=DATA)

    def work() -> int:
        path = str(DATA / "captions-3000000.parquet")
        data = datasets.load_dataset("parquet", data_files=path, split="train", columns=columns, cache_dir=folder)
        data = data.filter(
            lambda score, height, width: score > 5.67 and height >= 512 and width >= 512,
            input_columns=["fltLaionAesthScore", "intHeight", "intWidth"],
        )
        key = columns[1]
        return len(data.map(lambda row: to_sample(row, key), remove_columns=columns, features=features()))

    try:
        return timed(lambda: work)
    finally:
        shutil.rmtree(folder)


def from_generator(columns: list[str]) -> dict[str, Any]:
    """`Dataset.from_generator` over the rows that pass: read in batches, filtered in Arrow, a dictionary per row."""
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    folder = tempfile.mkdtemp(dir=DATA)

    def rows() -> Iterator[dict[str, Any]]:
        file = pq.ParquetFile(DATA / "captions-3000000.parquet")
        wanted = (
            (pc.field("fltLaionAesthScore") > 5.67) & (pc.field("intHeight") >= 512) & (pc.field("intWidth") >= 512)
        )
        for batch in file.iter_batches(columns=columns):
            for row in pa.Table.from_batches([batch]).filter(wanted).to_pylist():
                yield to_sample(row, columns[1])

    def work() -> int:
        return len(datasets.Dataset.from_generator(rows, features=features(), cache_dir=folder))

    try:
        return timed(lambda: work)
    finally:
        shutil.rmtree(folder)


def pandas_read_and_filter() -> dict[str, Any]:
    import pandas as pd

    def work() -> int:
        frame = pd.read_parquet(DATA / "captions-3000000.parquet", columns=COLUMNS)
        return len(frame[(frame.fltLaionAesthScore > 5.67) & (frame.intHeight >= 512) & (frame.intWidth >= 512)])

    return timed(lambda: work)


def open_stream() -> Any:
    import datasets

    from llava_mixture import LlavaMixture

    builder = LlavaMixture(config_name="entry", mixture=captions(), cache_dir=str(DATA / "cache"))
    return builder.as_streaming_dataset("train").cast_column("image_gen", datasets.Image(decode=False))


def ours_first_sample() -> dict[str, Any]:
    """From nothing planned (no cache of counts) to the first sample. Torch, which a stream imports, counts as an
    import.
    """
    import torch.utils.data  # noqa: F401

    import llava_mixture  # noqa: F401

    shutil.rmtree(DATA / "cache", ignore_errors=True)

    def work() -> int:
        next(iter(open_stream()))
        return 1

    return timed(lambda: work)


def ours_resume() -> dict[str, Any]:
    """From the state at 90 % of a pass to the next sample."""
    stream = open_stream()
    iterator = iter(stream)
    for _ in range(round(0.9 * 270_000)):
        next(iterator)
    state = stream.state_dict()
    expected = next(iterator)["id"]

    def work() -> int:
        resumed = open_stream()
        resumed.load_state_dict(state)
        assert next(iter(resumed))["id"] == expected
        return 1

    return timed(lambda: work)


def load_json() -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    folder = tempfile.mkdtemp(dir=DATA)

    def work() -> int:
        path = str(DATA / "llava-665000.json")
        return len(datasets.load_dataset("json", data_files=path, split="train", cache_dir=folder))

    try:
        return timed(lambda: work)
    finally:
        shutil.rmtree(folder)


def import_datasets() -> dict[str, Any]:
    start = time.perf_counter()
    import datasets  # noqa: F401

    return {"seconds": time.perf_counter() - start, "samples": 0}


def ours_load_built() -> dict[str, Any]:
    """Import and load the entry that `ours_build_cached` left."""
    start = time.perf_counter()
    from llava_mixture import LlavaMixture

    builder = LlavaMixture(config_name="entry", mixture=captions(), cache_dir=str(DATA / "cache"))
    builder.download_and_prepare()
    samples = len(builder.as_dataset("train"))
    return {"seconds": time.perf_counter() - start, "samples": samples}


def ours_build_cached() -> dict[str, Any]:
    from llava_mixture import LlavaMixture

    builder = LlavaMixture(config_name="entry", mixture=captions(), cache_dir=str(DATA / "cache"))
    builder.download_and_prepare()
    return {"seconds": 0.0, "samples": len(builder.as_dataset("train"))}


WORK: dict[str, Callable[[], dict[str, Any]]] = {
    "ours_build": lambda: ours_build(captions()),
    "ours_build_two_processes": lambda: ours_build(captions(), num_proc=2),
    "ours_build_long": lambda: ours_build(captions(long=True)),
    "ours_build_9m": lambda: ours_build(captions(9_000_000)),
    "ours_json": lambda: ours_build(conversations()),
    "ours_first_sample": ours_first_sample,
    "ours_resume": ours_resume,
    "ours_build_cached": ours_build_cached,
    "ours_load_built": ours_load_built,
    "filter_and_map": lambda: filter_and_map(COLUMNS),
    "filter_and_map_long": lambda: filter_and_map(LONG_COLUMNS),
    "from_generator": lambda: from_generator(COLUMNS),
    "from_generator_long": lambda: from_generator(LONG_COLUMNS),
    "pandas_read_and_filter": pandas_read_and_filter,
    "load_json": load_json,
    "import_datasets": import_datasets,
}

if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]]()))
