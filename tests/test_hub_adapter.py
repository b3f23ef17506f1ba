"""Plain modules, the paper's AlexNet and VGG among them: unlearned, saved without pickles, reloaded equal."""

import os

import pytest
import torch
import torch.nn.functional as F
from cases import randomised
from tiny import NAMES, images
from tiny_runs import FIXED, leak, module_trainer
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from zspag_hf.errors import UnlearningError
from zspag_hf.hub.adapter import ModuleClassifier, ModuleConfig
from zspag_hf.hub.models import load_classifier, load_processor
from zspag_hf.pipeline.classifier import PixelClassifier, to_pixels
from zspag_hf.pipeline.layers import constrained_layers, head_name

SIDE = 16


class AlexNet(nn.Module):
    def __init__(self, classes: int = 5):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, groups=2),  # two towers, as in the original
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 12, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(48, 24),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(24, 24),
            nn.ReLU(inplace=True),
            nn.Linear(24, classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class VGG(nn.Module):
    def __init__(self, classes: int = 5, batch_norm: bool = True):
        super().__init__()
        layers, channels = [], 3
        for width in (8, "pool", 12, 12, "pool"):
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            norm = [nn.BatchNorm2d(width)] if batch_norm else []
            layers += [nn.Conv2d(channels, width, 3, padding=1), *norm, nn.ReLU(inplace=True)]
            channels = width
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(48, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 24), nn.ReLU(True), nn.Linear(24, classes)
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


NETWORKS = {"alexnet": AlexNet, "vgg": lambda: VGG(batch_norm=False), "vgg_bn": VGG}


def adapted(network, **settings):
    settings = {"id2label": dict(enumerate(NAMES)), "image_size": SIDE} | settings
    return ModuleClassifier(ModuleConfig(**settings), randomised(network, gain=2.0)).eval()


def trainer_of(model, tmp_path, **options):
    return module_trainer(model, model.image_processor(), tmp_path, SIDE + 9, **options)


def logits_of(model):
    pixels = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(pixel_values=pixels).logits


@pytest.mark.parametrize("name", [pytest.param("alexnet", marks=pytest.mark.slow), "vgg", "vgg_bn"])
def test_unlearns_under_the_hard_constraint_and_reloads_equal(name, tmp_path):
    trainer = trainer_of(adapted(NETWORKS[name]()), tmp_path, **FIXED)
    model, run = trainer.model, trainer.run
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.train()
    assert len(run.layers) == sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in model.modules())
    for key, value in before.items():
        moved = not torch.equal(model.state_dict()[key], value)
        assert moved == (key.removesuffix(".weight") in run.layers), key
    assert leak(trainer) < 1e-5

    def loss():
        return F.cross_entropy(run.classifier.predict(trainer.run.plan.pixels), trainer.run.plan.targets)

    now = loss()
    trainer.save_model()
    again = ModuleClassifier.from_pretrained(trainer.args.output_dir, module=NETWORKS[name]())
    torch.testing.assert_close(logits_of(again), logits_of(model), atol=1e-6, rtol=1e-6)
    model.load_state_dict(before)
    assert now < loss()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg_bn"])
def test_forgets_within_the_proxy_budget_by_default(name, tmp_path):
    trainer = trainer_of(adapted(NETWORKS[name]()), tmp_path, count=10, max_steps=20)

    def forgotten():
        pixels, ids = trainer.run.forget.pixels, trainer.run.forget_ids
        return trainer.run.classifier.predict(pixels).softmax(1)[:, ids].mean()

    before = forgotten()
    trainer.train()
    assert before > 0.2 and forgotten() < before / 2
    assert trainer.report.choice["whole_proxy_kl"] <= trainer.report.choice["proxy_budget"]
    assert trainer.run.head.startswith("module.classifier")
    if name == "vgg_bn":
        trainer.evaluate(images([0, 1, 2, 3, 4] * 2, size=SIDE), retrained=adapted(NETWORKS[name]()))
        assert trainer.report.models["unlearned"]["acc_ut"] is not None


@pytest.mark.slow
def test_a_resumed_fixed_run_equals_an_uninterrupted_one(tmp_path):
    options = FIXED | {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "epoch"}
    first = trainer_of(adapted(VGG()), tmp_path, **options)
    first.train()
    second = trainer_of(adapted(VGG()), tmp_path, **options)
    second.train(resume_from_checkpoint=os.path.join(first.args.output_dir, "checkpoint-1"))
    for key, value in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, atol=1e-6, rtol=0, msg=key)


