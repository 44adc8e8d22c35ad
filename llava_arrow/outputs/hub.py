"""A mixture's configs as Parquet in a dataset repository of the Hugging Face Hub.

    parts ─► made one by one ─► sent ahead of the commit ─► freed here
                                                   │
                        ONE commit: card, all shards, deletions, on a known parent

Until the commit, nobody sees anything of a push; a commit holds the card and everything that the card promises. What
was sent is noted in a folder of the cache, so a killed push goes on with what is missing. (`upload_folder` makes
several commits of many files, the card first.)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from llava_arrow.config_data import ConfigData
from llava_arrow.errors import ConfigError, OutputError
from llava_arrow.mixture import Mixture
from llava_arrow.outputs.card import CardConfig, card_digest, card_text, front_matter_of
from llava_arrow.outputs.folder import config_folder, sum_config
from llava_arrow.outputs.front_matter import read_front_matter
from llava_arrow.outputs.hub_client import Conflict, HubRepo, RemoteFile, Unanswered, uploaded
from llava_arrow.outputs.hub_merge import (
    configs_of,
    free_folder,
    has_section,
    listed,
    merged_front_matter,
    merged_readme,
    replaced_files,
)
from llava_arrow.outputs.hub_parts import SentParts
from llava_arrow.outputs.origins import open_configs
from llava_arrow.outputs.processes import check_num_proc
from llava_arrow.outputs.target import STATE_DIR, Target
from llava_arrow.outputs.units import DEFAULT_SHARD_BYTES, check_shard_bytes, cuts_of, estimates_of, plan_units
from llava_arrow.plan_cache import PlanCache, default_cache_dir

__all__ = ["Push", "push_to_hub"]

FORMAT = 1
README = "README.md"
MAX_COMMITS = 5


@dataclass(frozen=True)
class Push:
    """What `push_to_hub` did, or would do. `files` and `deleted` are those of the commit, `num_sent` of this run."""

    url: str
    commit: str | None
    files: dict[str, int] = field(repr=False)
    deleted: list[str] = field(repr=False)
    num_samples: int = 0
    num_sent: int = 0
    is_dry_run: bool = False
    was_complete: bool = False


def push_to_hub(
    mixture: Any,
    repo_id: str,
    *,
    config_names: Sequence[str] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    num_proc: int | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    image_columns: str | None = None,
    commit_message: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    cache_dir: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Push:
    """Send configs to a dataset repository, as Parquet files with a card, in one commit.

    Configs that the repository has already stay; those of the same name are replaced whole.

    Args:
        mixture: a `Mixture`, a path or a name.
        repo_id: `user/name`; it is created where it does not exist.
        config_names: None is every entry.
        private: of a new repository; None is the default of its owner. True refuses one that is public.
        token: None is HF_TOKEN or the one of `hf auth login`.
        revision: a branch, created where it does not exist; None is `main`.
        create_pr: open a pull request.
        num_proc: processes that make shards.
        max_shard_bytes: a file is no larger (unless a single sample is). A few lie on the local disk at a time.
        image_columns: `list` makes every image column a list.
        force: make and send everything anew; say so when images have changed, which nothing else notices.
        dry_run: say what would be sent, and send nothing.
        cache_dir: what was sent is noted below it.
        progress: called with what is being worked on.

    Raises:
        ConfigError: a wrong argument or mixture. MixtureError: a bad row, with its place. OutputError: the Hub refuses
        or cannot be reached. A push that was stopped or killed goes on when it is started again.
    """
    _check_repo_id(repo_id)
    check_shard_bytes(max_shard_bytes)
    check_num_proc(num_proc)
    loaded = Mixture.load(mixture)
    cache = PlanCache(cache_dir)
    configs = open_configs(loaded, config_names, cache=cache, image_columns=image_columns)
    repo = HubRepo(repo_id, token=token, revision=revision, create_pr=create_pr)
    marks = {data.config_name: _mark(data, max_shard_bytes) for data in configs}
    plan = {
        "format": FORMAT,
        "kind": "push",
        "repo": f"{repo.api.endpoint}/datasets/{repo_id}",
        "configs": marks,
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
    folder = os.path.join(cache_dir or default_cache_dir(), "llava_mixture_pushes", digest)
    pusher = _Pusher(loaded, configs, repo, marks, commit_message)
    head = repo.head()
    if head is not None:
        repo.refuse_public(private)
    if head is not None and not force and not create_pr:
        there = pusher.complete_at(head)
        if there is not None:
            remove_unlocked(folder)
            return there
    if dry_run:
        return pusher.describe(repo.head(or_main=True), max_shard_bytes, cache)
    repo.create(private=private)
    known = pusher.look_before(repo.head())
    remove_abandoned(folder, plan)
    if force:
        remove_unlocked(folder)
    target = Target(folder)
    try:
        target.claim(plan, overwrite=False)
        parts = SentParts(configs, repo, target, marks, known=frozenset() if force else known)
        parts.make_and_send(max_shard_bytes, cache, num_proc, progress)
        done = pusher.commit(parts)
        shutil.rmtree(folder, ignore_errors=True)
        return done
    finally:
        target.close()


def _check_repo_id(repo_id: object) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    is_right = (
        isinstance(repo_id, str) and repo_id.count("/") == 1 and repo_id.isascii() and repo_id == repo_id.strip()
    )
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        is_right = False
    if not is_right:
        raise ConfigError(f"repo_id must be user/name, got {repo_id!r}")


def _mark(data: ConfigData, max_shard_bytes: int) -> str:
    """12 hex digits over all that a config's files depend on (images excepted); part of their names."""
    text = repr((FORMAT, data.fingerprint, dict(data.layout.kinds), max_shard_bytes, pa.__version__))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Pusher:
    """One push: makes parts, sends them, commits."""

    def __init__(
        self,
        mixture: Mixture,
        configs: Sequence[ConfigData],
        repo: HubRepo,
        marks: dict[str, str],
        message: str | None,
    ) -> None:
        self.mixture, self.datas, self.repo = mixture, configs, repo
        self.marks = marks
        self.names = [data.config_name for data in configs]
        self._folders = {name: config_folder(name) for name in self.names}
        self.message = message or f"Push {', '.join(self.names[:5])}{' …' if len(self.names) > 5 else ''}"

    def _own_files(self, config_name: str) -> re.Pattern[str]:
        """What pushes of any version call the files of a config."""
        folders = "|".join(map(re.escape, (config_folder(config_name), self._folders[config_name])))
        return re.compile(rf"(?:{folders})/train-\d{{5}}-of-\d{{5}}(-[0-9a-f]{{12}})?\.parquet")

    def _path(self, config_name: str, number: int, count: int) -> str:
        return f"{self._folders[config_name]}/train-{number:05d}-of-{count:05d}-{self.marks[config_name]}.parquet"

    def _pattern(self, config_name: str) -> str:
        return f"{self._folders[config_name]}/train-*-{self.marks[config_name]}.parquet"

    def _choose_folders(self, front_matter: Mapping[str, Any]) -> None:
        """A folder for each config into which no config of somebody else reaches."""
        for name in self.names:
            file_name = f"train-00000-of-00001-{self.marks[name]}.parquet"
            folder = config_folder(name)
            self._folders[name] = free_folder(front_matter, self.names, folder, file_name, place=self.repo.url)

    @cached_property
    def _card_digest(self) -> str:
        """What the card says beyond the samples."""
        return card_digest(self.mixture, [entry for data in self.datas for entry in data.entries])

    def look_before(self, head: str | None) -> frozenset[str]:
        """The SHA-256 of the large files there are; an OutputError where the commit would be refused in the end."""
        if head is None:
            return frozenset()
        files = self.repo.files(head)
        self._configs_at(files, head)
        return frozenset(file.sha256 for file in files.values() if file.sha256 is not None)

    def _configs_at(self, files: dict[str, RemoteFile], head: str) -> list[dict[str, Any]]:
        """The configs that the repository has; an OutputError where a push cannot keep its data."""
        front_matter = read_front_matter(self.repo.read_text(README, head)) if README in files else {}
        self._choose_folders(front_matter)
        return configs_of(front_matter, files, self.repo.url)

    def complete_at(self, head: str) -> Push | None:
        """The push that made `head` what this one would make it; None where it lacks something."""
        files = self.repo.files(head)
        if README not in files:
            return None
        readme = self.repo.read_text(README, head)
        if not has_section(readme, self.names, self._card_digest):
            return None
        front_matter = read_front_matter(readme)
        self._choose_folders(front_matter)
        configs = {c.get("config_name"): c for c in listed(front_matter.get("configs")) if isinstance(c, dict)}
        infos = {i.get("config_name"): i for i in listed(front_matter.get("dataset_info")) if isinstance(i, dict)}
        found: dict[str, int] = {}
        num_samples = 0
        for name in self.names:
            wanted = [{"split": "train", "path": self._pattern(name)}]
            folder, mark = re.escape(self._folders[name]), self.marks[name]
            own = re.compile(rf"{folder}/train-\d{{5}}-of-(\d{{5}})-{mark}\.parquet")
            matches = {path: match for path in files if (match := own.fullmatch(path))}
            counts = {int(match[1]) for match in matches.values()}
            if configs.get(name, {}).get("data_files") != wanted or counts != {len(matches)}:
                return None
            found.update({path: files[path].num_bytes for path in matches})
            splits = infos.get(name, {}).get("splits") or [{}]
            num_samples += int(splits[0].get("num_examples", 0))
        return Push(self.repo.url, head, found, [], num_samples, 0, was_complete=True)

    def describe(self, head: str | None, max_shard_bytes: int, cache: PlanCache) -> Push:
        """What a push would send, by estimates: the parts are not made."""
        files: dict[str, RemoteFile] = {} if head is None else self.repo.files(head)
        old = [] if head is None else self._configs_at(files, head)
        planned: dict[str, int] = {}
        num_samples = 0
        for data in self.datas:
            estimates = estimates_of(data, cache)
            count = len(plan_units(data, cuts_of(data, estimates, max_shard_bytes), cache).units)
            share = sum(int(estimate.num_bytes) for estimate in estimates) // count
            planned.update({self._path(data.config_name, number, count): share for number in range(count)})
            num_samples += sum(estimate.num_samples for estimate in estimates)
        own = {name: self._own_files(name) for name in self.names}
        deleted = [path for path in replaced_files(old, self.names, own, files) if path not in planned]
        return Push(self.repo.url, head, planned, deleted, num_samples, 0, is_dry_run=True)

    def commit(self, parts: SentParts) -> Push:
        """One commit; again on what others have committed in the meantime."""
        for _ in range(MAX_COMMITS):
            head = self.repo.head()
            if head is None:
                raise OutputError(f"{self.repo.url} is gone: it was deleted during the push", code="repo_gone")
            additions, deleted, sizes, num_samples = self._operations(head, parts)
            try:
                info = self.repo.commit(
                    additions, deleted, parent=head, message=self.message, description="Made by llava-mixture."
                )
            except Conflict:
                continue
            except Unanswered as error:
                if self.repo.create_pr:
                    raise OutputError(
                        f"{self.repo.url}: no answer whether the pull request was made: look there, and run the same "
                        f"command again if it was not: {error}",
                        code="hub_unanswered",
                    ) from error
                newest = self.repo.head()
                there = None if newest in (None, head) else self.complete_at(str(newest))
                if there is None:
                    continue
                return Push(self.repo.url, there.commit, sizes, deleted, num_samples, parts.num_sent)
            except OutputError as error:
                if error.code in ("hub_400", "hub_422") and "lfs" in error.message.lower():
                    shutil.rmtree(parts.target.root, ignore_errors=True)
                    raise OutputError(
                        f"{error.message}: the Hub has dropped what was sent earlier: run the same command again",
                        code=error.code,
                    ) from error
                raise
            url = getattr(info, "pr_url", None) or self.repo.url
            return Push(str(url), str(info.oid), sizes, deleted, num_samples, parts.num_sent)
        raise OutputError(
            f"{self.repo.url}: the commit did not succeed in {MAX_COMMITS} attempts (others commit there, or the "
            f"Hub is unwell): run the same command again, what was sent is kept",
            code="hub_conflict",
        )

    def _operations(self, head: str, parts: SentParts) -> tuple[list[Any], list[str], dict[str, int], int]:
        from huggingface_hub import CommitOperationAdd

        files = self.repo.files(head)
        old_text = self.repo.read_text(README, head) if README in files else ""
        old = self._configs_at(files, head)
        additions: list[Any] = []
        sizes: dict[str, int] = {}
        cards: list[CardConfig] = []
        for config in parts.configs:
            name = config.data.config_name
            records = parts.records_of(config)
            found = parts.files_of(config)
            for position, (file, digest, local) in enumerate(found):
                path = self._path(name, position, len(found))
                sizes[path] = file.num_bytes
                known = files.get(path)
                if local is not None:
                    additions.append(CommitOperationAdd(path_in_repo=path, path_or_fileobj=local))
                elif known is None or known.sha256 != digest:
                    additions.append(uploaded(path, digest, file.num_bytes))
            pattern = self._pattern(name)
            cards.append(CardConfig.of(config.data, records, sum_config(config, records), pattern=pattern))
        readme = self._readme(old_text, cards, files)
        own_names = {name: self._own_files(name) for name in self.names}
        gone = replaced_files(old, self.names, own_names, files)
        additions.insert(0, CommitOperationAdd(path_in_repo=README, path_or_fileobj=readme.encode("utf-8")))
        num_samples = sum(card.num_samples for card in cards)
        return additions, [path for path in gone if path not in sizes], sizes, num_samples

    def _readme(self, old_text: str, cards: Sequence[CardConfig], files: dict[str, RemoteFile]) -> str:
        ours = front_matter_of(cards, title=self.repo.repo_id.rpartition("/")[2])
        merged = merged_front_matter(read_front_matter(old_text), ours, files, place=self.repo.url)
        text = card_text(self.mixture, cards, location=self.repo.repo_id)
        return merged_readme(old_text, text, config_names=self.names, card=self._card_digest, front_matter=merged)


def remove_unlocked(folder: str) -> None:
    """Remove what an ended push has left; one that is under way keeps it."""
    try:
        descriptor = os.open(os.path.join(folder, STATE_DIR, "lock"), os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def remove_abandoned(folder: str, plan: dict[str, Any]) -> None:
    """Remove what pushes of other data to the same repository have left."""
    parent = os.path.dirname(folder)
    for name in os.listdir(parent) if os.path.isdir(parent) else ():
        other = os.path.join(parent, name)
        found = Target(other).read_json(f"{STATE_DIR}/plan.json") if other != folder else None
        if isinstance(found, dict) and found.get("repo") == plan["repo"]:
            configs = found.get("configs")
            if isinstance(configs, dict) and configs.keys() == plan["configs"].keys():
                remove_unlocked(other)
