"""What planning had to read files for, remembered beside the cache of `datasets`: counts, borders, types, chosen
positions.

Everything is keyed by path, size and mark (mtime or etag) of the file and by the question, so a changed file is asked
anew.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["PlanCache", "default_cache_dir"]

T = TypeVar("T")
FORMAT = "1"
"""Part of every key: another one, and what older versions remembered is not read."""


def default_cache_dir() -> str:
    """Where `datasets` caches, by its environment variables."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return os.path.expanduser(os.environ.get("HF_DATASETS_CACHE", os.path.join(home, "datasets")))


class PlanCache:
    """Answers by question, on disk. Without a writable directory it answers each question anew."""

    def __init__(self, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(cache_dir or default_cache_dir()) / "llava_mixture_plans"

    def remember(self, question: tuple[Any, ...], answer: Callable[[], T]) -> T:
        """The remembered answer to `question` (its `repr` is the key), or `answer()`, remembered."""
        text = repr((FORMAT, question))
        path = self.folder / f"{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}.pickle"
        try:
            asked, value = pickle.loads(path.read_bytes())
            if asked == text:
                return value
        except (OSError, EOFError, ValueError, TypeError, AttributeError, ImportError, pickle.UnpicklingError):
            pass  # never asked, or written by another version: ask again
        result = answer()
        self._write(path, pickle.dumps((text, result)))
        return result

    def _write(self, path: Path, data: bytes) -> None:
        temporary = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                temporary = file.name
                file.write(data)
            os.replace(temporary, path)  # a reader sees all of it or nothing
        except OSError:  # a full or read-only disk costs the memory, not the answer
            if temporary and os.path.exists(temporary):
                os.remove(temporary)
