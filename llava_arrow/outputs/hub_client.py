"""One dataset repository of the Hugging Face Hub: what a push asks of it, with bounded retries, and messages.

`huggingface_hub` retries some calls in some of its versions; none of them retries a commit.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from llava_arrow.errors import OutputError
from llava_arrow.retries import backoff_s, comes_from, retried

__all__ = ["Conflict", "HubRepo", "RemoteFile", "Unanswered", "uploaded"]

T = TypeVar("T")
NUM_ATTEMPTS = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
CLIENTS = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write permission"


class Conflict(Exception):  # noqa: N818 it is no error: somebody else was faster
    """Somebody has committed since the parent was looked up."""


class Unanswered(Exception):  # noqa: N818
    """The commit was sent, and nobody knows whether it was made."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repository: its path, bytes, and SHA-256 where it is a large file."""

    path: str
    num_bytes: int
    sha256: str | None


class HubRepo:
    """A dataset repository at one revision. Nothing here prints or stores the token."""

    def __init__(self, repo_id: str, *, token: str | None, revision: str | None, create_pr: bool) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi(token=token)
        self.repo_id, self.revision, self.create_pr = repo_id, revision, create_pr
        self._token = token
        self._files: dict[str, dict[str, RemoteFile]] = {}

    @property
    def url(self) -> str:
        """Where people look at it."""
        return f"{self.api.endpoint}/datasets/{self.repo_id}"

    def create(self, *, private: bool | None) -> None:
        """Make the repository and the branch, where they are not there yet."""
        more: dict[str, Any] = {} if private is None else {"private": private}

        def make() -> None:
            try:
                self.api.create_repo(self.repo_id, repo_type="dataset", exist_ok=True, **more)
            except Exception as error:
                if status_of(error) == 404:  # huggingface_hub 0.22 looks for a repository that it may not make
                    raise OutputError(self._refused("create the repository"), code="hub_403") from error
                raise

        self._call(make, "create the repository")
        self.refuse_public(private)
        if self.revision is not None and not self.revision.startswith("refs/"):
            branch = self.revision
            self._call(
                lambda: self.api.create_branch(self.repo_id, branch=branch, repo_type="dataset", exist_ok=True),
                f"create the branch {branch}",
            )

    def refuse_public(self, private: bool | None) -> None:
        """An OutputError where the push is to be private, and the repository is not."""
        if private:
            info = self._call(lambda: self.api.repo_info(self.repo_id, repo_type="dataset"), "look at the repository")
            if not getattr(info, "private", True):
                raise OutputError(
                    f"{self.repo_id} is public, and the push is to be private: make it private in its settings first, "
                    f"or choose another name",
                    code="repo_public",
                )

    def head(self, *, or_main: bool = False) -> str | None:
        """The newest commit of the revision; None where there is no such repository or revision. With `or_main`, that
        of `main` where the branch is still to be made.
        """
        from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

        def look(revision: str | None) -> Any:
            try:
                return self.api.repo_info(self.repo_id, repo_type="dataset", revision=revision).sha
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None

        found = self._call(lambda: look(self.revision), "look at the repository")
        if found is None and or_main and self.revision is not None:
            found = self._call(lambda: look(None), "look at the repository")
        return None if found is None else str(found)

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """Path → file, of a commit. Remembered: a commit does not change."""

        def look() -> dict[str, RemoteFile]:
            found = {}
            for item in self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit, repo_type="dataset"):
                if hasattr(item, "size"):
                    sha256 = None if item.lfs is None else str(item.lfs.sha256)
                    found[item.path] = RemoteFile(item.path, int(item.size), sha256)
            return found

        if commit not in self._files:
            self._files[commit] = self._call(look, "list the files of the repository")
        return self._files[commit]

    def read_text(self, path: str, commit: str) -> str:
        """A small text file of a commit."""

        def read() -> str:
            local = self.api.hf_hub_download(self.repo_id, path, repo_type="dataset", revision=commit)
            with open(local, encoding="utf-8") as file:
                try:
                    return file.read()
                except UnicodeDecodeError as error:
                    raise OutputError(
                        f"{self.url}: its {path} is no UTF-8 text: {error}", code="repo_occupied"
                    ) from None

        return self._call(read, f"read {path}")

    def upload(self, local_path: str, path_in_repo: str) -> bool:
        """Send the content of a file ahead of the commit; False where the repository takes it in the commit only."""
        from huggingface_hub import CommitOperationAdd

        def send() -> bool:
            operation = CommitOperationAdd(path_in_repo=path_in_repo, path_or_fileobj=local_path)
            self.api.preupload_lfs_files(
                self.repo_id,
                [operation],
                repo_type="dataset",
                revision=self.revision,
                create_pr=self.create_pr,
                free_memory=False,
            )
            if getattr(operation, "_should_ignore", False):
                raise OutputError(
                    f"{self.url}: its .gitignore leaves out {path_in_repo!r}: take that line out of it first",
                    code="repo_ignores",
                )
            return bool(operation._upload_mode == "lfs")

        return self._call(send, f"send {path_in_repo}")

    def missing(self, objects: Sequence[tuple[str, int]]) -> set[str]:
        """Those of (SHA-256, bytes) that the Hub does not hold (any more)."""
        from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

        found: set[str] = set()
        for start in range(0, len(objects), 200):
            infos = [
                UploadInfo(sha256=bytes.fromhex(digest), size=size, sample=b"")
                for digest, size in objects[start : start + 200]
            ]
            answer = self._call(
                lambda infos=infos: post_lfs_batch_info(  # type: ignore[misc]
                    upload_infos=infos,
                    token=self._token,
                    repo_type="dataset",
                    repo_id=self.repo_id,
                    endpoint=self.api.endpoint,
                    headers=self.api._build_hf_headers(),
                ),
                "ask which parts it has",
            )
            found |= {str(item["oid"]) for item in answer[0] if "upload" in (item.get("actions") or {})}
        return found

    def commit(
        self, additions: Sequence[Any], deletions: Sequence[str], *, parent: str, message: str, description: str
    ) -> Any:
        """One commit; tried once.

        Raises:
            Conflict: the parent is not the newest commit any more. Unanswered: it may have been made or not.
        """
        from huggingface_hub import CommitOperationDelete

        operations = [*additions, *(CommitOperationDelete(path_in_repo=path) for path in deletions)]
        try:
            return self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                commit_description=description,
                repo_type="dataset",
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=parent,
            )
        except Exception as error:
            status = status_of(error)
            if status in (409, 412):
                raise Conflict from error
            if is_temporary(error):
                wait(0, error)
                url = url_of(error)
                if url is not None and "/commit/" not in url:  # it was not asked for the commit yet
                    raise Conflict from error
                raise Unanswered(self._without_token(str(error))) from error
            self._give_up(error, "commit")

    def _call(self, call: Callable[[], T], what: str) -> T:
        try:
            return retried(
                call,
                num_attempts=NUM_ATTEMPTS,
                is_temporary=lambda error: not isinstance(error, OutputError) and is_temporary(error),
                wait=wait,
            )
        except OutputError:
            raise
        except Exception as error:
            self._give_up(error, what)

    def _give_up(self, error: Exception, what: str) -> NoReturn:
        explained = self._explained(error, what)
        if explained is error:
            raise error
        raise explained from error

    def _explained(self, error: Exception, what: str) -> Exception:
        """What to tell the user; an error that is not the Hub's stays as it is."""
        status = status_of(error)
        place = f"{self.url}: cannot {what}"
        if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
            return OutputError(f"{place}: the Hub does not know who you are (401): {LOGIN}", code="hub_401")
        if status == 403:
            return OutputError(self._refused(what), code="hub_403")
        if status is not None:
            text = self._without_token(str(error))
            return OutputError(f"{place}: the Hub answered {status}: {text}", code=f"hub_{status}")
        if is_connection_error(error):
            text = self._without_token(str(_innermost(error)))
            return OutputError(
                f"{place} after {NUM_ATTEMPTS} attempts: {text}: run the same command again, what was sent is kept",
                code="hub_unreachable",
            )
        return error

    def _refused(self, what: str) -> str:
        return (
            f"{self.url}: cannot {what}: you may not write there (403): ask its owner for write permission, or {LOGIN}"
        )

    def _without_token(self, text: str) -> str:
        text = " ".join(text.split())[:500]
        for secret in (self._token, os.environ.get("HF_TOKEN")):
            text = text.replace(secret, "…") if secret else text
        return re.sub(r"hf_[A-Za-z0-9]{20,}", "…", text)


