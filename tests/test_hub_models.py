"""Models by folder: what loads, and what each refusal says. By Hub id: test_hub_loading."""

import copy
import json
import shutil
import types
import warnings

import pytest
import torch
from cases import processor
from torch import nn

from zspag_hf.errors import UnlearningError
from zspag_hf.hub.models import (
    HubOptions,
    inherited_card,
    load_classifier,
    load_processor,
    resolve_model,
    source_of,
)
from zspag_hf.pipeline.classifier import PixelClassifier


@pytest.fixture(scope="module")
def original(vit, tmp_path_factory):
    """The folder of a whole model, of which each test has a copy to spoil."""
    folder = tmp_path_factory.mktemp("original")
    vit.build(torch.float32).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def edit(path, **changes):
    """Change entries of a JSON file; None takes one out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refused(folder, **options):
    with pytest.raises(UnlearningError) as error:
        load_classifier(folder, **options)
    assert repr(str(folder)) in str(error.value)
    return str(error.value)


class TestLoad:
    def test_round_trip(self, saved, vit):
        model, image_processor = load_classifier(saved)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        pixels = vit.pixels(2, torch.float32)
        expected = vit.classifier(torch.float32).predict(pixels)
        torch.testing.assert_close(PixelClassifier(model, image_processor).predict(pixels), expected)

    def test_half_precision_weights_are_loaded_in_full(self, vit, tmp_path):
        vit.build(torch.bfloat16).save_pretrained(tmp_path)
        processor().save_pretrained(tmp_path)
        assert {weight.dtype for weight in load_classifier(str(tmp_path))[0].parameters()} == {torch.float32}

    def test_a_given_processor_wins(self, saved):
        own = processor(do_normalize=False)
        assert load_classifier(saved, processor=own)[1] is own

    def test_sharded_weights(self, saved, vit):
        (saved / "model.safetensors").unlink()
        model = vit.build(torch.float32)
        model.save_pretrained(saved, max_shard_size="4KB")
        assert len(list(saved.glob("model-*.safetensors"))) > 1
        loaded = load_classifier(saved)[0].state_dict()
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(loaded[name], weight)

    @pytest.mark.parametrize("where", ["no/such/folder", "no-user/no-such-model"])
    def test_a_missing_model_is_named(self, where, tmp_path):
        where = str(tmp_path / where) if where.endswith("folder") else where
        with pytest.raises(UnlearningError, match="cannot load") as error:
            load_classifier(where)
        assert repr(where) in str(error.value)

    def test_a_file_is_no_model(self, saved):
        assert "it is a file" in refused(saved / "config.json")

    def test_a_folder_has_no_revision(self, saved):
        assert "no revision 'v1'" in refused(saved, hub=HubOptions(revision="v1"))

    @pytest.mark.parametrize(
        "config",
        [None, "not json", [1], {}, {"model_type": "bert"}, {"model_type": "no_such_model"}, {"model_type": "vit"}],
    )
    def test_a_folder_without_a_classifier_is_named(self, config, tmp_path):
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            (tmp_path / "config.json").write_text(text)
        assert "cannot load" in refused(tmp_path)


class TestConfig:
    @pytest.mark.parametrize("changes", [{}, {"num_labels": 5}])
    def test_names_by_text_or_number(self, saved, changes):
        names = {str(i): name for i, name in enumerate("abcde")}
        edit(saved / "config.json", id2label=names, label2id=None, **changes)
        assert load_classifier(saved)[0].config.id2label == dict(enumerate("abcde"))

    def test_without_names_labels_are_numbered(self, saved):
        edit(saved / "config.json", id2label=None, label2id=None, num_labels=5)
        assert load_classifier(saved)[0].config.id2label == {i: f"LABEL_{i}" for i in range(5)}

    def test_another_number_of_names_than_labels(self, saved):
        names = {str(i): name for i, name in enumerate("abcde")}
        edit(saved / "config.json", id2label=names, num_labels=3)
        assert "num_labels 3 and has 5 names" in refused(saved)

    @pytest.mark.parametrize("names", [["a", "b"], {"1": "a", "2": "b"}, {"0": "a", "x": "b"}, {"0": 0, "1": 1}, 7])
    def test_names_that_are_no_names(self, saved, names):
        edit(saved / "config.json", id2label=names, label2id=None)
        assert "must give every id from 0 a name" in refused(saved)

    def test_a_head_of_another_size_is_not_drawn_at_random(self, saved):
        edit(saved / "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id=None)
        message = refused(saved)
        assert "'classifier.bias' is saved as (5,), and config.json asks for (3,)" in message
        assert "nothing to forget" in message

    @pytest.mark.parametrize(
        "changes",
        [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_act": "none such"}, {"num_hidden_layers": 9}],
    )
    def test_settings_that_make_no_model(self, saved, changes):
        edit(saved / "config.json", **changes)
        refused(saved)

    def test_code_of_its_own_is_named_and_not_run(self, saved, tmp_path):
        (saved / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        edit(saved / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
        assert "pass trust_remote_code=True" in refused(saved)
        assert not (tmp_path / "ran").exists()

    def test_code_beside_a_type_that_transformers_knows_is_not_run(self, saved, tmp_path):
        (saved / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        edit(saved / "config.json", auto_map={"AutoModelForImageClassification": "own.Own"})
        load_classifier(saved)
        assert not (tmp_path / "ran").exists()


class TestWeights:
    def test_pickled_weights_are_refused(self, saved, vit):
        (saved / "model.safetensors").unlink()
        torch.save(vit.build(torch.float32).state_dict(), saved / "pytorch_model.bin")
        assert "model.safetensors" in refused(saved)

    def test_pickled_weights_load_where_they_are_allowed(self, saved, vit):
        (saved / "model.safetensors").unlink()
        state = vit.build(torch.float32).state_dict()
        torch.save(state, saved / "pytorch_model.bin")
        loaded = load_classifier(saved, hub=HubOptions(allow_pickled_weights=True))[0].state_dict()
        torch.testing.assert_close(loaded["classifier.weight"], state["classifier.weight"])

    def test_a_pickle_that_runs_code_does_not(self, saved, tmp_path):
        class Runs:
            def __reduce__(self):
                return open, (str(tmp_path / "ran"), "w")

        (saved / "model.safetensors").unlink()
        torch.save({"classifier.weight": Runs()}, saved / "pytorch_model.bin")
        message = refused(saved, hub=HubOptions(allow_pickled_weights=True))
        assert "holds more than tensors" in message and not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
    def test_a_damaged_file(self, saved, share):
        content = (saved / "model.safetensors").read_bytes()
        (saved / "model.safetensors").write_bytes(content[: int(share * len(content))])
        assert "its weights are damaged" in refused(saved)

    def test_a_missing_part(self, saved, vit):
        (saved / "model.safetensors").unlink()
        vit.build(torch.float32).save_pretrained(saved, max_shard_size="4KB")
        part = sorted(saved.glob("model-*.safetensors"))[1]
        part.unlink()
        assert repr(part.name) in refused(saved)

    @pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../../secret"}}'])
    def test_an_index_that_names_no_parts(self, saved, index):
        (saved / "model.safetensors").unlink()
        (saved / "model.safetensors.index.json").write_text(index)
        assert "model.safetensors.index.json" in refused(saved)


class TestProcessor:
    def test_a_missing_processor_is_named(self, saved):
        (saved / "preprocessor_config.json").unlink()
        for load in (load_classifier, load_processor):
            with pytest.raises(UnlearningError, match="image processor") as error:
                load(saved)
            assert repr(str(saved)) in str(error.value)

    @pytest.mark.parametrize("changes", [{"feature_extractor_type": "ViTFeatureExtractor"}, {}])
    def test_old_formats(self, saved, changes):
        """Before there were image processors they were feature extractors; before that the model's type told."""
        edit(saved / "preprocessor_config.json", image_processor_type=None, **changes)
        assert load_processor(saved).image_mean == processor().image_mean

    @pytest.mark.parametrize("text", ["{", "[]", '{"image_processor_type": "NoSuchImageProcessor"}'])
    def test_a_damaged_one(self, saved, text):
        (saved / "preprocessor_config.json").write_text(text)
        (saved / "model.safetensors").write_bytes(b"")  # is told before the weights are looked at
        assert "holds no image processor" in refused(saved)


