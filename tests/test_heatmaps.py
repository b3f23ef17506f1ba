"""GradCAM: equal to hand-made maps, at the right layer of every architecture, and no trace left in the model."""

from types import SimpleNamespace

import pytest
import torch
from cases import MODELS, raw_processor
from tiny import tiny_model, tiny_processor
from torch import nn

from zspag_hf.evaluation.heatmaps import heatmap_layer, heatmaps, prefix_tokens
from zspag_hf.pipeline.classifier import PixelClassifier

LAYERS = {  # the tiny models that a picture can be drawn of -> the layer, by its last names
    "vit": "layers.1.layernorm_before",
    "resnet": "embedder",  # 4 x 4; what follows has 2 x 2 and 1 x 1
}


class Pooled(nn.Module):
    """logit = weights . mean over positions of a 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 1, bias=False), nn.Linear(3, 2, bias=False)
        self.config = SimpleNamespace(num_labels=2)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.head(self.conv(pixel_values).mean((2, 3))))


def test_a_map_by_hand():
    """d logit / d A_d is w_d / (h w) everywhere, so the map is ReLU(sum_d w_d A_d) / (h w)."""
    model = Pooled().eval()
    classifier = PixelClassifier(model, raw_processor())
    pixels, labels = torch.rand(5, 2, 3, 3), torch.tensor([0, 1, 1, 0, 1])
    activations = model.conv(pixels)
    expected = (model.head.weight[labels][:, :, None, None] * activations).sum(1).relu() / 9
    torch.testing.assert_close(heatmaps(classifier, "conv", pixels, labels, batch_size=2), expected.detach())


def test_a_transformers_map_weighs_the_patch_tokens():
    """Against autograd on the normalisation's output, class token left out."""
    classifier = PixelClassifier(tiny_model("vit"), tiny_processor())
    pixels, labels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 2, 1, 4])
    layer = heatmap_layer(classifier, pixels[:1])
    kept = []
    hook = classifier.model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: kept.append(out))
    logits = classifier(pixels.float() / 255)
    hook.remove()
    gradient = torch.autograd.grad(logits[range(4), labels].sum(), kept[0])[0]
    tokens, slopes = kept[0][:, 1:], gradient[:, 1:]
    expected = (slopes.mean(1, keepdim=True) * tokens).sum(2).relu().unflatten(1, (2, 2)).detach()
    maps = heatmaps(classifier, layer, pixels, labels)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)
    assert (maps > 0).any()


@pytest.mark.parametrize("family", LAYERS)
def test_the_layer_is_the_last_that_still_has_positions(family):
    classifier = PixelClassifier(tiny_model(family), tiny_processor())
    layer = heatmap_layer(classifier, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert layer.endswith(LAYERS[family]), layer


@pytest.mark.slow
def test_every_model_has_a_map_or_none_and_is_left_as_it_was(case):
    has_a_map_and_is_left_as_it_was(case)


@pytest.mark.parametrize("name", ["swin", "dinov2_with_registers", "convnext"])
def test_models_of_each_kind_have_a_map_and_are_left_as_they_were(name):
    assert has_a_map_and_is_left_as_it_was(next(case for case in MODELS if case.name == name))


def has_a_map_and_is_left_as_it_was(case):
    """Checks the maps of a tiny model; False for one without a grid of positions."""
    classifier = case.classifier(torch.float32)
    pixels = case.pixels(3, torch.float32)
    layer = heatmap_layer(classifier, pixels[:1])
    if layer is None:
        return False
    names = [name for name, _ in classifier.model.named_modules()]
    before = classifier.predict(pixels)
    maps = heatmaps(classifier, layer, pixels, torch.tensor([0, 1, 2]))
    assert maps.dim() == 3 and maps.shape[0] == 3 and min(maps.shape[1:]) > 1
    assert (maps >= 0).all() and torch.isfinite(maps).all()
    assert [name for name, _ in classifier.model.named_modules()] == names
    assert torch.equal(classifier.predict(pixels), before)
    return True


def test_what_stands_before_a_square_grid():
    expected = {64: 0, 65: 1, 198: 2, 261: 5, 49: 0, 71: None, 2: None}
    assert {count: prefix_tokens(count) for count in expected} == expected


def test_a_frozen_model_that_writes_over_its_maps_has_the_same_maps():
    """Training may have frozen weights, and an activation in place changes the layer's output after the fact."""

    class InPlace(Pooled):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.head(torch.relu_(self.conv(pixel_values)).mean((2, 3))))

    classifier = PixelClassifier(InPlace().eval(), raw_processor())
    pixels, labels = torch.rand(3, 2, 3, 3), torch.tensor([0, 1, 1])
    activations = classifier.model.conv(pixels)
    slopes = classifier.model.head.weight[labels][:, :, None, None] * (activations > 0) / 9
    expected = (slopes.mean((2, 3), keepdim=True) * activations).sum(1).relu().detach()
    classifier.model.requires_grad_(False)
    torch.testing.assert_close(heatmaps(classifier, "conv", pixels, labels), expected)
