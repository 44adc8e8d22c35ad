"""Every test has a cache of its own and no network; files are small and real."""

from __future__ import annotations

import os
import tempfile

# Before `datasets` and `huggingface_hub` are imported, which read them once.
_HOME = tempfile.mkdtemp(prefix="llava-mixture-tests-")
os.environ.update(
    HF_HOME=_HOME,
    HF_DATASETS_CACHE=os.path.join(_HOME, "datasets"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llava_arrow.config_data import ConfigData
from llava_arrow.ledger import Tally
from llava_arrow.mixture import Mixture
from llava_arrow.plan_cache import PlanCache

MakeMixture = Callable[..., Mixture]


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's mixture and data files live; its name has a space and letters beyond ASCII."""
    path = tmp_path / "a mixture ü"
    path.mkdir()
    return path


@pytest.fixture
def make_mixture(folder: Path) -> MakeMixture:
    """Write a mixture of the given entries to `x.yaml` and load it."""

    def make(*entries: dict[str, Any], overrides: dict[str, Any] | None = None, **top: Any) -> Mixture:
        (folder / "x.yaml").write_text(yaml.safe_dump({"datasets": list(entries), **top}, sort_keys=False))
        return Mixture.load(folder / "x.yaml", **(overrides or {}))

    return make


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> str:
    """A Parquet file; its name is returned."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **options)
    return path.name


def write_json(path: Path, records: list[Any], *, lines: bool = False, indent: int | None = None) -> str:
    """A JSON array, or one record per line; its name is returned."""
    text = "".join(json.dumps(r) + "\n" for r in records) if lines else json.dumps(records, indent=indent)
    path.write_text(text, encoding="utf-8")
    return path.name


def chat(*texts: str) -> list[dict[str, str]]:
    """Turns that alternate, human first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def captions(num_rows: int, **more: Any) -> dict[str, Any]:
    """Columns of a text-to-image file."""
    return {
        "s3_path": [f"p/{i}.jpg" for i in range(num_rows)],
        "caption": [f"caption {i}" for i in range(num_rows)],
        **more,
    }


def samples_of(
    mixture: Mixture, config_name: str, cache: PlanCache, *, num_shards: int | None = None, **arguments: Any
) -> tuple[list[dict[str, Any]], Tally]:
    """All samples of a config through the pipeline, and the sum of its tallies."""
    data = ConfigData.open(mixture, config_name, cache=cache, **arguments)
    shards, unread = data.plan(num_shards=num_shards, cache=cache)
    tally = Tally()
    for rest in unread.values():
        tally.add(rest)
    samples = [sample for shard in shards for table in data.tables(shard, tally) for sample in table.to_pylist()]
    return samples, tally


def is_accounted_for(tally: Tally) -> bool:
    """Law 3."""
    return tally.rows == tally.delivered + sum(tally.filtered.values()) + tally.not_sampled + len(tally.ledger)


@pytest.fixture(autouse=True)
def own_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may depend on the working directory, and nothing may be written into it."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    yield
    assert not list(cwd.iterdir()), "something was written into the working directory"
