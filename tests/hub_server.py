"""A Hugging Face Hub for tests: dataset repos over HTTP on loopback, all in memory, with faults on demand.

It speaks what `huggingface_hub` 0.22 to 2.4 (LFS, no xet) and `datasets` 2.16 to 5.2 ask for. A client needs
`HF_ENDPOINT=server.url` and `HF_HUB_DISABLE_XET=1` before it imports `huggingface_hub`, and no `HF_HUB_OFFLINE`.

    with HubServer(token="hf_write", read_token="hf_read") as server:
        server.faults.append(Fault(method="PUT", path_contains="/lfs-objects/", status=503))
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LARGEST_REGULAR_FILE = 10 * 2**20
ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"
"""`.gitattributes` of a new repo: which files are large, besides those over the limit."""
JSON = "application/json"


class Lfs(NamedTuple):
    """What a commit holds of a large file: the name of an object in the repo's store."""

    oid: str
    size: int

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n".encode()


Content = bytes | Lfs


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    message: str
    files: dict[str, Content]
    operations: int
    date: str


@dataclass
class Repo:
    id: str
    private: bool
    commits: list[Commit] = field(default_factory=list)  # of all branches, oldest first
    refs: dict[str, str] = field(default_factory=dict)  # "refs/heads/main", "refs/pr/1" → sha
    objects: dict[str, bytes] = field(default_factory=dict)  # sha256 → a large file
    announced: dict[str, int] = field(default_factory=dict)  # sha256 → size; what a batch request allowed to upload
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)  # (sha256, number) → a part of an object

    @property
    def branches(self) -> dict[str, str]:
        heads = [(ref.split("/", 2), sha) for ref, sha in self.refs.items()]
        return {parts[2]: sha for parts, sha in heads if parts[1] == "heads"}

    def pull_requests(self) -> list[str]:
        return [ref for ref in self.refs if ref.startswith("refs/pr/")]

    def resolve(self, revision: str = "main") -> Commit:
        """The commit that a branch, a ref or a (short) sha names."""
        sha = self.refs.get(revision) or self.refs.get(f"refs/heads/{revision}") or revision
        for commit in self.commits:
            if len(sha) >= 7 and commit.sha.startswith(sha):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, commit: Commit) -> Iterator[Commit]:
        by_sha = {commit.sha: commit for commit in self.commits}
        at: Commit | None = commit
        while at:
            yield at
            at = by_sha[at.parent] if at.parent else None

    def content(self, content: Content) -> bytes:
        return self.objects[content.oid] if isinstance(content, Lfs) else content

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of every file, for assertions."""
        return {path: self.content(content) for path, content in self.resolve(revision).files.items()}

    def add_commit(self, ref: str, parent: Commit | None, message: str, files: dict[str, Content], n: int) -> Commit:
        sha = hashlib.sha1(f"{self.id} {len(self.commits)} {parent and parent.sha} {message}".encode()).hexdigest()
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        commit = Commit(sha, parent.sha if parent else None, message, files, n, date)
        self.commits.append(commit)
        self.refs[ref] = sha
        return commit


@dataclass
class Fault:
    """What happens to the next `times` matching requests, after `skip` of them were let through.

    They are answered `status` (None: as usual, for a mere delay) and nothing is done. With `after=True` what they ask
    for is done nevertheless. With `drop_after_bytes=n` the connection is closed instead, when n bytes of the request's
    body were read, or with `after=True` when the request was served and n bytes of the answer's body were sent.
    `before` is called first of all, `then` once the request was served and before the answer: what others do, or what
    becomes of the client, at that moment.
    """

    method: str = ""  # any
    path_contains: str = ""
    times: int = 1
    status: int | None = 500
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected fault"
    drop_after_bytes: int | None = None
    delay_s: float = 0
    after: bool = False
    skip: int = 0
    before: Callable[[], object] | None = None
    then: Callable[[], object] | None = None


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def json(value: Any, status: int = 200, **headers: str) -> Reply:
        return Reply(status, json.dumps(value).encode(), {"Content-Type": JSON, **headers})


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply.json({"error": message}, status, **headers)


Action = Callable[..., Reply]
ROUTES: list[tuple[str, re.Pattern[str], bool, Action]] = []


def route(method: str, path: str, write: bool = False) -> Callable[[Action], Action]:
    """The action for a path, whose `{name}` become arguments; `{repo}` becomes a `Repo` that the caller may see."""
    # A slash inside a revision is quoted, except that the Hub also takes refs/pr/1 as it is.
    kinds = {"repo": "[^/]+/[^/]+?", "revision": "refs/(?:pr|convert)/[^/]+|[^/]+", "path": ".*", "name": "[^/]+"}
    pattern = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{kinds.get(m[1], kinds['name'])})", path)

    def register(action: Action) -> Action:
        ROUTES.append((method, re.compile(pattern), write, action))
        return action

    return register


def blob_sha(content: Content) -> str:
    data = content.pointer if isinstance(content, Lfs) else content
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(files: Mapping[str, Content], path: str, size: int) -> bool:
    """Whether a file of this path and size goes into the store for large files."""
    attributes = files.get(".gitattributes", b"")
    lines = [line.split() for line in attributes.decode().splitlines()] if isinstance(attributes, bytes) else []
    patterns = [line[0] for line in lines if "filter=lfs" in line]
    return size > LARGEST_REGULAR_FILE or _matches(path, patterns)


def is_ignored(files: Mapping[str, Content], path: str) -> bool:
    """Whether the repo's `.gitignore` names it (by simple patterns only)."""
    ignored = files.get(".gitignore", b"")
    return _matches(path, ignored.decode().split() if isinstance(ignored, bytes) else [])


