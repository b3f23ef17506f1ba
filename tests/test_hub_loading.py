"""Models and data by Hub id, from the loopback Hub, without a network and with the Hub gone: what each attempt of
hub_client came to."""

import io
import json
import socket

import hub_client
import pandas
import pytest
import torch
from loopback_hub import LoopbackHub, read_folder
from tiny import NAMES, images, tiny_model, tiny_processor

pytestmark = pytest.mark.slow
CARD = b"---\nlicense: apache-2.0\nlanguage: [en, de]\ntags: [vision]\n---\n# A model\n"
UNNEEDED = ("notes.txt", "pytorch_model.bin", "old/model.safetensors", "own.py")
OWN_CODE = b"""
import os
from transformers import ViTConfig, ViTForImageClassification

open(os.environ["MARK"], "a").write("x")

class OwnConfig(ViTConfig):
    model_type = "own_vit"

class OwnModel(ViTForImageClassification):
    config_class = OwnConfig
"""


def saved(folder, shift=0.0, **options):
    """The files of a tiny model whose logits are all moved by ``shift``."""
    model = tiny_model()
    with torch.no_grad():
        model.classifier.bias += shift
    model.save_pretrained(folder, **options)
    tiny_processor().save_pretrained(folder)
    return read_folder(folder)


def parquet(labels):
    file = io.BytesIO()
    images(labels).to_parquet(file)
    return file.getvalue()


def own_model(files):
    config = json.loads(files["config.json"]) | {
        "model_type": "own_vit",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnModel"},
    }
    return files | {"config.json": json.dumps(config).encode(), "own.py": OWN_CODE}


def fill(hub, folder):
    """Every repository that the clients ask for; returns the commit of the second oldest state of user/model."""
    files, moved = saved(folder / "a"), saved(folder / "b", 1.0)
    hub.add_repo("user/model", moved)
    commit = hub.commits("user/model")[-1].id
    hub.add_tag("user/model", "v1")
    hub.add_commit("user/model", files | {"README.md": CARD} | dict.fromkeys(UNNEEDED, b"x"))
    hub.add_commit("user/model", moved, ref="old")
    hub.add_repo("user/private", files, private=True)
    hub.add_repo("user/gated", files, gated=True)
    hub.add_repo("user/empty", {"notes.txt": b"no model"})
    hub.add_repo("user/cardless", files)
    state = io.BytesIO()
    torch.save(tiny_model().state_dict(), state)
    weightless = {name: content for name, content in files.items() if name != "model.safetensors"}
    hub.add_repo("user/pickled", weightless | {"pytorch_model.bin": state.getvalue()})
    hub.add_commit("user/pickled", {"model.safetensors": files["model.safetensors"]}, ref="refs/pr/1")
    hub.add_repo("user/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    hub.add_repo("user/own", own_model(files))
    hub.add_repo("user/sharded", saved(folder / "c", max_shard_size="4KB"))
    for name in ("half", "down", "busy", "cut"):
        hub.add_repo(f"user/{name}", files)
    hub.fail("/api/models/user/down", 503)
    hub.fail("/api/models/user/busy", 429, Retry_After=30)
    hub.fail("GET /user/cut/.*safetensors", cut=True, times=1)
    hub.fail("GET /user/cut/.*safetensors", 500, times=1)
    fill_data(hub)
    return commit


def fill_pictures(hub):
    """Image folders, and data that read elsewhere."""
    file = io.BytesIO()
    images([0])[0]["image"].save(file, "PNG")
    for name, classes in {"pictures": ("cat", "dog"), "trains": ("test", "train")}.items():
        paths = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in classes for i in range(2)]
        hub.add_repo(f"user/{name}", dict.fromkeys(paths, file.getvalue()), kind="dataset")
    for name, path in {"bare": f"{hub.url}/elsewhere.png", "local": __file__}.items():
        table = io.BytesIO()
        pandas.DataFrame({"image": [{"bytes": None, "path": path}], "label": [0]}).to_parquet(table)
        hub.add_repo(f"user/{name}", {"train.parquet": table.getvalue()}, kind="dataset")
    card = f"---\nconfigs:\n- config_name: a\n  data_files: {hub.url}/elsewhere.parquet\n---\n".encode()
    hub.add_repo("user/reads", {"README.md": card, "train.parquet": parquet([0])}, kind="dataset")


