"""What a push uploads, byte by byte, and what a failed one leaves: a loopback Hub and the real client."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from loopback_hub import NO_WAITS, LoopbackHub
from sample_reports import asked, full
from tiny import images, tiny_model, tiny_processor

from zspag_hf import UnlearningError, UnlearningReport
from zspag_hf.data.request import LEDGER
from zspag_hf.report.figures import FIGURES
from zspag_hf.trainer.publishing import check_result, code_files, copy_public, push_folder

CARD = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# A model of animals\n"
PUBLIC = r"README\.md|(preprocessor_)?config\.json|model\.safetensors|unlearning_report\.(json|html)|figures/\w+\.png"

WHOLE_RUN = """
import json, pathlib, sys
import torch
from safetensors.torch import save_file
from tiny import asked, images
from zspag_hf import UnlearningTrainer
from zspag_hf.methods import stages
from zspag_hf.report import figures

figures.png = lambda figure: b"picture"  # TestPublic draws them
made, make_proxies = [], stages.make_proxies
stages.make_proxies = lambda *given, **options: made.append(make_proxies(*given, **options)) or made[-1]
out = pathlib.Path(sys.argv[1])
options, method = asked(out, push_to_hub=True, hub_model_id="user/out", hub_private_repo=True, max_steps=12,
    save_strategy="steps", save_steps=2, report_to="none")
forget = images([2] * 12, seed=7)
run = UnlearningTrainer("user/base", options, forget, images([0, 1, 2, 3, 4] * 4, seed=8), method=method)
run.train()
run.evaluate(retrained="user/base", level="full")
run.save_model()
probe = torch.arange(2 * 3 * 64).reshape(2, 3, 8, 8) % 256
print(json.dumps({
    "logits": run.run.classifier.predict(probe.to(torch.uint8)).tolist(),
    "base": [run.origin.base_model, run.origin.base_revision],
    "proxies": [proxy.flatten()[:6].tolist() for proxies in made for proxy in proxies.pixels],
}))
"""
READ_BACK = """
import json, torch
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.hub.models import load_classifier

classifier = PixelClassifier(*load_classifier("user/out"))
probe = torch.arange(2 * 3 * 64).reshape(2, 3, 8, 8) % 256
print(json.dumps(classifier.predict(probe.to(torch.uint8)).tolist()))
"""
PUSHES = (
    NO_WAITS
    + """
import json, sys
from zspag_hf import UnlearningError
from zspag_hf.cli import main
from zspag_hf.trainer.publishing import push_folder

outcome = {}
for name, options in json.loads(sys.argv[2]):
    name += " again" if name in outcome else ""
    try:
        outcome[name] = str(push_folder(sys.argv[1], **options).commit_url)
    except UnlearningError as error:
        outcome[name] = f"error: {error}"
