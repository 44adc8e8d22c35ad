"""`push_to_hub` where something fails: the network, the Hub, permissions, the disk, the process itself."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_arrow import OutputError
from tests.conftest import MakeMixture
from tests.hub_pushes import (
    CLIENTS_OWN_WARNING,
    READ_TOKEN,
    REPO,
    SMALL,
    TOKEN,
    Hub,
    chat_entry,
    front_matter,
    parquet,
    running_hub,
)
from tests.hub_server import Fault

pytestmark = pytest.mark.filterwarnings(CLIENTS_OWN_WARNING)
ALL = [f"r{i}" for i in range(24)]
STEPS = {
    "look": ("GET", f"/api/datasets/{REPO}"),
    "create": ("POST", "/api/repos/create"),
    "branch": ("POST", "/branch/"),
    "mode": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "send": ("PUT", "/lfs-objects/"),
    "verify": ("POST", "/objects/verify"),
    "tree": ("GET", "/tree/"),
    "head of the card": ("HEAD", "/resolve/"),
    "card": ("GET", "/resolve/"),
    "yaml": ("POST", "/validate-yaml"),
    "commit": ("POST", "/commit/"),
}
PASSING: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "429": {"status": 429},
    "dropped": {"drop_after_bytes": 0},
    "dropped in the middle": {"drop_after_bytes": 3000},
    "lost answer": {"drop_after_bytes": 0, "after": True},
    "cut answer": {"drop_after_bytes": 3, "after": True},
    "done, but 500": {"status": 500, "after": True},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path, monkeypatch) as hub:
        yield hub


def uploads_are_unique(hub: Hub) -> bool:
    digests = [digest for digest, _ in hub.server.uploads]
    return len(digests) == len(set(digests))


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_passed_over_at_every_step(
    fault: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    faults = {step: Fault(method, path, **PASSING[fault]) for step, (method, path) in STEPS.items()}
    hub.server.faults += faults.values()
    hub.push(make_mixture(chat_entry(folder)), revision="next", max_shard_bytes=SMALL)
    assert [step for step, fault in faults.items() if fault.times] == []
    assert hub.messages == ["initial commit", "by hand", "Push chat"]
    assert hub.ids("chat", revision="next") == ALL
    assert hub.body("next").startswith("# By hand\n")
    assert len({digest for digest, _ in hub.server.uploads}) == 5
    assert len(hub.server.uploads) <= 6  # the answer to one of them was lost
    assert hub.nothing_is_left()


@pytest.mark.parametrize("step", STEPS)
def test_a_request_that_was_too_slow_is_made_again(
    step: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    hub.server.faults.append(Fault(*STEPS[step], status=408))
    hub.push(make_mixture(chat_entry(folder, num_rows=3)), revision="next")
    assert hub.server.faults[0].times == 0
    assert hub.messages == ["initial commit", "by hand", "Push chat"]


@pytest.mark.parametrize("step", ["look", "mode", "batch", "send", "tree", "commit"])
def test_the_wait_is_as_long_as_the_hub_asks_for(step: str, hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    method, path = STEPS[step]
    hub.server.faults.append(Fault(method, path, times=1, status=429, headers={"Retry-After": "17"}))
    hub.push(make_mixture(chat_entry(folder, num_rows=3)), revision="main")
    assert sum(hub.waits) in (17, 18)  # huggingface_hub adds a second of its own


@pytest.mark.parametrize("step", ["mode", "batch", "send", "commit"])
def test_a_hub_that_stays_unwell_is_given_up(step: str, hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    method, path = STEPS[step]
    hub.server.faults.append(Fault(method, path, times=1000, status=503))
    with pytest.raises(OutputError) as error:
        hub.push(mixture, max_shard_bytes=SMALL)
    assert error.value.message.startswith(f"{hub.server.url}/datasets/{REPO}")
    assert len(error.value.message) < 700
    assert sum(hub.waits) < 600
    assert hub.messages == ["initial commit"]
    hub.server.faults.clear()
    hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.ids("chat") == ALL
    assert uploads_are_unique(hub)


def test_a_hub_that_cannot_be_reached(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.server.close()
    with pytest.raises(OutputError) as error:
        hub.push(mixture)
    place = f"{hub.server.url}/datasets/{REPO}: cannot look at the repository after 5 attempts: "
    assert error.value.message.startswith(place)
    assert error.value.message.endswith(": run the same command again, what was sent is kept")


def test_offline_mode_is_said_at_once(
    hub: Hub, folder: Path, make_mixture: MakeMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE"):
        hub.push(make_mixture(chat_entry(folder)))
    assert hub.waits == []


@pytest.mark.parametrize("step", ["create", "mode", "send", "commit"])
@pytest.mark.parametrize(("status", "says"), [
    (401, "the Hub does not know who you are (401): log in with `hf auth login`, or set HF_TOKEN to a token with write permission"),
    (403, "you may not write there (403): ask its owner for write permission, or log in with `hf auth login`, or set HF_TOKEN to a token with write permission"),
])  # fmt: skip
def test_permissions_that_end_in_the_middle(
    status: int, says: str, step: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))
    method, path = STEPS[step]
    skip = {"create": 0, "commit": 0}.get(step, 3)
    fault = Fault(method, path, status=status, skip=skip, times=99, message=f"no {TOKEN} here")
    hub.server.faults.append(fault)
    with pytest.raises(OutputError) as error:
        hub.push(mixture, max_shard_bytes=SMALL)
    assert error.value.code == f"hub_{status}"
    assert error.value.message.startswith(f"{hub.server.url}/datasets/{REPO}: cannot ")
    assert error.value.message.endswith(f": {says}")
    assert hub.waits == []
    hub.server.faults.clear()
    sent = len(hub.server.uploads)
    hub.push(mixture, max_shard_bytes=SMALL)
    assert (len(hub.server.uploads), uploads_are_unique(hub)) == (5, True)
    assert sent == {"create": 0, "commit": 5}.get(step, sent)
    assert hub.messages == ["initial commit", "Push chat"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_token_without_write_permission(is_new: bool, hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    if not is_new:
        hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    with pytest.raises(OutputError) as error:
        hub.push(make_mixture(chat_entry(folder)), token=READ_TOKEN)
    assert error.value.code == "hub_403"
    what = "create the repository" if is_new else "send chat/"
    assert error.value.message.startswith(f"{hub.server.url}/datasets/{REPO}: cannot {what}")
    assert error.value.message.endswith(
        ": you may not write there (403): ask its owner for write permission, or log in with `hf auth login`, or set "
        "HF_TOKEN to a token with write permission"
    )
    assert hub.server.uploads == []


@pytest.mark.parametrize("token", [None, "hf_of_nobody_at_all_0123456789"])
def test_no_token_or_a_wrong_one(
    token: str | None, hub: Hub, folder: Path, make_mixture: MakeMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(hub.tmp_path / "no token"))
    with pytest.raises(OutputError) as error:
        hub.push(make_mixture(chat_entry(folder)), token=token)
    what = "create the repository" if token is None else "look at the repository"
    assert error.value.message == (
        f"{hub.server.url}/datasets/{REPO}: cannot {what}: the Hub does not know who you are (401): log in with "
        "`hf auth login`, or set HF_TOKEN to a token with write permission"
    )
    assert hub.server.repos == {}


def test_the_token_of_the_environment_is_used(
    hub: Hub, folder: Path, make_mixture: MakeMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = make_mixture(chat_entry(folder))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.push(mixture, token=None, private=True)
    assert hub.ids("chat") == ALL
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert hub.push(mixture, token=None).was_complete
    hub.push(make_mixture(chat_entry(folder, num_rows=2)), token=TOKEN)  # the argument wins
    assert hub.ids("chat") == ["r0", "r1"]


@pytest.mark.parametrize("is_said", [False, True])
@pytest.mark.parametrize("source", ["argument", "environment"])
@pytest.mark.parametrize(("step", "status", "create_pr"), [
    ("look", 400, False), ("mode", 422, False), ("send", 403, False), ("commit", 422, False), ("commit", 500, True)
])  # fmt: skip
def test_errors_never_tell_the_token(
    step: str, status: int, create_pr: bool, source: str, is_said: bool, hub: Hub, folder: Path,
    make_mixture: MakeMixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The message not even where the Hub repeats it (`is_said`)."""
    mixture = make_mixture(chat_entry(folder, num_rows=3))
    monkeypatch.setenv("HF_TOKEN", TOKEN if source == "environment" else READ_TOKEN)
    method, path = STEPS[step]
    said = f"your token {TOKEN} is odd" if is_said else "odd"
    fault = Fault(method, path, status=status, times=99, message=said, headers={"X-Error-Message": said})
    hub.server.faults.append(fault)
    with pytest.raises(OutputError) as error:
        hub.push(mixture, token=TOKEN if source == "argument" else None, create_pr=create_pr)
    assert TOKEN not in error.value.message
    assert is_said or TOKEN not in "".join(traceback.format_exception(error.value))
    out = capfd.readouterr()
    assert TOKEN not in out.out + out.err + caplog.text
    kept = [path for path in hub.cache_dir.rglob("*") if path.is_file()]
    assert kept
    assert [path for path in kept if TOKEN.encode() in path.read_bytes()] == []


