"""The loopback Hub, asked by the plain huggingface_hub client: what other tests rely on it for."""

import json

import pytest
from loopback_hub import NO_WAITS, LoopbackHub

pytestmark = pytest.mark.slow
FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"weights" * 1000, "figures/curve.png": b"picture"}
CLIENT = (
    NO_WAITS
    + """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi, errors, hf_hub_download, snapshot_download

api, outcome = HfApi(), {}

def attempt(name, call):
    try:
        outcome[name] = call()
    except (errors.HfHubHTTPError, RuntimeError) as error:
        error = error.__cause__ if isinstance(error, RuntimeError) else error
        outcome[name] = [type(error).__name__, error.response.status_code]
    return outcome[name]

folder = sys.argv[1]
"""
)


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


def client(hub, tmp_path, code, *arguments, **options):
    """What a client with a write token, unless given another, puts into ``outcome``."""
    options = {"token": hub.write_token} | options
    text = CLIENT + code + "\nprint(json.dumps(outcome))"
    return json.loads(hub.run(text, tmp_path / "cache", tmp_path / "folder", *arguments, **options).splitlines()[-1])


def test_push_and_read_back(hub, folder, tmp_path):
    code = """
attempt("who", lambda: api.whoami()["name"])
api.create_repo("user/new", private=True)
attempt("again", lambda: str(api.create_repo("user/new", exist_ok=True)))
done = api.upload_folder(folder_path=folder, repo_id="user/new", commit_message="the model")
outcome["oid"] = done.oid
outcome["private"] = api.model_info("user/new").private
outcome["files"] = api.list_repo_files("user/new")
outcome["tree"] = [f.path for f in api.list_repo_tree("user/new", "figures")]
api.upload_folder(folder_path=folder, repo_id="user/new", commit_message="nothing new")
here = snapshot_download("user/new")
read = lambda root, name: open(root + "/" + name, "rb").read()
outcome["same"] = all(read(here, name) == read(folder, name) for name in outcome["files"][1:])
api.delete_file("config.json", "user/new")
outcome["commits"] = [c.title for c in api.list_repo_commits("user/new")]
api.create_repo("user/gone"); api.delete_repo("user/gone")
attempt("gone", lambda: api.model_info("user/gone").id)
"""
    outcome = client(hub, tmp_path, code)
    assert outcome["who"] == "user" and outcome["private"] and outcome["same"]
    assert outcome["again"].endswith("user/new")
    assert outcome["files"] == sorted([".gitattributes", *FILES]) and outcome["tree"] == ["figures/curve.png"]
    initial, pushed, deleted = hub.commits("user/new")
    assert pushed.id == outcome["oid"] and pushed.parent == initial.id and pushed.files.items() >= FILES.items()
    assert "config.json" not in deleted.files
    assert outcome["commits"] == [c.title for c in hub.commits("user/new")][::-1]
    assert outcome["gone"] == ["RepositoryNotFoundError", 404]
    assert all(content in hub.uploaded() for content in FILES.values())
    assert len(hub.asked("PUT /lfs/")) == 2, "large files go by LFS, and none twice"


def test_a_pull_request_leaves_main_as_it_was(hub, folder, tmp_path):
    hub.add_repo("user/model", {"config.json": b"{}"})
    code = """
done = api.upload_folder(folder_path=folder, repo_id="user/model", create_pr=True)
outcome["pr"] = done.pr_revision
outcome["refs"] = [r.ref for r in api.list_repo_refs("user/model", include_pull_requests=True).pull_requests]
api.create_branch("user/model", branch="next")
head = api.model_info("user/model", revision="next").sha
api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="user/model", revision="next", parent_commit=head)
attempt("late", lambda: api.upload_file(
    path_or_fileobj=b"2", path_in_repo="a", repo_id="user/model", revision="next", parent_commit=head).oid)
"""
    outcome = client(hub, tmp_path, code)
    assert outcome["pr"] == "refs/pr/1" and outcome["refs"] == ["refs/pr/1"]
    assert hub.files("user/model")["config.json"] == b"{}" and "model.safetensors" not in hub.files("user/model")
    assert hub.files("user/model", "refs/pr/1").items() >= FILES.items()
    assert outcome["late"] == ["HfHubHTTPError", 412]
    assert hub.files("user/model", "next")["a"] == b"1"


