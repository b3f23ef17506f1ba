"""Models by id or folder: what loads, and what each refusal says."""

import json

import pytest
import torch
from cases import processor

from zspag_hf.checks import check_trainable
from zspag_hf.classifier import PixelClassifier
from zspag_hf.errors import UnlearningError
from zspag_hf.loading import load_classifier, load_processor


class TestLoad:
    @pytest.fixture
    def saved(self, vit, tmp_path):
        vit.build(torch.float32).save_pretrained(tmp_path)
        processor().save_pretrained(tmp_path)
        return tmp_path

    def test_round_trip(self, saved, vit):
        model, image_processor = load_classifier(saved)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        pixels = vit.pixels(2, torch.float32)
        expected = vit.classifier(torch.float32).predict(pixels)
        torch.testing.assert_close(PixelClassifier(model, image_processor).predict(pixels), expected)

    def test_half_precision_weights_are_loaded_in_full(self, vit, tmp_path):
        vit.build(torch.bfloat16).save_pretrained(tmp_path)
        processor().save_pretrained(tmp_path)
        check_trainable(load_classifier(str(tmp_path))[0])

    def test_a_given_processor_wins(self, saved):
        own = processor(do_normalize=False)
        assert load_classifier(saved, processor=own)[1] is own

    @pytest.mark.parametrize("where", ["no/such/folder", "no-user/no-such-model"])
    def test_a_missing_model_is_named(self, where, tmp_path):
        where = str(tmp_path / where) if where.endswith("folder") else where
        with pytest.raises(UnlearningError, match="cannot load") as error:
            load_classifier(where)
        assert repr(where) in str(error.value)

    @pytest.mark.parametrize(
        "config", [None, "not json", {}, {"model_type": "bert"}, {"model_type": "no_such_model"}, {"model_type": "vit"}]
    )
    def test_a_folder_without_a_classifier_is_named(self, config, tmp_path):
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(UnlearningError, match="cannot load") as error:
            load_classifier(tmp_path)
        assert repr(str(tmp_path)) in str(error.value)

    def test_pickled_weights_are_refused(self, saved, vit):
        (saved / "model.safetensors").unlink()
        torch.save(vit.build(torch.float32).state_dict(), saved / "pytorch_model.bin")
        with pytest.raises(UnlearningError, match=r"model\.safetensors"):
            load_classifier(saved)

    def test_a_missing_processor_is_named(self, saved):
        (saved / "preprocessor_config.json").unlink()
        for load in (load_classifier, load_processor):
            with pytest.raises(UnlearningError, match="image processor") as error:
                load(saved)
            assert repr(str(saved)) in str(error.value)


def test_a_backbone_without_a_head_is_refused(vit, tmp_path):
    from transformers import ViTModel

    ViTModel(vit.build(torch.float32).config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(UnlearningError, match=r"lacks weights of an image classifier.*classifier\.bias"):
        load_classifier(str(tmp_path))
