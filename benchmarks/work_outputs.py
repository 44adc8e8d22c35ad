"""Work with images, in a process of its own: `python benchmarks/work_outputs.py NAME DATA_DIR`; see `work.py`.

The images are those that `data.py --images 4000` writes: `images-4000/` with its `images-4000.json`, both on disk, and
(made here once) the same samples as an Arrow dataset with the bytes inside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DATA = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()
NUM_IMAGES = 4_000


def mixture() -> Any:
    import datasets  # noqa: F401 and pandas with it: imports are not counted, here as on the other side

    from llava_arrow import Mixture

    entry = {
        "name": "entry",
        "json_path": str(DATA / f"images-{NUM_IMAGES}.json"),
        "image_root": str(DATA / f"images-{NUM_IMAGES}"),
    }
    return Mixture.from_dict({"datasets": [{**entry, "features": {"image": "one"}}]})


def builder(loaded: Any, cache_dir: str, **arguments: Any) -> Any:
    import datasets

    from llava_mixture import LlavaMixture

    datasets.disable_progress_bars()
    return LlavaMixture(config_name="entry", mixture=loaded, cache_dir=cache_dir, **arguments)


def embedded() -> Any:
    """The samples as an Arrow dataset with image bytes."""
    made = builder(mixture(), str(DATA / "cache"), embed_images=True)
    made.download_and_prepare()
    return made.as_dataset("train")


def timed(work: Callable[[str], int], *, is_synced: bool = True) -> dict[str, Any]:
    """Seconds of `work(folder)`, until the disk has it all, and the samples it made."""
    folder = tempfile.mkdtemp(dir=DATA)
    os.sync()
    try:
        start = time.perf_counter()
        samples = work(folder)
        if is_synced:
            os.sync()
        return {"seconds": time.perf_counter() - start, "samples": samples}
    finally:
        shutil.rmtree(folder)


def ours_raw() -> dict[str, Any]:
    from llava_arrow import export_raw

    dataset = embedded()
    return timed(lambda folder: export_raw(dataset, f"{folder}/out").num_samples)


def card_loop() -> dict[str, Any]:
    """The loop of dataset cards: decode each image, save it anew, dump the records at the end."""
    dataset = embedded()

    def work(folder: str) -> int:
        records = []
        for row in dataset:
            row["image"].save(f"{folder}/{row['id']}.jpg")
            records.append({**row, "image": f"{row['id']}.jpg"})
        with open(f"{folder}/data.json", "w") as file:
            json.dump(records, file)
        return len(records)

    return timed(work)


def copy() -> dict[str, Any]:
    """`cp -r` of the same files."""

    def work(folder: str) -> int:
        subprocess.run(["cp", "-r", str(DATA / f"images-{NUM_IMAGES}"), folder], check=True)
        return NUM_IMAGES

    return timed(work)


def ours_raw_after_kill() -> dict[str, Any]:
    """The second run of a raw export whose first run was killed when half of the images were there."""
    from llava_arrow import export_raw

    dataset = embedded()
    folder = tempfile.mkdtemp(dir=DATA)
    child = os.fork()
    if child == 0:
        export_raw(dataset, f"{folder}/out")
        os._exit(0)
    while sum(len(names) for _, _, names in os.walk(f"{folder}/out/images")) < NUM_IMAGES // 2:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not os.path.exists(f"{folder}/out/data.json"), "the first run was done before it could be killed"
    os.sync()
    start = time.perf_counter()
    samples = export_raw(dataset, f"{folder}/out").num_samples
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return {"seconds": seconds, "samples": samples}


def ours_parquet(max_shard_bytes: int = 500_000_000) -> dict[str, Any]:
    """From the JSON and the image files."""
    from llava_arrow import export_parquet

    loaded = mixture()

    def work(folder: str) -> int:
        done = export_parquet(loaded, f"{folder}/out", max_shard_bytes=max_shard_bytes, cache_dir=f"{folder}/cache")
        return int(done.report["entry"]["entry"]["samples"])

    return timed(work)


def ours_parquet_after_kill() -> dict[str, Any]:
    """The second run of a Parquet export of ten parts whose first run was killed when half of them were there."""
    from llava_arrow import export_parquet

    loaded = mixture()
    folder = tempfile.mkdtemp(dir=DATA)
    arguments: dict[str, Any] = {"max_shard_bytes": 45_000_000, "cache_dir": f"{folder}/cache"}
    child = os.fork()
    if child == 0:
        export_parquet(loaded, f"{folder}/out", **arguments)
        os._exit(0)
    parts = Path(folder) / "out" / ".llava-mixture" / "parts" / "entry"
    while len(list(parts.glob("*.json"))) < 5:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.sync()
    start = time.perf_counter()
    done = export_parquet(loaded, f"{folder}/out", **arguments)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return {"seconds": seconds, "samples": done.report["entry"]["entry"]["samples"]}


def to_parquet() -> dict[str, Any]:
    """`Dataset.to_parquet` of the samples with bytes inside: it opens no image file."""
    import datasets

    dataset = embedded()
    datasets.disable_progress_bars()

    def work(folder: str) -> int:
        dataset.to_parquet(f"{folder}/data.parquet")
        return len(dataset)

    return timed(work)


def ours_build() -> dict[str, Any]:
    """Raw JSON and images → Arrow with the bytes inside."""
    import llava_mixture  # noqa: F401 imports are not counted

    loaded = mixture()

    def work(folder: str) -> int:
        made = builder(loaded, folder, embed_images=True)
        made.download_and_prepare()
        return int(made.info.splits["train"].num_examples)

    return timed(work)


def from_generator() -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        with open(DATA / f"images-{NUM_IMAGES}.json") as file:
            records = json.load(file)
        for record in records:
            path = DATA / f"images-{NUM_IMAGES}" / record["image"]
            yield {**record, "image": {"bytes": path.read_bytes(), "path": record["image"]}}

    def work(folder: str) -> int:
        return len(datasets.Dataset.from_generator(rows, features=features, cache_dir=folder))

    return timed(work)


WORK: dict[str, Callable[[], dict[str, Any]]] = {
    "ours_raw": ours_raw,
    "ours_raw_after_kill": ours_raw_after_kill,
    "card_loop": card_loop,
    "copy": copy,
    "ours_parquet": ours_parquet,
    "ours_parquet_ten_parts": lambda: ours_parquet(45_000_000),
    "ours_parquet_after_kill": ours_parquet_after_kill,
    "to_parquet": to_parquet,
    "ours_build_embedded": ours_build,
    "from_generator_embedded": from_generator,
}

if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]]()))
