"""Pushes to a Hub of the tests' own: in this process, with waits that take no time, or in one of their own."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCardData, constants
from huggingface_hub.repocard import metadata_load
from PIL import Image

from llava_arrow import Mixture, push_to_hub
from llava_arrow.outputs import hub_client
from llava_arrow.outputs.hub import Push
from tests.conftest import chat, write_json
from tests.hub_server import HubServer, Lfs, Repo

TOKEN, READ_TOKEN = "hf_write0123456789abcdefghij", "hf_read0123456789abcdefghij"
REPO = "user/data"
CHECKOUT = Path(__file__).parent.parent
CLIENTS_OWN_WARNING = "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"
"""`huggingface_hub` 2.4 calls its HTTP client in a way that this deprecates."""
SMALL = 26_000
"""`max_shard_bytes` that cuts `chat_entry`'s 24 rows into five shards."""


class Hub:
    """The server, and pushes to it; `waits` are the seconds that clients would have waited."""

    def __init__(self, server: HubServer, tmp_path: Path) -> None:
        self.server, self.waits = server, list[float]()
        self.tmp_path, self.cache_dir = tmp_path, tmp_path / "cache"

    @property
    def repo(self) -> Repo:
        return self.server.repos[REPO]

    @property
    def messages(self) -> list[str]:
        """Of all commits, oldest first."""
        return [commit.message for commit in self.repo.commits]

    def push(self, mixture: Mixture, repo_id: str = REPO, **arguments: Any) -> Push:
        arguments = {"token": TOKEN, "cache_dir": str(self.cache_dir), **arguments}
        return push_to_hub(mixture, repo_id, **arguments)

    def push_apart(self, path: str, script: str = "", **env: str) -> subprocess.Popen[str]:
        """The same push in a process of its own; `script` runs first."""
        code = f"{script}\nfrom llava_arrow import push_to_hub\n"
        code += f"push_to_hub({path!r}, {REPO!r}, max_shard_bytes={SMALL}, cache_dir={str(self.cache_dir)!r}, **more)"
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-W", CLIENTS_OWN_WARNING, "-c", "more = {}\n" + code],
            env=self.environment(HF_TOKEN=TOKEN, **env),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def environment(self, **more: str) -> dict[str, str]:
        """For a process that is to talk to this Hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        home = str(self.tmp_path / "home")
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        own = {"HF_ENDPOINT": self.server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(CHECKOUT)}
        return {**kept, **quiet, **own, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", **more}

    def asked(self, method: str, path_contains: str) -> list[int]:
        """What requests were answered, in order (0: not at all)."""
        return [status for verb, path, status in self.server.requests if verb == method and path_contains in path]

    def checkout(self, revision: str = "main") -> Path:
        """The files of a revision in a new local folder."""
        root = Path(tempfile.mkdtemp(dir=self.tmp_path))
        for path, data in self.repo.files(revision).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        return root

    def card(self, revision: str = "main") -> dict[str, Any]:
        """The front matter, as the Hub's own library reads it."""
        found = metadata_load(self.checkout(revision) / "README.md")
        assert found is not None
        return DatasetCardData(**found).to_dict()

    def body(self, revision: str = "main") -> str:
        """The README.md below its front matter."""
        return self.repo.files(revision)["README.md"].decode().split("\n---\n", 1)[1]

    def files_as_if_of(self, repo_id: str) -> dict[str, bytes]:
        """The files of another repo, in which the card calls itself by the name of ours."""
        files = self.server.repos[repo_id].files()
        theirs, ours = f"name: {repo_id.split('/')[1]}\n", f"name: {REPO.split('/')[1]}\n"
        card = files["README.md"].replace(repo_id.encode(), REPO.encode()).replace(theirs.encode(), ours.encode())
        return {**files, "README.md": card}

    def config_names(self, revision: str = "main") -> list[str]:
        return [config["config_name"] for config in self.card(revision)["configs"]]

    def ids(self, config_name: str, revision: str = "main", split: str = "train") -> list[str]:
        """The ids of a config, as `datasets` finds them by the card."""
        cache = str(self.tmp_path / "loaded")
        folder = str(self.checkout(revision))
        found: list[str] = datasets.load_dataset(folder, config_name, split=split, cache_dir=cache)["id"][:]
        return found

    def shards(self, config_name: str, revision: str = "main") -> list[str]:
        """The names of the files below a config's folder."""
        return sorted(path for path in self.repo.resolve(revision).files if path.startswith(f"{config_name}/"))

    def is_whole(self) -> bool:
        """Every commit on every branch: all large files are there, and the card promises nothing that is not."""
        for commit in self.repo.commits:
            assert all(
                content.oid in self.repo.objects for content in commit.files.values() if isinstance(content, Lfs)
            )
            if "README.md" in commit.files:
                for name in self.config_names(commit.sha) if "configs" in self.card(commit.sha) else ():
                    datasets.load_dataset_builder(
                        str(self.checkout(commit.sha)), name, cache_dir=str(self.tmp_path / "loaded")
                    )
        return True

    def nothing_is_left(self) -> bool:
        """Whether the work folders of all pushes are gone."""
        folder = self.cache_dir / "llava_mixture_pushes"
        return not folder.exists() or not list(folder.iterdir())


@contextmanager
def running_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, and `huggingface_hub` in this process set to it."""
    with HubServer(token=TOKEN, read_token=READ_TOKEN) as server:
        hub = Hub(server, tmp_path)
        clock = SimpleNamespace(time=lambda: 0.0, sleep=hub.waits.append)
        monkeypatch.setattr(hub_client, "time", clock)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
        monkeypatch.setattr(huggingface_hub.file_download, "time", clock)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        try:
            yield hub
        finally:
            huggingface_hub.close_session()


def texts(num_rows: int, seed: str = "", num_characters: int = 4000) -> list[dict[str, Any]]:
    """LLaVA records of text that hardly gets smaller."""
    draw = random.Random(f"{num_rows}{seed}")
    answers = [draw.randbytes(num_characters // 2).hex() for _ in range(num_rows)]
    return [{"id": f"r{i}", "conversations": chat("Write.", answer)} for i, answer in enumerate(answers)]


def chat_entry(folder: Path, name: str = "chat", num_rows: int = 24, **more: Any) -> dict[str, Any]:
    """An entry of text, and its data file."""
    return {"name": name, "json_path": write_json(folder / f"{name}.json", texts(num_rows, name)), **more}


def image_entry(folder: Path, name: str = "pictures", num_rows: int = 6, shade: int = 0) -> dict[str, Any]:
    """An entry with a small image in every row, and its files."""
    records = []
    for i in range(num_rows):
        Image.new("RGB", (16 + i, 16), (i, shade, 255)).save(folder / f"{name}-{i}.png")
        turns = chat("<image>\nWhat is it?", f"Picture {i}.")
        records.append({"id": f"p{i}", "image": f"{name}-{i}.png", "conversations": turns})
    return {"name": name, "json_path": write_json(folder / f"{name}.json", records), "multi_image": False}


def parquet(ids: list[str]) -> bytes:
    """A Parquet file that somebody else made."""
    file = io.BytesIO()
    pq.write_table(pa.table({"id": ids}), file)
    return file.getvalue()


def front_matter(text: str, body: str = "# By hand\n\nWritten with care.\n") -> bytes:
    return f"---\n{text.strip()}\n---\n{body}".encode()