class TestCached:
    """By Hub id with no network, from a cache as the Hub's client leaves it. With one: test_hub_loading."""

    COMMIT = "a1" * 20

    @pytest.fixture
    def load(self, original, tmp_path):
        def load(name="user/model", without=(), **options):
            place = tmp_path / "models--user--model"
            shutil.copytree(original, place / "snapshots" / self.COMMIT, ignore=shutil.ignore_patterns(*without))
            (place / "refs").mkdir()
            (place / "refs" / "main").write_text(self.COMMIT)
            return load_classifier(name, hub=HubOptions(cache_dir=str(tmp_path), **options))

        return load

    def test_it_loads_and_tells_its_commit(self, load, original):
        model, _ = load()
        assert source_of(model) == ("user/model", self.COMMIT) and model.name_or_path == "user/model"
        expected = load_classifier(original)[0].state_dict()
        assert all(torch.equal(expected[name], weight) for name, weight in model.state_dict().items())

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"without": ["*.safetensors"]}, "the local cache does not hold its weights. Connect once"),
            ({"without": ["config.json"]}, "the Hub could not be asked, and the local cache holds no config.json"),
            ({"revision": "v9"}, "revision 'v9' of it is not in the local cache, .* HF_HUB_OFFLINE=1"),
            ({"name": "user/other"}, "it is not in the local cache, .* HF_HUB_OFFLINE=1"),
            ({"name": "a/b/c"}, "no such folder, and it is no id of a Hub repository"),
        ],
    )
    def test_what_is_not_there_is_told(self, load, given, told):
        with pytest.raises(UnlearningError, match=f"cannot load an image classifier from .*{told}"):
            load(**given)