def test_who_may_what(hub, folder, tmp_path):
    hub.add_repo("user/public", {"a.txt": b"public"})
    hub.add_repo("user/private", {"a.txt": b"private"}, private=True)
    hub.add_repo("user/gated", {"a.txt": b"gated"}, gated=True)
    code = """
for who, token in json.loads(sys.argv[2]).items():
    attempt(who + " push", lambda: api.upload_folder(folder_path=folder, repo_id="user/public", token=token).oid)
    for name in ("private", "gated"):
        cache = folder + "/" + who
        load = lambda: hf_hub_download("user/" + name, "a.txt", token=token, cache_dir=cache)
        attempt(who + " " + name, lambda: open(load()).read())
"""
    who = {"reader": hub.read_token, "stranger": hub.stranger_token, "nobody": False, "wrong": "hf_wrong"}
    outcome = client(hub, tmp_path, code, json.dumps(who), token=None)
    refused, hidden, gated = "HfHubHTTPError", "RepositoryNotFoundError", "GatedRepoError"
    assert outcome == {
        "reader push": [refused, 403],
        "reader private": "private",
        "reader gated": "gated",
        "stranger push": [refused, 403],
        "stranger private": [hidden, 404],
        "stranger gated": [gated, 403],
        "nobody push": [refused, 401],
        "nobody private": [hidden, 401],
        "nobody gated": [gated, 401],
        "wrong push": [refused, 401],
        "wrong private": [refused, 401],
        "wrong gated": [refused, 401],
    }
    assert len(hub.commits("user/public")) == 2


def test_a_failure_in_mid_push_leaves_no_commit(hub, folder, tmp_path):
    hub.add_repo("user/model", {"notes.txt": b"never sent by a client"})
    before = len(hub.commits("user/model"))
    push = 'attempt("push", lambda: api.upload_folder(folder_path=folder, repo_id="user/model").oid)'
    for pattern in ("PUT /lfs/", "POST .*/commit/"):
        hub.fail(pattern, 500)
        assert client(hub, tmp_path, push)["push"][1] == 500
        assert len(hub.commits("user/model")) == before
        hub.heal()
    assert FILES["config.json"] in hub.uploaded(), "what was sent counts, also where it came to nothing"
    assert b"never sent by a client" not in hub.uploaded()
    assert client(hub, tmp_path, push)["push"] == hub.commits("user/model")[-1].id


def test_reading_what_is_not_there_and_what_breaks_off(hub, folder, tmp_path):
    hub.add_repo("user/model", FILES)
    hub.fail("GET .*model.safetensors", cut=True, times=1)
    hub.fail("HEAD .*config.json", 429, times=1, Retry_After=0)
    code = """
attempt("repo", lambda: hf_hub_download("user/none", "config.json"))
attempt("file", lambda: hf_hub_download("user/model", "none.json"))
attempt("revision", lambda: hf_hub_download("user/model", "config.json", revision="none"))
outcome["length"] = len(open(hf_hub_download("user/model", "model.safetensors"), "rb").read())
outcome["small"] = open(hf_hub_download("user/model", "config.json")).read()
"""
    outcome = client(hub, tmp_path, code, token=None)
    assert outcome["repo"] == ["RepositoryNotFoundError", 401]
    assert outcome["file"] == ["RemoteEntryNotFoundError", 404]
    assert outcome["revision"] == ["RevisionNotFoundError", 404]
    assert outcome["length"] == 7000 and outcome["small"] == '{"a": 1}'
    assert len(hub.asked("GET .*model.safetensors")) == 2 and len(hub.asked("HEAD .*config.json")) >= 2