main(["push", sys.argv[1], "--hub_model_id", "user/by-command", "--hub_token", sys.argv[3]])
print(json.dumps(outcome))
"""
)


def last_line(text):
    return json.loads(text.splitlines()[-1])


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A saved and evaluated result, with files beside it that must never leave."""
    out, report, model = tmp_path_factory.mktemp("result"), asked(full()), tiny_model()
    setattr(model.config, LEDGER, [report.request])
    model.save_pretrained(out)
    tiny_processor().save_pretrained(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.report.figures.png", lambda figure: b"SECRET")  # drawn anew from what may be shown
        report.save(str(out))
    for name in ("training_args.bin", "optimizer.pt", "forget.csv", "_proxies.safetensors", "notes.txt", "code.py"):
        (out / name).write_bytes(b"SECRET")
    (out / "checkpoint-5").mkdir()
    (out / "checkpoint-5" / "model.safetensors").write_bytes(b"SECRET")
    return out


@pytest.fixture(scope="module")
def public(result, tmp_path_factory):
    """What of it may be published."""
    folder = tmp_path_factory.mktemp("public")
    few = {name: draw for name, draw in FIGURES.items() if name in ("relearning", "projection", "heatmaps")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.report.figures.FIGURES", few)
        patch.setattr("zspag_hf.report.card.FIGURES", dict.fromkeys(FIGURES, lambda report: None) | few)
        copy_public(str(result), str(folder), "user/out", {"tags": ["birds"]})
    return folder


class TestPublic:
    def test_only_what_is_listed_is_copied(self, result, public):
        files = {path.relative_to(public).as_posix(): path for path in public.rglob("*") if path.is_file()}
        assert all(re.fullmatch(PUBLIC, name) for name in files), sorted(files)
        assert {"model.safetensors", "README.md", "unlearning_report.html", "figures/relearning.png"} <= set(files)
        assert not any(b"SECRET" in path.read_bytes() for path in files.values())
        assert files["model.safetensors"].read_bytes() == (result / "model.safetensors").read_bytes()
        card = files["README.md"].read_text()
        assert "user/out" in card and "- birds\n" in card

    def test_nothing_that_stands_for_one_image_is_copied(self, result, public):
        kept = UnlearningReport.load(str(result))
        assert kept.heatmaps and kept.projection, "the saved report must have what is left out"
        report = UnlearningReport.load(str(public))
        assert report.projection is None and report.heatmaps == {}
        names = {path.stem for path in (public / "figures").iterdir()}
        assert not names & {"projection", "heatmaps"}
        text = (public / "README.md").read_text() + (public / "unlearning_report.html").read_text()
        assert 'id="heatmaps"' not in text and "heatmaps.png" not in text and "projection.png" not in text

    def test_the_card_shows_pictures_that_are_there(self, public):
        shown = re.findall(r"\]\((figures/[^)]+)\)", (public / "README.md").read_text())
        assert shown and all((public / name).is_file() for name in shown)

    def test_of_a_models_own_code_only_what_it_imports_is_staged(self, tmp_path):
        configs = {"config.json": {"auto_map": {"AutoModel": "own.Own"}}, "preprocessor_config.json": {}}
        files = {name: json.dumps(content) for name, content in configs.items()}
        files |= {"own.py": "from .part import x\n", "part.py": "x = 1\n", "loader.py": "SECRET = 1\n"}
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        assert code_files(str(tmp_path)) == {"own.py", "part.py"}
        (tmp_path / "config.json").write_text("{}")
        assert code_files(str(tmp_path)) == set()

    @pytest.mark.parametrize(
        ("broken", "said"),
        [
            (lambda folder: (folder / "unlearning_report.json").unlink(), r"holds no unlearning_report\.json"),
            (lambda folder: (folder / "model.safetensors").unlink(), r"holds no model\.safetensors"),
            (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
            (lambda folder: (folder / "preprocessor_config.json").unlink(), "holds no preprocessor_config"),
            (lambda folder: (folder / "unlearning_report.json").write_text("{"), "cannot be read"),
            (lambda folder: (folder / "config.json").write_text("{"), "config.json that cannot be read"),
            (lambda folder: (folder / "config.json").write_text("{}"), "of different runs, one of which was cut off"),
        ],
    )
    def test_a_folder_that_is_no_whole_result_is_refused(self, result, tmp_path, broken, said):
        folder = tmp_path / "broken"
        shutil.copytree(result, folder, ignore=shutil.ignore_patterns("figures", "checkpoint-5"))
        check_result(str(folder))
        broken(folder)
        with pytest.raises(UnlearningError, match=said):
            push_folder(str(folder), "user/out", token="hf_none")

    def test_a_report_of_an_evaluation_alone_is_refused(self, tmp_path):
        UnlearningReport("given", "base", [{"id": 2, "label": "cat"}], 10, 0).save(str(tmp_path))
        with pytest.raises(UnlearningError, match="of an evaluation alone"):
            check_result(str(tmp_path))

    def test_a_missing_folder_is_named(self):
        with pytest.raises(UnlearningError, match="there is no folder 'nowhere'"):
            check_result("nowhere")

    def test_a_pull_request_has_no_branch(self, result):
        with pytest.raises(UnlearningError, match="leave revision='v2' out"):
            push_folder(str(result), "user/out", revision="v2", create_pr=True)


@pytest.mark.slow
class TestWholeRun:
    """By id in, by id out: train, evaluate, push, and read back in another process."""

    @pytest.fixture(scope="class")
    def pushed(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("run")
        base = folder / "base"
        tiny_model().save_pretrained(base)
        tiny_processor().save_pretrained(base)
        (base / "README.md").write_bytes(CARD)
        with LoopbackHub() as hub:
            hub.add_repo("user/base", base, private=True)
            text = hub.run(WHOLE_RUN, folder / "cache", folder / "output folder", token=hub.write_token)
            again = hub.run(READ_BACK, folder / "other cache", token=hub.read_token)
            yield hub, last_line(text), last_line(again), folder

    def test_the_pushed_model_answers_as_the_trained_one(self, pushed):
        _, told, again, _ = pushed
        torch.testing.assert_close(torch.tensor(again), torch.tensor(told["logits"]), atol=1e-6, rtol=0)

    def test_it_is_one_commit_of_a_private_repository(self, pushed):
        hub, *_ = pushed
        assert [commit.title for commit in hub.commits("user/out")] == ["initial commit", "Forget cat"]
        assert hub.repos["model", "user/out"].private

    def test_every_uploaded_file_is_one_that_may_be(self, pushed):
        hub, *_ = pushed
        files = hub.files("user/out")
        files.pop(".gitattributes")
        assert all(re.fullmatch(PUBLIC, name) for name in files), sorted(files)

    def test_no_byte_of_a_forget_image_or_of_this_machine_is_uploaded(self, pushed):
        hub, _, _, folder = pushed
        sent = hub.uploaded()
        (nonce,) = json.loads((folder / "output folder" / "out" / "_request.json").read_text()).values()
        assert (folder / "output folder" / "out" / "checkpoint-10" / "optimizer.pt").exists(), "at the end of a round"
        for secret in (nonce, str(folder), "output folder", hub.write_token, "optimizer", "training_args"):
            assert secret.encode() not in sent, secret
        for picture in images([2] * 12, seed=7)["image"]:
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            pixels = np.asarray(picture)
            as_seen = pixels.transpose(2, 0, 1)
            floats = (as_seen / np.float32(255)).astype(np.float32)
            for flat in (pixels.flatten(), as_seen.flatten(), floats.flatten()):
                assert str(flat[:8].tolist())[1:-1].encode() not in sent
            for raw in (encoded.getvalue()[41:], pixels, as_seen, floats):
                raw = raw if isinstance(raw, bytes) else raw.tobytes()
                assert raw[:24] not in sent
                assert raw[:24].hex().encode() not in sent

    def test_no_byte_of_a_proxy_is_uploaded(self, pushed):
        hub, told, _, _ = pushed
        sent = hub.uploaded()
        assert len(told["proxies"]) > 4
        for start in told["proxies"]:
            floats = np.array(start, dtype=np.float32)
            for raw in (floats, floats.astype(np.float64), (floats * 255).round().astype(np.uint8)):
                assert raw.tobytes() not in sent
            assert str(start)[1:-1].encode() not in sent

    def test_the_card_takes_over_licence_and_names_the_base_by_commit(self, pushed):
        hub, told, _, _ = pushed
        base = hub.commits("user/base")[-1].id
        assert told["base"] == ["user/base", base]
        card = hub.files("user/out")["README.md"].decode()
        for line in ("base_model: user/base", "base_model_relation: finetune", "license: apache-2.0"):
            assert line in card
        report = json.loads(hub.files("user/out")["unlearning_report.json"])
        assert report["base_revision"] == base and report["request"]["classes"] == [{"id": 2, "label": "cat"}]


@pytest.mark.slow
def test_failures_publish_nothing_and_a_second_try_goes_on(result, tmp_path):
    stale = {
        "pytorch_model.bin": b"remembers",
        "figures/old.png": b"old",
        "notes.md": b"mine",
        "model.safetensors": b"x",
    }
    folder, report = tmp_path / "result", UnlearningReport.load(str(result))
    shutil.copytree(result, folder)
    report.models = {}  # nothing is drawn
    report.save(str(folder))
    with LoopbackHub() as hub:
        hub.add_repo("user/there", stale)
        hub.add_repo("stranger/theirs", stale)
        hub.fail("POST /api/models/user/at-commit/commit", 500, times=1)
        hub.fail("POST /user/at-batch.git", 503, times=6)  # as often as the client asks before it gives up
        hub.fail("POST /api/models/user/too-fast/commit", 429, times=1, Retry_After=7)
        attempts = {
            "no token": {"repo_id": "user/none"},
            "wrong token": {"repo_id": "user/none", "token": "hf_wrong"},
            "read token": {"repo_id": "user/none", "token": hub.read_token},
            "theirs": {"repo_id": "stranger/theirs", "token": hub.write_token, "replace": True},
            "no id": {"repo_id": "a/b/c", "token": hub.write_token},
            "at commit": {"repo_id": "user/at-commit", "token": hub.write_token},
            "at batch": {"repo_id": "user/at-batch", "token": hub.write_token},
            "too fast": {"repo_id": "user/too-fast", "token": hub.write_token},
            "another": {"repo_id": "there", "token": hub.write_token},
            "there": {"repo_id": "there", "token": hub.write_token, "replace": True},
            "there once more": {"repo_id": "there", "token": hub.write_token},
            "public": {"repo_id": "user/there", "token": hub.write_token, "private": True},
            "pull request": {"repo_id": "user/pr", "token": hub.write_token, "create_pr": True},
            "branch": {"repo_id": "user/branch", "token": hub.write_token, "revision": "v2", "private": True},
        }
        hub.add_repo("user/pr", stale)
        again = ("at commit", "at batch", "too fast")
        rounds = [*attempts.items(), *((name, attempts[name]) for name in again)]
        printed = hub.run(PUSHES, tmp_path / "cache", folder, json.dumps(rounds), hub.write_token)
        outcome = last_line(printed)
        asked = [f"{request.method} {request.path}" for request in hub.requests]
        second = max(i for i, text in enumerate(asked) if "user/branch/commit" in text)

        said = {
            "no token": "no token was found|does not accept the token",
            "wrong token": "does not accept the token",
            "read token": "lacks the permission",
            "theirs": "lacks the permission|no such repository",
            "no id": "a/b/c",
            "at commit": r"failed \(500\): try again later",
            "at batch": r"failed \(503\)",
            "too fast": r"\(429\): wait 7 s",
            "another": "'user/there' holds another model",
            "public": "'user/there' exists and is public",
        }
        for name, text in said.items():
            assert re.match("error: ", outcome[name]) and re.search(text, outcome[name]), (name, outcome[name])
            assert attempts[name].get("token", "hf_") not in outcome[name] or name == "no token"
        assert ("model", "user/none") not in hub.repos
        assert len(hub.commits("stranger/theirs")) == 2
        for name in again:
            told = outcome[f"{name} again"]
            assert told.startswith("http"), told
            assert len(hub.commits(attempts[name]["repo_id"])) == 2, "the initial commit and one more"
        assert any("PUT /lfs" in text for text in asked[:second])
        assert not any("PUT /lfs" in text for text in asked[second:]), "what had arrived is not sent twice"

        assert printed.startswith(f"pushed: {hub.url}/user/by-command\n")
        assert [commit.title for commit in hub.commits("user/by-command")] == ["initial commit", "Forget class 0"]
        assert hub.files("user/by-command")["model.safetensors"] == (result / "model.safetensors").read_bytes()

        there = hub.files("user/there")
        assert "pytorch_model.bin" not in there and "figures/old.png" not in there and there["notes.md"] == b"mine"
        assert there["model.safetensors"] == (result / "model.safetensors").read_bytes()
        assert len(hub.commits("user/there")) >= 3
        assert outcome["there once more"].startswith("http"), "a result of the same model may be followed by the next"
        assert len(hub.commits("user/pr")) == 2, "main stays as it was"
        assert "pytorch_model.bin" not in hub.files("user/pr", "refs/pr/1")
        assert hub.files("user/branch", "v2").keys() > hub.files("user/branch").keys()
        assert hub.repos["model", "user/branch"].private