def _matches(path: str, patterns: list[str]) -> bool:
    parts = path.split("/")
    names = [*parts, *("/".join(parts[:i]) for i in range(2, len(parts) + 1))]
    return any(fnmatch.fnmatchcase(name, pattern.rstrip("/")) for pattern in patterns for name in names)


def children(files: Iterable[str], folder: str, recursive: bool) -> list[str]:
    """The paths of files and folders below a folder, sorted."""
    prefix = f"{folder}/" if folder else ""
    paths = set()
    for file in files:
        if file.startswith(prefix):
            parts = file.removeprefix(prefix).split("/")
            depth = len(parts) if recursive else 1
            paths |= {prefix + "/".join(parts[: i + 1]) for i in range(depth)}
    return sorted(paths)


def describe(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
    """A file or folder as the tree and paths-info endpoints give it; None if there is no such path."""

    def state(at: Commit) -> list[tuple[str, Content]]:
        return [(name, at.files[name]) for name in sorted(at.files) if name == path or name.startswith(f"{path}/")]

    if not (now := state(commit)):
        return None
    if path in commit.files:
        content = commit.files[path]
        size = content.size if isinstance(content, Lfs) else len(content)
        entry = {"type": "file", "path": path, "oid": blob_sha(content), "size": size}
        if isinstance(content, Lfs):
            entry["lfs"] = {"oid": content.oid, "size": size, "pointerSize": len(content.pointer)}
    else:
        entry = {"type": "directory", "path": path, "oid": hashlib.sha1(repr(now).encode()).hexdigest(), "size": 0}
    if expand:
        for last in repo.history(commit):
            if state(last) != now:
                break
            entry["lastCommit"] = {"id": last.sha, "title": last.message, "date": last.date}
    return entry


class HubServer:
    """The server, listening from construction; a context manager that stops it. `part_size` turns multipart LFS on."""

    def __init__(self, token: str, read_token: str = "", *, user: str = "user", part_size: int | None = None) -> None:
        self.token, self.read_token, self.user, self.part_size = token, read_token, user, part_size
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []  # (method, path without query, status; 0 if dropped)
        self.uploads: list[tuple[str, int]] = []  # (sha256, bytes) of each object that was received whole
        self.yaml_errors: list[str] = []  # what the Hub finds wrong with any front matter
        self._lock = threading.RLock()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit_files(
        self, repo_id: str, files: dict[str, bytes | None], message: str = "by hand", *, branch: str = "main"
    ) -> Commit:
        """A commit of somebody else's: the content of files, None for those that go. The repo is made if need be."""
        with self._lock:
            repo = self.repos.get(repo_id) or self._new_repo(repo_id, private=False)
            parent = repo.resolve(branch)
            found = dict(parent.files)
            for path, data in files.items():
                if data is None:
                    del found[path]
                elif is_large(found, path, len(data)):
                    content = Lfs(hashlib.sha256(data).hexdigest(), len(data))
                    repo.objects[content.oid] = data
                    found[path] = content
                else:
                    found[path] = data
            return repo.add_commit(f"refs/heads/{branch}", parent, message, found, len(files))

    def _new_repo(self, name: str, *, private: bool) -> Repo:
        repo = self.repos[name] = Repo(name, private)
        repo.add_commit("refs/heads/main", None, "initial commit", {".gitattributes": ATTRIBUTES}, 1)
        return repo

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.closed = True

    def take_fault(self, method: str, target: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and fault.path_contains in target:
                    if fault.skip == 0:
                        fault.times -= 1
                        return fault
                    fault.skip -= 1
        return None

    def answer(self, request: Request) -> Reply:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            with self._lock:
                for verb, pattern, write, action in ROUTES:
                    if verb == method and (match := pattern.fullmatch(request.path)):
                        return self._act(request, action, write, match.groupdict())
            raise HubError(404, "Not Found")
        except HubError as error:
            return error.reply
        except Exception:  # a bug of this server: into the client's error message
            return Reply(500, traceback.format_exc().encode(), {"Content-Type": "text/plain"})

    def _act(self, request: Request, action: Action, write: bool, groups: dict[str, str | None]) -> Reply:
        args: dict[str, Any] = {name: unquote(value or "") for name, value in groups.items()}
        role = self._role(request)
        if "repo" in args:
            repo = self.repos.get(args["repo"])
            if repo is None or (repo.private and not role):
                # To a stranger the Hub does not tell whether a private repo exists.
                message = "Repository not found" if role else "Invalid username or password."
                raise HubError(404 if role else 401, message, "RepoNotFound")
            args["repo"] = repo
        if write and not role:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if write and role != "write":
            raise HubError(403, "Forbidden: pass a token with write access to this repo")
        return action(self, request, **args)

    def _role(self, request: Request) -> str:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in (self.token, self.read_token):
            raise HubError(401, "Invalid credentials in Authorization header")
        return {"": "", self.token: "write"}.get(token, "read")

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Reply:
        if not (role := self._role(request)):
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": role}
        return Reply.json({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": token}})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Reply:
        errors = [{"message": message} for message in self.yaml_errors]
        return Reply.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("POST", "/api/repos/create", write=True)
    def create_repo(self, request: Request) -> Reply:
        asked = request.json
        if asked.get("type") != "dataset":
            raise HubError(400, "this server has dataset repos only")
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        url = f"{self.url}/datasets/{name}"
        if name in self.repos:
            return Reply.json({"error": "You already created this dataset repo", "url": url}, 409)
        repo = self._new_repo(name, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return Reply.json({"url": url, "name": name, "private": repo.private})

    @route("GET", "/api/datasets/{repo}(?:/revision/{revision})?")
    def info(self, request: Request, repo: Repo, revision: str) -> Reply:
        commit = repo.resolve(revision or "main")
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
        for sibling in siblings if request.flag("blobs") else []:
            entry = describe(repo, commit, sibling["rfilename"], False) or {}
            sibling |= {"blobId": entry["oid"], "size": entry["size"]}
            if lfs := entry.get("lfs"):
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        dates = {"createdAt": repo.commits[0].date, "lastModified": commit.date}
        counts = {"downloads": 0, "likes": 0, "tags": [], "gated": False, "disabled": False}
        names = {"_id": repo.id, "id": repo.id, "author": repo.id.split("/")[0], "sha": commit.sha}
        return Reply.json({**names, "private": repo.private, **dates, **counts, "siblings": siblings})

    @route("GET", "/api/datasets/{repo}/refs")
    def list_refs(self, request: Request, repo: Repo) -> Reply:
        kinds: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for name, sha in repo.branches.items():
            kinds["branches"].append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha})
        for ref in repo.pull_requests():
            kinds["pullRequests"].append({"name": ref, "ref": ref, "targetCommit": repo.refs[ref]})
        return Reply.json(kinds)

    @route("POST", "/api/datasets/{repo}/branch/{branch}", write=True)
    def create_branch(self, request: Request, repo: Repo, branch: str) -> Reply:
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repo.refs[f"refs/heads/{branch}"] = repo.resolve(request.json.get("startingPoint", "main")).sha
        return Reply.json({})

    @route("GET", "/api/datasets/{repo}/commits/{revision}")
    def list_commits(self, request: Request, repo: Repo, revision: str) -> Reply:
        commits = list(repo.history(repo.resolve(revision)))
        rest = {"message": "", "authors": [{"user": self.user}]}
        return Reply.json([{"id": c.sha, "title": c.message, "date": c.date, **rest} for c in commits])

    @route("GET", "/api/datasets/{repo}/tree/{revision}(?:/{path})?")
    def tree(self, request: Request, repo: Repo, revision: str, path: str) -> Reply:
        commit, folder = repo.resolve(revision), path.strip("/")
        paths = children(commit.files, folder, request.flag("recursive"))
        if folder and not paths:
            raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        return Reply.json([describe(repo, commit, path, request.flag("expand")) for path in paths])

    @route("POST", "/api/datasets/{repo}/paths-info/{revision}")
    def paths_info(self, request: Request, repo: Repo, revision: str) -> Reply:
        commit, form = repo.resolve(revision), parse_qs(request.body.decode())
        expand = form.get("expand", [""])[0].lower() == "true"
        entries = (describe(repo, commit, path.strip("/"), expand) for path in form.get("paths", []))
        return Reply.json([entry for entry in entries if entry])

    @route("GET", "(?:/api)?/datasets/{repo}/resolve/{revision}/{path}")
    def download(self, request: Request, repo: Repo, revision: str, path: str) -> Reply:
        commit = repo.resolve(revision)
        if path not in commit.files:
            error = HubError(404, "Entry not found", "EntryNotFound")
            error.reply.headers["X-Repo-Commit"] = commit.sha  # for huggingface_hub to remember that there is no file
            raise error
        content = commit.files[path]
        data = repo.content(content)
        etag = content.oid if isinstance(content, Lfs) else blob_sha(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if isinstance(content, Lfs):
            headers |= {"X-Linked-Size": str(content.size), "X-Linked-Etag": f'"{etag}"'}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if not asked:
            return Reply(200, data, headers)
        first = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
        end = min(int(asked[2]) + 1, len(data)) if asked[1] and asked[2] else len(data)
        if first >= end:
            return Reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return Reply(206, data[first:end], headers | {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"})

    @route("POST", "/api/datasets/{repo}/preupload/{revision}", write=True)
    def preupload(self, request: Request, repo: Repo, revision: str) -> Reply:
        files = repo.resolve(revision).files

        def plan(path: str, size: int) -> dict[str, Any]:
            mode = "lfs" if is_large(files, path, size) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": is_ignored(files, path)}
            if (content := files.get(path)) is not None:
                answer["oid"] = content.oid if isinstance(content, Lfs) else blob_sha(content)
            return answer

        asked = [(file["path"], file["size"]) for file in request.json["files"]]
        return Reply.json({"files": [plan(*file) for file in asked]})

    @route("POST", "/datasets/{repo}.git/info/lfs/objects/batch", write=True)
    def lfs_batch(self, request: Request, repo: Repo) -> Reply:
        objects = []
        for file in request.json["objects"]:
            oid, size = file["oid"], file["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in repo.objects:
                repo.announced[oid] = size
                upload: dict[str, Any] = {"href": f"{self.url}/lfs-objects/{repo.id}/{oid}", "header": {}}
                if self.part_size and size > self.part_size:
                    parts = range(1, -(-size // self.part_size) + 1)
                    upload["header"] = {"chunk_size": str(self.part_size)}
                    upload["header"] |= {str(number): f"{upload['href']}/{number}" for number in parts}
                verify = {"href": f"{self.url}/datasets/{repo.id}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        reply = Reply.json({"transfer": "basic", "objects": objects})
        reply.headers["Content-Type"] = "application/vnd.git-lfs+json"
        return reply

    # The batch answer is what authorises an upload, like a presigned URL: clients send no token with these.

    @route("PUT", "/lfs-objects/{owner}/{name}/{oid}(?:/{number})?")
    def lfs_put(self, request: Request, owner: str, name: str, oid: str, number: str) -> Reply:
        repo = self.repos[f"{owner}/{name}"]
        if not number:
            return self._store(repo, oid, request.body)
        repo.parts[oid, int(number)] = request.body
        return Reply(200, b"", {"ETag": f'"part-{number}"'})

    @route("POST", "/lfs-objects/{owner}/{name}/{oid}")
    def lfs_join_parts(self, request: Request, owner: str, name: str, oid: str) -> Reply:
        repo = self.repos[f"{owner}/{name}"]
        numbers = sorted(part["partNumber"] for part in request.json["parts"])
        return self._store(repo, oid, b"".join(repo.parts.pop((oid, number), b"") for number in numbers))

    def _store(self, repo: Repo, oid: str, data: bytes) -> Reply:
        if oid not in repo.announced:
            raise HubError(403, "no batch request announced this object")
        if len(data) != repo.announced[oid] or hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, f"{len(data)} bytes are not the object {oid} of {repo.announced[oid]} bytes")
        repo.objects[oid] = data
        self.uploads.append((oid, len(data)))
        return Reply()

    @route("POST", "/datasets/{repo}.git/info/lfs/objects/verify", write=True)
    def lfs_verify(self, request: Request, repo: Repo) -> Reply:
        if len(repo.objects.get(request.json["oid"], b"")) != request.json["size"]:
            raise HubError(404, "the object is not there, or has another size")
        return Reply.json({})

    @route("POST", "/api/datasets/{repo}/commit/{revision}", write=True)
    def commit(self, request: Request, repo: Repo, revision: str) -> Reply:
        header, *operations = [json.loads(line) for line in request.body.split(b"\n") if line.strip()]
        asked = header["value"]
        ref = revision if revision in repo.refs else f"refs/heads/{revision}"
        if ref not in repo.refs:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = repo.resolve(ref)
        if request.flag("create_pr"):
            parent = repo.resolve(asked.get("parentCommit") or ref)
            number = 1 + len(repo.pull_requests())
            ref = f"refs/pr/{number}"
        elif not parent.sha.startswith(asked.get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            _apply(repo, files, operation["key"], operation["value"])
        commit = repo.add_commit(ref, parent, asked["summary"], files, len(operations))
        answer = {"success": True, "commitOid": commit.sha, "hookOutput": ""}
        answer["commitUrl"] = f"{self.url}/datasets/{repo.id}/commit/{commit.sha}"
        if request.flag("create_pr"):
            answer["pullRequestUrl"] = f"{self.url}/datasets/{repo.id}/discussions/{number}"
        return Reply.json(answer)


def _apply(repo: Repo, files: dict[str, Content], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        text = value["content"]
        files[path] = base64.b64decode(text) if value.get("encoding") == "base64" else text.encode()
    elif key == "lfsFile":
        data = repo.objects.get(value["oid"])
        if data is None or len(data) != value.get("size", len(data)):
            raise HubError(400, f"an LFS pointer pointed to a file that does not exist. Offending file: - {path}")
        files[path] = Lfs(value["oid"], len(data))
    elif key in ("deletedFile", "deletedFolder"):
        gone = [path] if key == "deletedFile" else [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not gone or gone[0] not in files:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"unknown operation {key}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    closed = False

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: that a client went away is its own business, and an error of the server's was answered with 500."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections alive
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def serve(self) -> None:
        if self.server.closed:  # a connection that a client keeps alive outlives the listening socket
            self.close_connection = True
            return
        hub, url = self.server.hub, urlsplit(self.path)
        fault = hub.take_fault(self.command, self.path) or Fault(status=None)
        drop, length = fault.drop_after_bytes, int(self.headers.get("Content-Length", 0))
        time.sleep(fault.delay_s)
        if fault.before is not None:
            fault.before()
        reply = Reply()
        if drop is not None and not fault.after:
            self.rfile.read(min(drop, length))
            drop = 0
        else:
            body = self.rfile.read(length)
            if fault.after or fault.status is None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = hub.answer(Request(self.command, url.path, parse_qs(url.query), headers, body))
            if fault.then is not None:
                fault.then()
            if fault.status is not None and drop is None:
                reply = Reply.json({"error": fault.message}, fault.status, **fault.headers)
        # Before the answer is sent: a test that has it in hand finds the request recorded.
        hub.requests.append((self.command, url.path, reply.status if drop is None else 0))
        self.send(reply, drop)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = serve  # noqa: N815

    def send(self, reply: Reply, drop: int | None) -> None:
        """The answer, or with `drop` no more than so many bytes of its body (0: nothing at all) and no more answers."""
        self.close_connection = self.close_connection or drop is not None
        if drop == 0:
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[:drop])

    def log_message(self, *_: Any) -> None:
        """Quiet."""