def test_a_backbone_without_a_head_is_refused(vit, tmp_path):
    from transformers import ViTModel

    ViTModel(vit.build(torch.float32).config, add_pooling_layer=False).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    with pytest.raises(UnlearningError, match=r"lacks weights of an image classifier.*classifier\.bias"):
        load_classifier(str(tmp_path))


class TestAdapters:
    def test_a_folder_with_an_adapter(self, saved):
        for whole in (True, False):
            (saved / "adapter_config.json").write_text("{}")
            assert "merge_and_unload" in refused(saved), f"beside a whole model: {whole}"
            (saved / "model.safetensors").unlink(missing_ok=True)

    def test_a_model_with_adapter_layers(self, vit):
        """As ``peft``, which is not needed for this, leaves it: the wrapped linear layer is of a class of its own."""
        model = vit.build(torch.float32)
        layer = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
        model.classifier = layer(16, 5)
        with pytest.raises(UnlearningError, match=r"carries an adapter \(Linear at classifier\).*merge_and_unload"):
            resolve_model(model, processor())


class TestSource:
    def test_a_folder_gives_its_name_and_no_commit(self, saved):
        assert source_of(load_classifier(saved)[0]) == (saved.name, None)

    def test_a_model_made_here_gives_its_class(self, vit):
        assert source_of(vit.build()) == ("ViTForImageClassification", None)

    @pytest.mark.parametrize(
        "name, expected",
        [
            ("user/model", ("user/model", None)),
            ("/gone/outputs/model", ("model", None)),
            ("/cache/models--user--my-model/snapshots/" + "a1" * 20, ("user/my-model", "a1" * 20)),
        ],
    )
    def test_a_model_that_another_tool_loaded(self, name, expected):
        config = types.SimpleNamespace(_name_or_path=name)
        assert source_of(types.SimpleNamespace(config=config)) == expected

    def test_a_commit_stays_with_a_copy_and_out_of_the_saved_config(self, vit, tmp_path):
        model = vit.build(torch.float32)
        model.config._name_or_path, model.config._commit_hash = "user/model", "a1" * 20
        assert source_of(copy.deepcopy(model)) == ("user/model", "a1" * 20)
        model.save_pretrained(tmp_path)
        assert "a1a1" not in (tmp_path / "config.json").read_text()


class TestCard:
    def test_licence_and_language_and_nothing_else(self, tmp_path):
        header = "license: other\nlicense_name: own\nlicense_link: LICENSE\nlanguage: [en]\ntags: [x]\ndatasets: [y]"
        (tmp_path / "README.md").write_text(f"---\n{header}\n---\n# A model\n")
        expected = {"license": "other", "license_name": "own", "license_link": "LICENSE", "language": ["en"]}
        assert inherited_card(tmp_path) == expected

    @pytest.mark.parametrize("text", [None, "# No header", "---\ntags: [x]\n---\n"])
    def test_none_given(self, tmp_path, text):
        if text is not None:
            (tmp_path / "README.md").write_text(text)
        with warnings.catch_warnings(action="error"):
            assert inherited_card(tmp_path) == {} == inherited_card("")

    @pytest.mark.parametrize("text", ["---\nlicense: [\n---\n", "---\n- a\n---\n"])
    def test_one_that_cannot_be_read_is_told(self, tmp_path, text):
        (tmp_path / "README.md").write_text(text)
        with pytest.warns(UserWarning, match="no licence is taken over"):
            assert inherited_card(tmp_path) == {}

    def test_a_name_that_leads_nowhere_is_told(self):
        with pytest.warns(UserWarning, match="'no-user/no-such-model'"):
            assert inherited_card("no-user/no-such-model") == {}


def test_options_never_show_the_token():
    assert "hf_secret" not in repr(HubOptions(token="hf_secret"))
