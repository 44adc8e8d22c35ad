"""The folder that an export fills: claimed at the start, complete when its manifest is there.

    OUT_DIR/.llava-mixture/plan.json        what is being written; there from the first moment
    OUT_DIR/.llava-mixture/files.txt        every file outside of .llava-mixture/, named before it is written
    OUT_DIR/.llava-mixture/manifest.json    written last: its existence means that the export is complete

A run that finds its own plan goes on where the last one was killed. What a manifest or `files.txt` lists may be
replaced when asked for; nothing else is ever touched.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import posixpath
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from llava_arrow.errors import OutputError
from llava_arrow.ledger import Tally, write_ledger
from llava_arrow.outputs.names import EXTENSIONS
from llava_arrow.paths import is_url
from llava_arrow.sources.files import filesystem

__all__ = ["FILES", "LEDGER", "README", "REPORT", "STATE_DIR", "Target", "writing"]

README, REPORT, LEDGER = "README.md", "report.json", "ledger.jsonl"
STATE_DIR = ".llava-mixture"
PLAN, FILES, MANIFEST = f"{STATE_DIR}/plan.json", f"{STATE_DIR}/files.txt", f"{STATE_DIR}/manifest.json"
State = Literal["new", "unfinished", "complete"]
LOCK_WAIT_S = 3.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Errors of the system while `path` is written, as an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = ""
        if error.errno in _NO_SPACE or "No space left" in str(error):
            advice = ": free some space and run the same command again, what is finished is kept"
        raise OutputError(f"{path} cannot be written: {reason}{advice}", code="cannot_write") from error


class Target:
    """A folder to write into, local or any fsspec URL. Paths are relative to it, with `/`."""

    def __init__(self, out_dir: str | os.PathLike[str]) -> None:
        path = os.fspath(out_dir)
        self.is_local = not is_url(path) or path.startswith("file://")
        self.root = os.path.abspath(path.removeprefix("file://")) if self.is_local else path.rstrip("/")
        self._inner = self.root if self.is_local else filesystem(self.root)[1]
        self._lock_file: int | None = None

    @property
    def _fs(self) -> Any:
        """The filesystem of a URL, anew in each process, as connections do not survive a fork; None for a folder."""
        return None if self.is_local else filesystem(self.root)[0]

    def path(self, name: str) -> str:
        """The path of `name` on its filesystem."""
        return posixpath.join(self._inner, name)

    def claim(self, plan: Mapping[str, Any], *, overwrite: bool, sources: Iterable[str] = ()) -> State:
        """Make the folder ours for `plan`, plain JSON that is equal exactly when the output would be.

        Args:
            overwrite: replace what another plan has written.
            sources: files and folders that the output is made of.

        Returns:
            `new`; `unfinished`, when an earlier run of the same plan was killed; `complete`, when there is nothing to
            do.

        Raises:
            OutputError: it holds something else, or cannot be written.
        """
        inside = next((path for path in sources if self._holds(path)), None)
        if inside is not None:
            raise OutputError(
                f"{self.root} holds what is to be exported ({inside}): choose another folder", code="target_is_source"
            )
        with writing(self.root):
            self._lock()
            found = self.read_json(PLAN)
            if not isinstance(found, dict) or not {"format", "kind"} <= found.keys():
                found = None
            is_complete = self.exists(MANIFEST)
            if found == plan and is_complete and not self._is_whole():
                self.remove(MANIFEST)  # somebody has removed what it lists: make that again
                is_complete = False
            if found == plan and not (overwrite and is_complete):
                if is_complete:  # a run that was killed in its last moment has not cleaned up
                    self._clean()
                return "complete" if is_complete else "unfinished"
            if found is None:
                self._must_be_empty()
            elif not overwrite:
                state = "a finished export" if is_complete else "an unfinished export"
                raise OutputError(
                    f"{self.root} holds {state} of something else (another mixture, other data or options): choose "
                    f"another folder, or replace it with overwrite=True (--overwrite)",
                    code="target_occupied",
                )
            else:
                self._clear()
            self.write_text(PLAN, json.dumps(plan, indent=2, ensure_ascii=False))
            self.remove(FILES)
        return "new"

    def _is_whole(self) -> bool:
        """Whether the files whose sizes the manifest lists are as it says."""
        sizes = (self.manifest() or {}).get("sizes", {})
        return all(self.size(name) == size for name, size in sizes.items())

    def _holds(self, path: str) -> bool:
        if not self.is_local:
            return path == self.root or path.startswith(self.root + "/")
        local = path.removeprefix("file://")
        real, root = os.path.realpath(local), os.path.realpath(self.root)
        return not is_url(local) and (real == root or real.startswith(root + "/"))

    def _must_be_empty(self) -> None:
        # A run that was killed before it had a plan leaves something there.
        found = [name for name in self.all_files() if not name.startswith(f"{STATE_DIR}/")]
        if found:
            raise OutputError(
                f"{self.root} is not empty and holds no export of ours (there is {found[0]!r}): choose another folder",
                code="target_occupied",
            )

    def _clear(self) -> None:
        """Remove what an earlier export wrote; an OutputError, before anything is removed, where there is more."""
        listed = set(self.read_lines(FILES))

        def is_listed(name: str) -> bool:  # `.?` stands for an extension that was not known yet
            stem, extension = os.path.splitext(name)
            is_image = extension in EXTENSIONS.values() and f"{stem}.?" in listed
            return name.startswith(f"{STATE_DIR}/") or name in listed or is_image

        others = [name for name in self.all_files() if not is_listed(name)]
        if others:
            raise OutputError(
                f"{self.root} also holds files that no export of ours wrote ({len(others)}, the first: "
                f"{others[0]!r}): move them away, or choose another folder",
                code="target_occupied",
            )
        self.remove(MANIFEST)  # first of all: from now on nothing here looks complete
        self._clean()
        kept = (PLAN, FILES, f"{STATE_DIR}/lock")  # by which a killed run would go on with this
        for name in sorted(self.all_files(), key=lambda name: name.count("/")):  # what makes it look whole comes first
            if name not in kept:
                self.remove(name)
        for folder, _, _ in os.walk(self.root, topdown=False) if self.is_local else ():
            if not os.listdir(folder):
                os.rmdir(folder)

    def log_files(self, names: Iterable[str]) -> None:
        """Note the names of files that are about to be written."""
        text = "".join(f"{name}\n" for name in names)
        if not text:
            return
        with writing(self.path(FILES)):
            if self.is_local:
                with open(self.path(FILES), "a", encoding="utf-8") as file:
                    file.write(text)
            else:
                self.write_text(FILES, (self.read_text(FILES) or "") + text)

    def _lock(self) -> None:
        """Two runs into one local folder would get in each other's way; the lock goes with the process."""
        if not self.is_local or self._lock_file is not None:
            return
        if os.path.lexists(self.root) and not os.path.isdir(self.root):
            raise OutputError(f"{self.root} is a file: an export needs a folder", code="target_occupied")
        if os.path.islink(self.path(STATE_DIR)):
            raise OutputError(f"{self.path(STATE_DIR)} is a link: choose another folder", code="target_occupied")
        is_new = not self.exists(STATE_DIR)
        if is_new:
            self._must_be_empty()
        os.makedirs(self.path(STATE_DIR), exist_ok=True)
        descriptor = os.open(self.path(f"{STATE_DIR}/lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        # Processes of a run that was killed hold the lock, and may write, for a moment more.
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(descriptor)
                raise OutputError(
                    f"another run is writing into {self.root}: wait for it to end", code="target_locked"
                ) from error
        self._lock_file = descriptor

    def close(self) -> None:
        """Give the folder free for other runs."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Mark the export as complete."""
        self.write_text(MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False))
        self._clean()

    def _clean(self) -> None:
        """Remove what only an unfinished export needs."""
        for name in ("unfinished", "parts", "moves.json"):
            self.remove_state(name)

    def manifest(self) -> dict[str, Any] | None:
        """What `finish` was given, None before that."""
        found = self.read_json(MANIFEST)
        return found if isinstance(found, dict) else None

    # What follows is the same for a local folder and for a URL.

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder `name`."""
        return os.path.lexists(self.path(name)) if self._fs is None else bool(self._fs.exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        try:
            if self._fs is None:
                return os.stat(self.path(name)).st_size
            return int(self._fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def all_files(self) -> list[str]:
        """All files, sorted; links are files."""
        if self._fs is not None:
            prefix = self._inner.rstrip("/") + "/"
            names = self._fs.find(self._inner) if self._fs.exists(self._inner) else []
            return sorted(name.removeprefix(prefix) for name in names)
        found = []
        for folder, folders, names in os.walk(self.root):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            found += [os.path.relpath(os.path.join(folder, name), self.root) for name in [*names, *links]]
        return sorted(found)

    @contextmanager
    def create(self, name: str) -> Iterator[Any]:
        """A binary file-like object to write `name` with; the file is there, whole, when the block is left."""
        path = self.path(name)
        with writing(path):
            if self._fs is not None:
                fs = self._fs
                file = fs.open(path, "wb")
                try:
                    yield file
                except BaseException:
                    discard = getattr(file, "discard", None)  # object stores show an object when it is closed
                    discard() if discard is not None else file.close()
                    if fs.exists(path):
                        fs.rm_file(path)
                    raise
                file.close()
                return
            temporary = self.path(f"{STATE_DIR}/unfinished/{os.getpid()}-{os.path.basename(name)}")
            for needed in (path, temporary):
                os.makedirs(os.path.dirname(needed), exist_ok=True)
            try:
                with pa.OSFile(temporary, "wb") as file:
                    yield file
                os.replace(temporary, path)
            except BaseException:
                self.remove(os.path.relpath(temporary, self.root))
                raise

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, all of it or nothing."""
        data = text.encode("utf-8")
        with self.create(name) as file:
            file.write(data)

    def write_account(self, report: Mapping[str, Any], tallies: Iterable[Mapping[str, Tally]]) -> None:
        """`report.json`, and the ledger lines of `tallies` (config name → its rows) as `ledger.jsonl`."""
        with self.create(LEDGER) as file:
            for of_configs in tallies:
                write_ledger(of_configs, _TextFile(file))
        self.write_text(REPORT, json.dumps(report, indent=2, ensure_ascii=False))

    def read_text(self, name: str) -> str | None:
        """A small file's text, None where there is none."""
        try:
            if self._fs is None:
                with open(self.path(name), encoding="utf-8") as file:
                    return file.read()
            return str(self._fs.cat_file(self.path(name)).decode("utf-8"))
        except FileNotFoundError:
            return None

    def read_lines(self, name: str) -> Iterable[str]:
        """The lines of a text file, none where there is no file."""
        return (self.read_text(name) or "").split("\n")

    def read_json(self, name: str) -> Any:
        """A small JSON file, None where there is none or it is broken."""
        try:
            text = self.read_text(name)
            return None if text is None else json.loads(text)
        except ValueError:
            return None

    def move(self, old: str, new: str) -> None:
        """Give a file its final name."""
        with writing(self.path(new)):
            if self._fs is None:
                os.makedirs(os.path.dirname(self.path(new)), exist_ok=True)
                os.replace(self.path(old), self.path(new))
            else:
                self._fs.mv(self.path(old), self.path(new))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            os.remove(self.path(name)) if self._fs is None else self._fs.rm_file(self.path(name))
        except FileNotFoundError:
            pass

    def remove_state(self, name: str) -> None:
        """Remove a file or folder of ours below `.llava-mixture/`."""
        path = self.path(f"{STATE_DIR}/{name}")
        if self._fs is None:
            shutil.rmtree(path) if os.path.isdir(path) else self.remove(f"{STATE_DIR}/{name}")
        elif self._fs.exists(path):
            self._fs.rm(path, recursive=True)


class _TextFile:
    """Text for a file of bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write `text` as UTF-8."""
        self._file.write(text.encode("utf-8"))
        return len(text)
