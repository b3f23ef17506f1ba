"""GradCAM: equal to hand-made maps, at the right layer of every architecture, and no trace left in the model."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from cases import MODELS, raw_processor
from tiny import tiny_model, tiny_processor
from torch import nn

from zspag_hf.evaluation.heatmaps import heatmap_layer, heatmaps, token_grid
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


@pytest.mark.parametrize(
    ("settings", "size", "count", "expected"),
    [
        ({"patch_size": 16}, (224, 224), 197, (14, 14)),
        ({"patch_size": 16}, (224, 224), 198, (14, 14)),  # DeiT
        ({"patch_size": 14, "num_register_tokens": 4}, (224, 224), 261, (16, 16)),
        ({"patch_size": 4, "num_register_tokens": 4}, (8, 8), 9, (2, 2)),  # 3 x 3, by its count alone
        ({"patch_size": 16}, (32, 288), 37, (2, 18)),  # 6 x 6 and a class token, by its count alone
        ({"patch_size": [2, 4]}, (8, 8), 8, (4, 2)),
        ({"patch_size": 4}, (64, 32), 32, (8, 4)),  # merged once
        ({"patch_size": 4}, (64, 32), 33, None),  # a stage that merged has no class token
        ({"patch_sizes": [7, 3, 3]}, (64, 32), 32, (8, 4)),
        ({"patch_sizes": [7, 3, 3]}, (64, 32), 36, None),  # a square
        ({"patch_size": 16}, (224, 224), 144, None),
        ({"patch_size": 8, "patch_stride": [4, 4]}, (32, 32), 64, (8, 8)),
        ({"vision_config": SimpleNamespace(patch_size=8)}, (32, 16), 8, (4, 2)),
    ],
)
def test_the_grid_is_told_by_the_patches_and_the_image(settings, size, count, expected):
    assert token_grid(SimpleNamespace(**settings), (1, 3, *size), count) == expected


@pytest.mark.parametrize(
    ("kind", "size", "prefix"),
    [
        (hf.ViTForImageClassification, (8, 24), 1),  # 2 x 6
        (hf.Dinov2WithRegistersForImageClassification, (8, 8), 5),  # 2 x 2, which make a square of 9 with the rest
    ],
)
def test_a_grid_that_is_no_square_or_stands_behind_registers_has_its_map(kind, size, prefix):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    side = size[0] if size[0] == size[1] else list(size)
    model = kind(kind.config_class(image_size=side, patch_size=4, num_labels=3, **shape)).eval()
    classifier = PixelClassifier(model, raw_processor())
    pixels, labels = torch.rand(4, 3, *size), torch.tensor([0, 1, 2, 0])
    layer = heatmap_layer(classifier, pixels[:1])
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: kept.append(out))
    logits = classifier(pixels)
    hook.remove()
    gradient = torch.autograd.grad(logits[range(4), labels].sum(), kept[0])[0]
    tokens, slopes = kept[0][:, prefix:], gradient[:, prefix:]
    expected = (slopes.mean(1, keepdim=True) * tokens).sum(2).relu().unflatten(1, (size[0] // 4, size[1] // 4))
    torch.testing.assert_close(heatmaps(classifier, layer, pixels, labels), expected.detach(), atol=1e-6, rtol=1e-4)


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