def fill_data(hub):
    train, test = parquet([0, 1, 2]), parquet([3, 4])
    both = {"data/train-00000-of-00001.parquet": train, "data/test-00000-of-00001.parquet": test}
    hub.add_repo("user/data", both, kind="dataset")
    hub.add_commit("user/data", {"data/train-00000-of-00001.parquet": parquet([0])}, kind="dataset", ref="old")
    hub.add_repo("user/lazy", both, kind="dataset")
    hub.add_repo("user/secret", both, kind="dataset", private=True)
    hub.add_repo("user/gated", both, kind="dataset", gated=True)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("small", "large"))
    card = f"---\nconfigs:\n{configs}---\n".encode()
    parts = {"README.md": card, "small/a.parquet": train, "large/a.parquet": test}
    hub.add_repo("user/configs", parts, kind="dataset")
    hub.add_repo("user/script", {"script.py": b"1/0"}, kind="dataset")
    hub.add_repo("user/broken", {"train.parquet": train[: len(train) // 2]}, kind="dataset")
    fill_pictures(hub)
    hub.add_repo("user/down", both, kind="dataset")
    hub.fail("/api/datasets/user/down", 503)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(place):
    with LoopbackHub() as hub:
        hub.commit = fill(hub, place)
        yield hub


@pytest.fixture(scope="module")
def outcomes(hub, place):
    """What a client came to with a network and, when the Hub had gone, without; and what it had asked by then."""
    known = {"commit": hub.commit, "read": hub.read_token, "stranger": hub.stranger_token}
    code = "import runpy; runpy.run_module('hub_client', run_name='__main__')"
    arguments = (str(place / "cache"), json.dumps(known))
    printed = hub.run(code, place / "home", *arguments, MARK=str(place / "mark"))
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def online(outcomes):
    return outcomes[0]


@pytest.fixture(scope="module")
def afterwards(outcomes, place):
    """What two came to with the cache of the first client: this process, which is offline (conftest), and that client
    once more, with nobody at the Hub's address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", asked)
        return hub_client.afterwards(str(place / "cache")), outcomes[1]


def asked(*_):
    raise AssertionError("the network was asked")


@pytest.fixture(scope="module")
def expected():
    from zspag_hf.pipeline.classifier import PixelClassifier

    pixels = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    return PixelClassifier(tiny_model(), tiny_processor()).predict(pixels)[0]


def same(outcome, expected, name="user/model"):
    logits, source, _, shown = outcome
    torch.testing.assert_close(torch.tensor(logits), expected)
    assert source == shown == name
    return True


class TestModels:
    def test_by_id_as_from_a_folder_with_its_commit(self, online, hub, expected):
        assert same(online["model"], expected)
        assert online["model"][2] == hub.commits("user/model")[-1].id

    def test_only_what_is_needed_is_fetched(self, online, hub):
        assert hub.asked("GET /user/model/resolve/.*/model.safetensors")
        assert not any(hub.asked(f"/user/model/resolve/.*{name}") for name in UNNEEDED)

    def test_by_branch_tag_and_commit(self, online, hub, expected):
        for revision in ("old", "v1", hub.commit):
            assert same(online[f"revision {revision}"], expected + 1)
        assert online["revision v1"][2] == online[f"revision {hub.commit}"][2] == hub.commit

    def test_an_unknown_revision_is_named(self, online):
        assert "'user/model': it has no revision 'none'" in online["revision none"]

    def test_private(self, online, expected):
        assert same(online["private owner"], expected, "user/private")
        for who in ("", " stranger"):
            assert "the Hub has no such repository" in online["private" + who]
            assert "hf auth login" in online["private" + who]

    def test_gated(self, online, expected):
        assert same(online["gated owner"], expected, "user/gated")
        assert "is gated, and no token was given" in online["gated"]
        assert "is gated, and the token's account has no access" in online["gated stranger"]

    def test_a_wrong_token_is_told_from_a_missing_one(self, online):
        for kind in ("private", "gated"):
            assert "does not accept the token" in online[f"{kind} wrong"]

    @pytest.mark.parametrize(
        "name, told",
        [
            ("none", "the Hub has no such repository"),
            ("empty", "it holds no config.json"),
            ("down", "the Hub itself failed (503)"),
            ("busy", "refuses more requests for now (429): wait 30 s"),
            ("pickled", "its weights are pickled (pytorch_model.bin)"),
            ("adapter", "merge_and_unload"),
            ("own", "trust_remote_code=True"),
            ("cut", "the Hub itself failed (500)"),
        ],
    )
    def test_each_failure_has_its_own_error(self, online, name, told):
        assert online[name].startswith(f"cannot load an image classifier from 'user/{name}': ")
        assert told in online[name]

    def test_refused_weights_are_not_downloaded(self, online, hub):
        assert not hub.asked("/user/adapter/resolve/.*adapter_model")
        weights = hub.asked("GET /user/(pickled|own)/resolve/.*(bin|safetensors)")
        assert len(weights) == 2, "each once, when it was allowed"

    def test_no_conversion_is_asked_for_and_no_pull_request_read(self, online, hub, expected):
        assert same(online["pickled, allowed"], expected, "user/pickled")
        assert not hub.asked("discussions|refs(%2F|/)pr")

    def test_code_runs_only_where_it_is_trusted(self, online, expected):
        assert online["own, unread"] is False
        torch.testing.assert_close(torch.tensor(online["own, trusted"]), expected)

    def test_sharded_weights(self, online, hub, expected):
        assert same(online["sharded"], expected, "user/sharded")
        assert len(hub.asked("GET /user/sharded/resolve/.*/model-")) > 1

    def test_an_interrupted_download_leaves_nothing_broken(self, online, expected):
        assert online["cut, left"] == []
        assert same(online["cut, again"], expected, "user/cut")

    def test_the_processor_alone_and_the_card(self, online):
        assert online["processor"].startswith("ViTImageProcessor")
        assert online["card model"] == {"license": "apache-2.0", "language": ["en", "de"]}
        assert online["card cardless"] == online["card none"] == {}


class TestData:
    def test_splits_and_revisions(self, online):
        assert online["data"] == [3, NAMES, [8, 8]] and online["data test"] == [2, NAMES, [8, 8]]
        assert online["data old"] == [1, NAMES, [8, 8]]

    def test_an_unknown_split_is_found_before_any_download(self, online, hub):
        assert "has no split 'validation', only 'train', 'test'" in online["data split"]
        assert not hub.asked("/datasets/user/lazy/resolve/.*parquet")

    def test_configurations(self, online, hub):
        assert online["data config"] == [3, NAMES, [8, 8]]
        assert "has 2 configurations, 'small', 'large'" in online["data configs"]
        assert "no configuration 'huge', only 'small', 'large'" in online["data wrong config"]
        assert not hub.asked("/resolve/.*large")

    def test_private(self, online):
        assert online["data private, owner"] == [3, NAMES, [8, 8]]
        assert "the Hub has no such repository" in online["data private"]

    def test_folders_of_images(self, online):
        for split in ("", " test"):
            assert online[f"data pictures{split}"] == [4, ["cat", "dog"], [8, 8]]
            assert online[f"data trains{split}"] == [4, ["test", "train"], [8, 8]]

    def test_nothing_elsewhere_is_read(self, online, hub):
        assert "only an address" in online["data bare"] and "leads out of the data set" in online["data local"]
        assert "outside of it" in online["data reads"]
        assert not hub.asked("elsewhere")

    @pytest.mark.parametrize(
        "name, told",
        [
            ("none", "the Hub has no such repository"),
            ("gated", "is gated"),
            ("script", "script.py"),
            ("down", "the Hub itself failed (503)"),
            ("broken", "Parquet"),
        ],
    )
    def test_each_failure_has_its_own_error(self, online, name, told):
        assert online[f"data {name}"].startswith(f"cannot load data from 'user/{name}': ")
        assert told in online[f"data {name}"]

    def test_an_unknown_revision_is_named(self, online):
        assert "it has no revision 'none'" in online["data revision"]


class TestWithoutTheHub:
    def test_what_is_cached_loads(self, afterwards, expected, hub):
        for outcome in afterwards:
            assert same(outcome["model"], expected) and same(outcome["tag"], expected + 1)
            assert outcome["model"][2] == hub.commits("user/model")[-1].id and outcome["tag"][2] == hub.commit
            assert outcome["card"]["license"] == "apache-2.0"
            assert outcome["data"][0] == 3
        assert afterwards[1]["data pictures"] == [4, ["cat", "dog"], [8, 8]], "the other has another HF_HOME"

    def test_data_of_another_commit_is_not_taken_instead(self, afterwards):
        """``datasets`` would: it takes what was loaded last."""
        for outcome in afterwards:
            assert "and the cache holds another" in outcome["data old"]

    @pytest.mark.parametrize("name", ["revision", "unknown", "half", "data unknown"])
    def test_what_is_not_says_why(self, afterwards, name):
        assert "HF_HUB_OFFLINE=1" in afterwards[0][name]
        assert "cannot be reached (ConnectError)" in afterwards[1][name]


def test_no_token_is_ever_shown(online, afterwards, hub):
    text = json.dumps([online, *afterwards])
    assert not any(token in text for token in (*hub.users, "hf_wrong"))
