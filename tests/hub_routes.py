"""The loopback Hub's routes, as far as huggingface_hub and datasets ask for them; answers are the Hub's own in form.

As there, a private or unknown repository is a 401 without a token and a 404 with another user's, both RepoNotFound; the
files of a gated one are a 401 or a 403, both GatedRepo.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_hub import MAIN, Commit, LoopbackHub, Refused, Repo, Request, blob_id, file_info, folder_info, is_large

KINDS = {"models": "model", "datasets": "dataset"}
STAMP = "2026-01-01T00:00:00.000Z"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub

    def log_message(self, *_) -> None:
        pass

    def do_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        self.token = token if scheme == "Bearer" else None
        self.user = self.hub.users.get(self.token)
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.path, self.body, self.user, self.token))
            struck = (fault for fault in self.hub.faults if fault.strikes(self.command, self.path))
            self.fault = next(struck, None)
            try:
                if self.fault is not None and not self.fault.cut:
                    raise Refused(self.fault.status, "the loopback Hub was told to fail")
                if self.token is not None and self.user is None:
                    raise Refused(401, "Invalid credentials in Authorization header")
                status, headers, content = self.answer([unquote(part) for part in url.path.split("/")[1:]])
            except Refused as refusal:
                status, headers = refusal.status, {"X-Error-Message": str(refusal)}
                headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
                headers |= self.fault.headers if self.fault is not None else {}
                content = json.dumps({"error": str(refusal), **refusal.details}).encode()
        self.reply(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(content)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut:
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)

    # ------------------------------------------------------------------ which route

    def answer(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        match parts:
            case ["stop"]:
                threading.Thread(target=self.hub.stop).start()
                return self.json({})
            case ["api", "whoami-v2"]:
                return self.json(self.whoami())
            case ["api", "validate-yaml"]:
                return self.json({"errors": [], "warnings": []})
            case ["api", "repos", action]:
                return self.json(self.create() if action == "create" else self.delete())
            case ["api", kind, owner, name, *rest] if kind in KINDS:
                return self.json(self.repo_api(KINDS[kind], f"{owner}/{name}", rest))
            case ["lfs", oid]:
                self.hub.large_files[hashlib.sha256(self.body).hexdigest()] = self.body
                return self.json({"oid": oid})
            case ["lfs", oid, "verify"]:
                return self.json({"oid": oid}) if oid in self.hub.large_files else self.refuse(404, "no such object")
            case ["datasets", owner, name, *rest] if rest:
                return self.repo_files("dataset", f"{owner}/{name}", rest)
            case [owner, name, *rest] if rest:
                return self.repo_files("model", f"{owner}/{name}", rest)
        return self.refuse(404, f"the loopback Hub has no route {self.path}")

    def repo_api(self, kind: str, id: str, rest: list[str]):
        match [self.command, *rest]:
            case ["GET"]:
                return self.info(self.repo(kind, id), MAIN)
            case ["GET", "revision", revision]:
                return self.info(self.repo(kind, id), revision)
            case ["GET", "tree", revision, *folder]:
                return self.tree(self.commit(self.repo(kind, id), revision), "/".join(folder))
            case ["GET", "refs"]:
                return self.refs(self.repo(kind, id))
            case ["GET", "commits", revision]:
                return self.log(self.repo(kind, id), revision)
            case ["POST", "paths-info", revision]:
                return self.paths_info(self.commit(self.repo(kind, id), revision))
            case ["POST", "preupload", revision]:
                return self.preupload(self.repo(kind, id, write=True), revision)
            case ["POST", "commit", revision]:
                return self.push(self.repo(kind, id, write=True), revision)
            case ["POST", "branch", branch]:
                return self.branch(self.repo(kind, id, write=True), branch)
        return self.refuse(404, f"the loopback Hub has no route {self.path}")

    def repo_files(self, kind: str, id: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        match rest:
            case ["resolve", revision, *path]:
                return self.resolve(self.repo(kind, id), revision, "/".join(path))
            case ["info", "lfs", "objects", "batch"]:
                self.repo(kind, id.removesuffix(".git"), write=True)
                return self.json(self.lfs_batch())
        return self.refuse(404, f"the loopback Hub has no route {self.path}")

    @staticmethod
    def json(value) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps(value).encode()

    @staticmethod
    def refuse(status: int, message: str, code: str | None = None, **details):
        raise Refused(status, message, code, **details)

    # ------------------------------------------------------------------ who may

    def signed_in(self) -> str:
        return self.user or self.refuse(401, "Invalid username or password.")

    def whoami(self) -> dict:
        role = "write" if self.token == self.hub.write_token else "read"
        token = {"displayName": "loopback", "role": role}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "id": "0", "name": self.signed_in(), "orgs": [], "auth": auth}

    def may_write(self, owner: str) -> None:
        if self.signed_in() != owner or self.token != self.hub.write_token:
            self.refuse(403, f"You don't have the rights to write to {owner}/")

    def repo(self, kind: str, id: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get((kind, id))
        if repo is None or (repo.private and self.user != repo.owner):
            self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(repo.owner)
        return repo

    def commit(self, repo: Repo, revision: str) -> Commit:
        return repo.find(revision) or self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # ------------------------------------------------------------------ reading

    def info(self, repo: Repo, revision: str) -> dict:
        commit = self.commit(repo, revision)
        return {
            "id": repo.id,
            "sha": commit.id,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": STAMP,
            "createdAt": STAMP,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    def tree(self, commit: Commit, folder: str) -> list[dict]:
        below = {p: c for p, c in commit.files.items() if not folder or p.startswith(folder + "/")}
        if not below:
            self.refuse(404, f"{folder} does not exist", "EntryNotFound")
        depth = folder.count("/") + 1 if folder else 0
        folders = {"/".join(p.split("/")[: i + 1]) for p in below for i in range(depth, p.count("/"))}
        if self.query.get("recursive", "false").lower() not in ("true", "1"):
            below = {p: c for p, c in below.items() if p.count("/") == depth}
            folders = {p for p in folders if p.count("/") == depth}
        return [folder_info(p) for p in sorted(folders)] + [file_info(p, c) for p, c in sorted(below.items())]

    def paths_info(self, commit: Commit) -> list[dict]:
        infos = []
        for path in parse_qs(self.body.decode()).get("paths", []):
            if path in commit.files:
                infos.append(file_info(path, commit.files[path]))
            elif any(name.startswith(path + "/") for name in commit.files):
                infos.append(folder_info(path))
        return infos

    def refs(self, repo: Repo) -> dict:
        named = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for name, target in repo.refs.items():
            place, prefix = ("tags", "refs/tags/") if name in repo.tags else ("branches", "refs/heads/")
            if name.startswith("refs/pr/"):
                place, prefix = "pullRequests", ""
            named[place].append({"name": name, "ref": prefix + name, "targetCommit": target})
        return named

    def log(self, repo: Repo, revision: str) -> list[dict]:
        self.commit(repo, revision)
        commits = self.hub.commits(repo.id, repo.kind, revision)[::-1]
        return [{"id": c.id, "title": c.title, "message": "", "date": STAMP, "authors": []} for c in commits]

    def resolve(self, repo: Repo, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if repo.gated and self.user not in (repo.owner, *repo.granted):
            self.refuse(403 if self.user else 401, f"Access to {repo.id} is restricted", "GatedRepo")
        commit = self.commit(repo, revision)
        if path not in commit.files:
            self.refuse(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob_id(content)}"', "Content-Type": "text/plain"}
        if is_large(path):
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": len(content)}
        start, _, end = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        if start:
            last = int(end) if end else len(content) - 1
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            return 206, headers, content[int(start) : last + 1]
        return 200, headers, content

    # ------------------------------------------------------------------ writing

    def create(self) -> dict:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.signed_in()
        self.may_write(owner)
        kind, id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        place = {"url": self.page(kind, id)}
        if (kind, id) in self.hub.repos:
            self.refuse(409, "You already created this repository", **place)
        self.hub.add_repo(id, kind=kind, private=asked.get("visibility") == "private")
        return place

    def page(self, kind: str, id: str) -> str:
        return f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{id}"

    def delete(self) -> dict:
        asked = json.loads(self.body)
        kind, id = asked.get("type") or "model", f"{asked.get('organization') or self.signed_in()}/{asked['name']}"
        self.repo(kind, id, write=True)
        del self.hub.repos[kind, id]
        return {}

    def branch(self, repo: Repo, branch: str) -> dict:
        if branch in repo.refs:
            self.refuse(409, "Reference already exists")
        repo.refs[branch] = self.commit(repo, json.loads(self.body or b"{}").get("startingPoint", MAIN)).id
        return {}

    def preupload(self, repo: Repo, revision: str) -> dict:
        there = self.commit(repo, revision).files
        modes = []
        for file in json.loads(self.body)["files"]:
            path, large = file["path"], is_large(file["path"])
            held = file_info(path, there[path]) if path in there else {}
            mode, oid = "lfs" if large else "regular", held.get("lfs", held).get("oid")
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": modes}

    def lfs_batch(self) -> dict:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            place = f"{self.hub.url}/lfs/{wanted['oid']}"
            actions = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
            held = wanted["oid"] in self.hub.large_files
            objects.append({**wanted, **({} if held else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def push(self, repo: Repo, revision: str) -> dict:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, parent = lines[0]["value"], self.commit(repo, revision)
        if header.get("parentCommit") not in (None, parent.id):
            self.refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large_files.get(value["oid"]) or self.refuse(400, "no such LFS object")
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    self.refuse(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                files = {p: c for p, c in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        new = f"refs/pr/{number}" if self.query.get("create_pr") == "1" else None
        commit = repo.add(header["summary"], files, new or revision, parent)
        place = self.page(repo.kind, repo.id)
        done = {"success": True, "commitOid": commit.id, "commitUrl": f"{place}/commit/{commit.id}"}
        return done | ({"pullRequestUrl": f"{place}/discussions/{number}"} if new else {})