class TestFolder:
    @pytest.fixture
    def saved(self, tmp_path):
        model = adapted(VGG(), image_mean=[0.1, 0.2, 0.3])
        model.save_pretrained(tmp_path)
        model.image_processor().save_pretrained(tmp_path)
        return str(tmp_path), model

    def test_holds_safetensors_config_and_processor(self, saved):
        folder, model = saved
        assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
        again = ModuleClassifier.from_pretrained(folder, module=VGG())
        assert again.config.id2label == dict(enumerate(NAMES)) and again.config.image_mean == [0.1, 0.2, 0.3]
        assert load_processor(folder).to_dict() == model.image_processor().to_dict()

    def test_needs_a_module(self, saved):
        with pytest.raises(UnlearningError, match="NoneType, no torch"):
            ModuleClassifier.from_pretrained(saved[0])

    def test_is_not_loaded_by_its_name(self, saved):
        with pytest.raises(UnlearningError, match=r"plain module.*ModuleClassifier\.from_pretrained"):
            load_classifier(saved[0])

    @pytest.mark.parametrize(
        ("module", "named"),
        [
            (lambda: VGG(batch_norm=False), r"missing keys.*features\.3"),
            (AlexNet, r"missing keys.*classifier\.1"),
            (lambda: VGG(classes=4), r"mismatched keys.*classifier\.5"),
            (lambda: nn.Sequential(VGG(), nn.Identity()), r"missing keys.*module\.0\."),
        ],
    )
    def test_refuses_a_module_of_another_shape(self, saved, module, named):
        with pytest.raises(UnlearningError, match=f"not the one that was saved.*{named}"):
            ModuleClassifier.from_pretrained(saved[0], module=module())


class Tied(nn.Module):
    """Two layers with one weight, and a buffer that no file holds."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.arange(5.0), persistent=False)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.second(self.first(x).relu()).relu()) + self.offset


def test_tied_weights_and_constant_buffers_survive(tmp_path):
    model = adapted(Tied())
    model.save_pretrained(tmp_path)
    again = ModuleClassifier.from_pretrained(tmp_path, module=Tied())
    assert torch.equal(logits_of(again), logits_of(model))
    assert again.module.first.weight is again.module.second.weight
    trainer = trainer_of(again, tmp_path / "run", **FIXED)
    trainer.train()
    assert again.module.first.weight is again.module.second.weight
    layers = trainer.run.layers
    assert len(layers["module.first"].sharers) == 1 and "module.second" not in layers


def test_a_module_keeps_its_weights_and_its_identity():
    network = VGG()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    model = ModuleClassifier(ModuleConfig(id2label=dict(enumerate(NAMES))), network)
    assert model.module is network
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_processor_is_what_the_config_says():
    """Grey-scale, and the normalisation inside the wrapper."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    model = adapted(network, image_size=8, image_mean=[0.4], image_std=[0.3])
    picture = images([0], size=21)["image"][0].convert("L")
    pixels = to_pixels([picture], model.image_processor())
    assert pixels.shape == (1, 1, 8, 8)
    logits = PixelClassifier(model, model.image_processor()).predict(pixels)
    torch.testing.assert_close(logits, network((pixels / 255 - 0.4) / 0.3).detach(), atol=1e-5, rtol=1e-5)


class Attention(nn.Module):
    """A transformer of torch's own, whose attention uses weights without calling their modules."""

    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.batch_first, self.patches = batch_first, nn.Conv2d(3, 8, 4, 4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).permute(*((0, 2, 1) if self.batch_first else (2, 0, 1)))
        return self.head(self.block(x).mean(1 if self.batch_first else 0))


def layers_of(model):
    pixels = torch.rand(2, 3, SIDE, SIDE)
    return constrained_layers(model, lambda: model(pixel_values=pixels))


class TestWhatIsFrozen:
    def test_weights_that_attention_uses_past_their_module(self):
        expected = {"module.patches", "module.block.linear1", "module.block.linear2", "module.head"}
        assert set(layers_of(adapted(Attention()))) == expected

    def test_layers_whose_input_does_not_begin_with_the_images(self):
        """As many tokens as would pass for images: 16."""
        assert set(layers_of(adapted(Attention(batch_first=False)))) == {"module.patches", "module.head"}

    def test_a_weight_that_is_computed_from_others(self):
        network = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(3 * SIDE * SIDE, 8)), nn.ReLU(), nn.Linear(8, 5))
        layers = layers_of(ModuleClassifier(ModuleConfig(id2label=dict(enumerate(NAMES))), network))
        assert set(layers) == {"module.3"} and head_name(layers, 5) == "module.3"

    def test_a_module_without_any_layer_is_refused(self):
        network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Flatten())
        model = ModuleClassifier(ModuleConfig(id2label=dict(enumerate(NAMES[:2]))), network)
        with pytest.raises(UnlearningError, match="no linear layer or 2-d convolution"):
            constrained_layers(model, lambda: model(pixel_values=torch.rand(2, 1, 1, 1, 1)))


class TestRefused:
    @pytest.mark.parametrize("given", [None, AlexNet, "alexnet", {"weight": torch.zeros(1)}])
    def test_what_is_no_module(self, given):
        with pytest.raises(UnlearningError, match=r"no torch\.nn\.Module"):
            ModuleClassifier(ModuleConfig(), given)

    @pytest.mark.parametrize(
        ("network", "given"),
        [(lambda: VGG(classes=4), r"\(4, 4\)"), (nn.Identity, r"\(4, 3, 16, 16\)"), (lambda: Pair(), "tuple")],
    )
    def test_outputs_that_are_not_one_logit_a_label(self, network, given):
        with pytest.raises(UnlearningError, match=rf"returns {given} and not logits of the shape \(4, 5\)"):
            logits_of(adapted(network()))


class Pair(nn.Module):
    def forward(self, x):
        return x, x