def test_what_is_no_error_of_the_hub_keeps_its_cause(
    hub: Hub, folder: Path, make_mixture: MakeMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for the body")

    monkeypatch.setattr("huggingface_hub._commit_api.lfs_upload", fail)
    with pytest.raises(RuntimeError, match="Error while uploading") as error:
        hub.push(make_mixture(chat_entry(folder)))
    assert isinstance(error.value.__cause__, MemoryError)


def test_front_matter_that_the_hub_refuses(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.server.yaml_errors.append('"license" must be one of …')
    with pytest.raises(OutputError) as error:
        hub.push(make_mixture(chat_entry(folder)))
    assert '"license" must be one of …' in error.value.message
    assert hub.messages == ["initial commit"]


@pytest.mark.parametrize("fault", ["lost answer", "cut answer", "done, but 500"])
@pytest.mark.parametrize("then", ["", "README.md", "others/a.parquet"])
def test_a_commit_without_an_answer_is_made_once(
    then: str, fault: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))

    def commit() -> None:
        data = parquet(["a"]) if then != "README.md" else hub.repo.files()[then] + b"\nMore by hand.\n"
        hub.server.commit_files(REPO, {then: data})

    hub.server.faults.append(Fault(*STEPS["commit"], **PASSING[fault], then=commit if then else None))
    done = hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.messages.count("Push chat") == 1
    assert hub.ids("chat") == ALL
    assert done.commit in {commit.sha for commit in hub.repo.commits}
    assert (done.num_samples, done.num_sent, done.was_complete) == (24, 5, False)
    assert sorted(done.files) == hub.shards("chat") or sorted(done.files) == ["README.md", *hub.shards("chat")]
    assert done.deleted == []
    assert len(hub.messages) == (3 if then else 2)
    assert then != "README.md" or hub.body().endswith("More by hand.\n")
    assert hub.nothing_is_left()


@pytest.mark.parametrize("fault", ["lost answer", "cut answer", "done, but 500", "dropped", "503"])
def test_a_pull_request_without_an_answer_is_reported_and_not_made_again(
    fault: str, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.server.faults.append(Fault(*STEPS["commit"], **PASSING[fault]))
    with pytest.raises(OutputError) as error:
        hub.push(mixture, create_pr=True, max_shard_bytes=SMALL)
    assert error.value.code == "hub_unanswered"
    assert error.value.message.startswith(
        f"{hub.server.url}/datasets/{REPO}: no answer whether the pull request was made: look there, and run the same "
        "command again if it was not: "
    )
    assert len(hub.asked("POST", "/commit/")) == 1
    assert len(hub.repo.pull_requests()) == int(bool(PASSING[fault].get("after")))
    sent = len(hub.server.uploads)
    hub.push(mixture, create_pr=True, max_shard_bytes=SMALL)
    assert len(hub.server.uploads) == sent == 5


def test_a_pull_request_that_was_never_asked_for_is_not_called_unanswered(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.faults.append(Fault(*STEPS["yaml"], status=503))
    done = hub.push(make_mixture(chat_entry(folder, num_rows=3)), create_pr=True)
    assert hub.repo.refs["refs/pr/1"] == done.commit


@pytest.mark.parametrize("create_pr", [False, True])
def test_what_others_commit_in_the_meantime_survives(
    create_pr: bool, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    hub.server.commit_files(REPO, {"README.md": b"# By hand\n"})
    theirs = "license: mit\nconfigs:\n- config_name: theirs\n  data_files: theirs.parquet"

    def commit() -> None:
        text = front_matter(theirs, "# By hand\n\nWith a correction.\n")
        hub.server.commit_files(REPO, {"README.md": text, "theirs.parquet": parquet(["a"])}, "correct")

    hub.server.faults.append(Fault(*STEPS["commit"], before=commit, status=None))
    hub.push(make_mixture(chat_entry(folder, license="mit")), create_pr=create_pr)
    where = "refs/pr/1" if create_pr else "main"
    pushed = hub.repo.resolve(where)
    if create_pr:  # it says what it changes of the commit that it has read; the Hub merges
        assert pushed.parent == hub.repo.commits[1].sha
        return
    assert [commit.message for commit in hub.repo.history(pushed)] == [
        "Push chat",
        "correct",
        "by hand",
        "initial commit",
    ]
    assert hub.body().startswith("# By hand\n\nWith a correction.\n")
    assert hub.config_names() == ["theirs", "chat"]
    assert (hub.ids("theirs"), hub.ids("chat")) == (["a"], ALL)
    assert hub.asked("POST", "/commit/") == [412, 200]


def test_the_same_config_of_somebody_else_in_the_meantime_is_replaced(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    other = make_mixture(chat_entry(folder, num_rows=10))
    ours = make_mixture({**chat_entry(folder, "ours"), "name": "chat"})
    before = [lambda: hub.push(other, cache_dir=str(hub.tmp_path / "elsewhere"))]
    hub.server.faults.append(Fault(*STEPS["commit"], before=lambda: before.pop()(), status=None))
    hub.push(ours, max_shard_bytes=SMALL)
    assert hub.messages == ["initial commit", "Push chat", "Push chat"]
    assert hub.ids("chat") == ALL
    assert len(hub.shards("chat")) == 5
    assert hub.is_whole()


def test_others_who_never_stop_committing(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    numbers = iter(range(1000))

    def commit() -> None:
        hub.server.commit_files(REPO, {"notes.md": str(next(numbers)).encode()})

    hub.server.faults.append(Fault(*STEPS["commit"], before=commit, status=None, times=1000))
    mixture = make_mixture(chat_entry(folder))
    with pytest.raises(OutputError) as error:
        hub.push(mixture, max_shard_bytes=SMALL)
    assert error.value.message == (
        f"{hub.server.url}/datasets/{REPO}: the commit did not succeed in 5 attempts (others commit there, or the Hub is "
        "unwell): run the same command again, what was sent is kept"
    )
    hub.server.faults.clear()
    hub.push(mixture, max_shard_bytes=SMALL)
    assert len(hub.server.uploads) == 5
    assert hub.ids("chat") == ALL


def test_a_repository_that_is_deleted_during_the_push(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))

    def delete(name: str) -> None:
        if name.startswith("sent 5"):
            del hub.server.repos[REPO]

    with pytest.raises(OutputError) as error:
        hub.push(mixture, max_shard_bytes=SMALL, progress=delete)
    assert error.value.message == f"{hub.server.url}/datasets/{REPO} is gone: it was deleted during the push"
    hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.ids("chat") == ALL
    assert len(hub.server.uploads) == 10


def test_parts_that_the_hub_has_lost_between_two_runs_are_sent_again(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.server.faults.append(Fault(*STEPS["commit"], status=403))
    with pytest.raises(OutputError):
        hub.push(mixture, max_shard_bytes=SMALL)
    lost = [hub.server.uploads[i][0] for i in (1, 3)]
    for digest in lost:
        del hub.repo.objects[digest]
    hub.push(mixture, max_shard_bytes=SMALL)
    assert sorted(digest for digest, _ in hub.server.uploads[5:]) == sorted(lost)
    assert hub.ids("chat") == ALL
    assert hub.is_whole()


def test_parts_that_the_hub_loses_before_the_commit(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.server.faults.append(Fault(*STEPS["commit"], status=None, before=lambda: hub.repo.objects.clear()))
    with pytest.raises(OutputError) as error:
        hub.push(mixture, max_shard_bytes=SMALL)
    assert error.value.message.endswith("the Hub has dropped what was sent earlier: run the same command again")
    assert hub.messages == ["initial commit"]
    hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.ids("chat") == ALL
    assert len(hub.server.uploads) == 10
    assert hub.is_whole()


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_killed_push_goes_on_at_once_with_what_is_missing(
    num_proc: int, hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    mixture = make_mixture(chat_entry(folder, num_rows=48))
    with hub.push_apart(str(folder / "x.yaml"), f"more = {{'num_proc': {num_proc}}}") as process:
        hub.server.faults.append(Fault(*STEPS["send"], skip=6, before=process.kill))
        assert process.wait() == -signal.SIGKILL
        assert hub.messages == ["initial commit"]
        hub.server.faults.clear()
        stored = len(hub.server.uploads)
        assert stored in (6, 7)  # the client was killed while it sent the next one
        done = hub.push(mixture, max_shard_bytes=SMALL, num_proc=num_proc)
    assert uploads_are_unique(hub)
    assert done.num_sent <= len(hub.server.uploads) - stored + 3
    assert hub.messages == ["initial commit", "Push chat"]
    assert hub.nothing_is_left()
    hub.push(mixture, "user/again", max_shard_bytes=SMALL, cache_dir=str(hub.tmp_path / "again"))
    assert hub.repo.files() == hub.files_as_if_of("user/again")


@pytest.mark.parametrize("is_made", [False, True])
def test_a_push_killed_around_its_commit(is_made: bool, hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    with hub.push_apart(str(folder / "x.yaml")) as process:
        moment: dict[str, Any] = {"then": process.kill} if is_made else {"before": process.kill, "drop_after_bytes": 0}
        hub.server.faults.append(Fault(*STEPS["commit"], **moment, after=is_made))
    assert process.returncode == -signal.SIGKILL
    assert hub.messages == ["initial commit", "Push chat"][: 1 + is_made]
    done = hub.push(mixture, max_shard_bytes=SMALL)
    assert (done.num_sent, len(hub.server.uploads), done.was_complete) == (0, 5, is_made)
    assert hub.messages == ["initial commit", "Push chat"]
    assert hub.is_whole()
    assert hub.nothing_is_left()


def test_an_interrupted_push_goes_on(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))

    def interrupt(name: str) -> None:
        if name.startswith("sent 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.push(mixture, max_shard_bytes=SMALL, progress=interrupt)
    assert hub.messages == ["initial commit"]
    hub.push(mixture, max_shard_bytes=SMALL)
    assert (len(hub.server.uploads), uploads_are_unique(hub)) == (5, True)
    assert hub.ids("chat") == ALL


def test_a_full_disk(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))"
    process = hub.push_apart(str(folder / "x.yaml"), script)
    output, _ = process.communicate()
    assert process.returncode == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"llava_arrow.errors.OutputError: {hub.cache_dir}/llava_mixture_pushes/")
    assert "/parts/000000-0000.parquet cannot be written: " in last
    assert last.endswith("File too large")
    assert hub.messages == ["initial commit"]
    left = [path for path in hub.cache_dir.rglob("*.parquet") if "pushes" in str(path)]
    assert left == []
    hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.ids("chat") == ALL
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_cache_that_cannot_be_written(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    (hub.tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as error:
        hub.push(make_mixture(chat_entry(folder)), cache_dir=str(hub.tmp_path / "file"))
    assert error.value.message.startswith(f"{hub.tmp_path}/file/llava_mixture_pushes/")
    assert error.value.message.endswith(" cannot be written: Not a directory")


def test_a_state_that_is_broken_is_made_anew(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    mixture = make_mixture(chat_entry(folder))
    hub.server.faults.append(Fault(*STEPS["commit"], status=403))
    with pytest.raises(OutputError):
        hub.push(mixture, max_shard_bytes=SMALL)
    records = sorted(hub.cache_dir.glob("llava_mixture_pushes/*/sent/*.json"))
    assert len(records) == 5
    records[0].write_text("{")
    os.remove(records[1])
    hub.push(mixture, max_shard_bytes=SMALL)
    assert hub.ids("chat") == ALL
    assert len(hub.server.uploads) == 5  # the Hub knew them


def test_a_push_of_something_else_into_the_same_cache_is_no_problem(
    hub: Hub, folder: Path, make_mixture: MakeMixture
) -> None:
    first = make_mixture(chat_entry(folder))
    hub.server.faults.append(Fault(*STEPS["commit"], status=403))
    with pytest.raises(OutputError):
        hub.push(first, max_shard_bytes=SMALL)
    hub.push(make_mixture(chat_entry(folder, num_rows=4)), max_shard_bytes=SMALL)
    assert hub.ids("chat") == ["r0", "r1", "r2", "r3"]


def test_the_order_on_the_wire_is_shards_then_card(hub: Hub, folder: Path, make_mixture: MakeMixture) -> None:
    hub.push(make_mixture(chat_entry(folder)), max_shard_bytes=SMALL)
    writes = [path for method, path, _ in hub.server.requests if method in ("POST", "PUT")]
    sends = [i for i, path in enumerate(writes) if "/lfs-objects/" in path]
    commits = [i for i, path in enumerate(writes) if "/commit/" in path]
    assert (len(sends), len(commits)) == (5, 1)
    assert max(sends) < commits[0] == len(writes) - 1