def uploaded(path_in_repo: str, sha256: str, num_bytes: int) -> Any:
    """The operation that adds a file whose content the Hub holds already."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    operation = CommitOperationAdd(path_in_repo=path_in_repo, path_or_fileobj=b"")
    operation.upload_info = UploadInfo(sha256=bytes.fromhex(sha256), size=num_bytes, sample=b"")
    operation._upload_mode, operation._is_uploaded, operation._should_ignore = "lfs", True, False
    return operation


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def _innermost(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, None where there was no answer."""
    for link in _chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def url_of(error: BaseException) -> str | None:
    """The URL that was asked, where the error says so."""
    for link in _chain(error):
        for holder in (getattr(link, "response", None), link):
            try:
                url = getattr(getattr(holder, "request", None), "url", None)
            except RuntimeError:  # httpx, where the request was not noted
                continue
            if url is not None:
                return str(url)
    return None


def is_temporary(error: BaseException) -> bool:
    """Whether it is worth another attempt."""
    if any(type(link).__name__ == "OfflineModeIsEnabled" for link in _chain(error)):
        return False
    status = status_of(error)
    return status in (408, 429) or (status or 0) >= 500 or (status is None and is_connection_error(error))


def is_connection_error(error: BaseException) -> bool:
    """Whether the connection failed, whichever HTTP client says so."""
    for link in _chain(error):
        if comes_from(link, CLIENTS) or isinstance(link, (ConnectionError, TimeoutError)):
            return True
    return False


def wait(attempt: int, error: BaseException) -> None:
    """Longer each time, or as long as the Hub asks for."""
    seconds = backoff_s(attempt, FIRST_WAIT_S)
    for link in _chain(error):
        headers = getattr(getattr(link, "response", None), "headers", None) or {}
        asked = headers.get("Retry-After")
        if asked is not None and str(asked).isdigit():
            seconds = min(float(asked), LONGEST_WAIT_S)
            break
    time.sleep(seconds)
