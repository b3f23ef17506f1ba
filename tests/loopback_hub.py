"""A Hugging Face Hub on 127.0.0.1, in a thread: what it holds, whom it lets in, how it fails, and what it was sent.

The real client reads ``HF_ENDPOINT`` when it is imported, so clients run in subprocesses:

    with LoopbackHub() as hub:
        hub.add_repo("user/model", {"config.json": b"{}"}, private=True)
        subprocess.run([sys.executable, "client.py"], env=hub.env(tmp_path / "cache", token=hub.read_token))
        assert secret not in hub.uploaded()

The routes are in :mod:`hub_routes`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".pt")  # every other file goes into the commit itself
WRAPPED = re.compile(rb'"(?:content|sample)": ?"([^"]*)"')  # parts of files in the API's messages
MAIN = "main"
# Put before a client's own code where it is to meet failures: its waits between two tries are not what is tested.
NO_WAITS = "import time; time.sleep = lambda seconds: None\n"


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **details):
        super().__init__(message)
        self.status, self.code, self.details = status, code, details


@dataclass
class Commit:
    """One state of a repository: ``files`` maps path -> bytes, ``parent`` is the id of the commit before it."""

    id: str
    title: str
    files: dict[str, bytes]
    parent: str | None


@dataclass
class Repo:
    """Commits oldest first; ``refs`` maps branches, tags and "refs/pr/N" to commit ids.

    A private repository is seen by its owner alone; the files of a gated one can be read by those ``granted`` alone.
    """

    id: str
    kind: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """The commit behind a branch, tag, pull request or commit id."""
        wanted = self.refs.get(revision, revision)
        return next((commit for commit in self.commits if commit.id == wanted), None)

    def add(self, title: str, files: dict[str, bytes], ref: str, parent: Commit | None) -> Commit:
        made_of = repr((self.kind, self.id, len(self.commits), title, sorted(files))).encode()
        commit = Commit(hashlib.sha1(made_of).hexdigest(), title, files, parent and parent.id)
        self.commits.append(commit)
        self.refs[ref] = commit.id
        return commit


@dataclass
class Request:
    """What a client sent: path as it came, query included; ``user`` by its token, None for none or a wrong one."""

    method: str
    path: str
    body: bytes
    user: str | None
    token: str | None


@dataclass
class Fault:
    """How requests whose "METHOD path" holds the pattern are to fail, ``times`` times (None: until healed).

    ``cut`` sends the right headers and half of the file, then hangs up; else an answer of this status.
    """

    pattern: str
    status: int = 500
    times: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False

    def strikes(self, method: str, path: str) -> bool:
        if self.times == 0 or not re.search(self.pattern, f"{method} {path}"):
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class LoopbackHub:
    """The server, started on entry and stopped on exit.

    Attributes:
        write_token, read_token: of ``user``, who owns what stands under ``user/``. stranger_token: of ``stranger``.
        requests: everything that was asked, in order. large_files: LFS objects that were uploaded, by SHA-256.
    """

    write_token, read_token, stranger_token = "hf_loopbackWrite", "hf_loopbackRead", "hf_loopbackStranger"

    def __init__(self):
        self.users = {self.write_token: "user", self.read_token: "user", self.stranger_token: "stranger"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def __enter__(self) -> LoopbackHub:
        from hub_routes import Handler  # here: it needs this module

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        self.thread.join()

    def stop(self) -> None:
        """Leave the address to nobody, as a client can ask by /stop."""
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def env(self, cache_dir, token: str | None = None, **more: str) -> dict[str, str]:
        """The environment of a client: this endpoint, a cache of its own, nothing of the caller's login or proxies."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
        tests = Path(__file__).parent
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache_dir),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return kept | own | ({"HF_TOKEN": token} if token else {}) | more

    def run(self, code: str, cache_dir, *arguments, token: str | None = None, timeout: float = 120, **more: str) -> str:
        """What a client prints: ``code`` run by this Python with ``sys.argv[1:]``; raises where it fails."""
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = self.env(cache_dir, token, **more)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done.stdout

    # ------------------------------------------------------------------ repositories

    def add_repo(
        self,
        id: str,
        files: dict[str, bytes] | str | os.PathLike | None = None,
        kind: str = "model",
        *,
        private: bool = False,
        gated: bool = False,
        granted: tuple[str, ...] = (),
    ) -> Repo:
        """A repository with one commit on main, of these files or of a folder's; ``granted``: users of a gated one."""
        repo = self.repos[kind, id] = Repo(id, kind, private, gated, set(granted))
        repo.add("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"}, MAIN, None)
        if files is not None:
            self.add_commit(id, files, kind=kind)
        return repo

    def add_commit(self, id: str, files, kind: str = "model", *, title: str = "add files", ref: str = MAIN) -> str:
        """The id of a new commit on a branch, made from main where it is new; None for bytes takes a file out."""
        repo = self.repos[kind, id]
        parent = repo.find(ref) or repo.find(MAIN)
        content = {**parent.files, **(files if isinstance(files, dict) else read_folder(files))}
        return repo.add(title, {k: v for k, v in content.items() if v is not None}, ref, parent).id

    def add_tag(self, id: str, name: str, revision: str = MAIN, kind: str = "model") -> None:
        repo = self.repos[kind, id]
        repo.refs[name] = repo.find(revision).id
        repo.tags.add(name)

    def commits(self, id: str, kind: str = "model", revision: str = MAIN) -> list[Commit]:
        """Commits that lead to a revision, oldest first."""
        repo = self.repos[kind, id]
        leading, commit = [], repo.find(revision)
        while commit is not None:
            leading.append(commit)
            commit = repo.find(commit.parent) if commit.parent else None
        return leading[::-1]

    def files(self, id: str, revision: str = MAIN, kind: str = "model") -> dict[str, bytes]:
        """path -> bytes at a revision."""
        return dict(self.repos[kind, id].find(revision).files)

    # ------------------------------------------------------------------ what happened, and what is to go wrong

    def uploaded(self) -> bytes:
        """Every byte that clients sent, addresses too, as it came and with what was wrapped in base64 decoded."""
        parts = []
        for request in self.requests:
            parts += [request.path.encode(), request.body]
            if re.search("/(commit|preupload)/", request.path):
                parts += [base64.b64decode(text) for text in WRAPPED.findall(request.body)]
        return b"\n".join(parts)

    def asked(self, pattern: str) -> list[Request]:
        """Requests whose "METHOD path" holds a pattern."""
        return [r for r in self.requests if re.search(pattern, f"{r.method} {r.path}")]

    def fail(self, pattern: str, status: int = 500, *, times: int | None = None, cut: bool = False, **headers) -> None:
        """From now on answer requests whose "METHOD path" holds the pattern by this status, or cut files in half.

        The client tries 408, 429, 500, 502, 503 and 504 again, with waits (see ``NO_WAITS``), but for a commit.
        """
        names = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        self.faults.append(Fault(pattern, status, times, names, cut))

    def heal(self) -> None:
        """Nothing fails any more."""
        self.faults.clear()


def read_folder(folder: str | os.PathLike) -> dict[str, bytes]:
    """Every file below a folder by its path from there."""
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def is_large(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def blob_id(content: bytes) -> str:
    """git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def folder_info(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": blob_id(path.encode())}


def file_info(path: str, content: bytes) -> dict:
    """An entry of the tree API."""
    info = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_large(path):
        info["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return info
