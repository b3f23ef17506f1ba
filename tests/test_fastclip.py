"""FastClip: norms against a dense singular value decomposition, and clipping in any Trainer's training."""

import pytest
import torch
from cases import LAYERS, ModelCase, from_config, randomised
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from zspag_hf import FastClip, UnlearningError, spectral_norms
from zspag_hf.fastclip import plain_layers, watched


def dense_norm(layer: nn.Module, shape: tuple) -> float:
    """Of the whole matrix, a column for each input coordinate; ``shape`` of one input, without the batch."""
    layer = layer.double()
    count = torch.Size(shape).numel()
    with torch.no_grad():
        basis = torch.eye(count, dtype=torch.float64).reshape(count, *shape)
        columns = layer(basis) - layer(torch.zeros_like(basis))
    return float(torch.linalg.svdvals(columns.flatten(1))[0])


def one_row(layer: nn.Module, shape: tuple) -> tuple:
    return shape[1:] if isinstance(layer, nn.Conv2d) else shape[-1:]


class Net(nn.Module):
    """Layers in a row, as a model that Trainer takes."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values, labels=None):
        logits = self.layers(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fit(model, folder, items, callbacks, **options):
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 32, "save_strategy": "no", **options}
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = Trainer(model, arguments, train_dataset=items, callbacks=callbacks)
    trainer.train(**({"resume_from_checkpoint": True} if callbacks and getattr(callbacks[-1], "resume", 0) else {}))
    return trainer


def noise_items(count, shape, classes=3):
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, *shape, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]


class TestNorms:
    @pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
    def test_they_are_those_of_the_dense_matrix(self, case):
        layer, x = case.build(torch.float32)
        found = spectral_norms(nn.Sequential(layer), x)["0"]
        assert found == pytest.approx(dense_norm(layer, one_row(layer, x.shape)), rel=1e-4)

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_the_scale_of_a_weight_does_not_matter(self, scale):
        layer = randomised(nn.Conv2d(4, 5, 3, padding=1))
        layer.weight.data *= scale
        found = spectral_norms(nn.Sequential(layer), torch.zeros(1, 4, 8, 8))["0"]
        assert found == pytest.approx(dense_norm(layer, (4, 8, 8)), rel=1e-6)

    def test_more_equal_singular_values_than_are_iterated_are_no_obstacle(self):
        layer = nn.Linear(24, 24)
        nn.init.orthogonal_(layer.weight)
        assert spectral_norms(nn.Sequential(layer), torch.zeros(1, 24))["0"] == pytest.approx(1, rel=1e-6)

    def test_a_weight_of_zeros_has_norm_0(self):
        layer = nn.Conv2d(2, 3, 3)
        nn.init.zeros_(layer.weight)
        assert spectral_norms(nn.Sequential(layer), torch.zeros(1, 2, 5, 5)) == {"0": 0.0}

    def test_a_model_of_the_hub_by_its_arguments(self):
        case = ModelCase("vit", from_config("ViT", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                            intermediate_size=24, image_size=8, patch_size=4), 8)  # fmt: skip
        model = case.build(torch.float32)
        found = spectral_norms(model, {"pixel_values": case.pixels(2, torch.float32)})
        assert any("query" in name or "q_proj" in name for name in found)
        for name, value in found.items():
            layer = model.get_submodule(name)
            shape = (3, 8, 8) if isinstance(layer, nn.Conv2d) else (layer.in_features,)
            assert value == pytest.approx(dense_norm(layer, shape), rel=1e-4), name

    def test_a_layer_called_on_several_sizes_counts_with_the_largest(self):
        class Pyramid(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = randomised(nn.Conv2d(2, 2, 3, padding=1))

            def forward(self, x):
                return self.conv(x[:, :, ::2, ::2]), self.conv(x), self.conv(x[:, :, :3, :3])

        model = Pyramid()
        found = spectral_norms(model, torch.zeros(1, 2, 6, 6))["conv"]
        assert found == pytest.approx(dense_norm(model.conv, (2, 6, 6)), rel=1e-4)

    def test_the_model_is_left_as_it_was(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        spectral_norms(model, torch.randn(8, 4))
        assert model.training and not any(module._forward_pre_hooks for module in model.modules())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


QUICK = ("linear_tokens", "conv1d", "conv_grouped", "conv_circular")
CLIPPED = [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow) for case in LAYERS]


class TestClipping:
    @pytest.mark.parametrize("case", CLIPPED)
    def test_every_layer_comes_down_to_c(self, case, tmp_path):
        layer, x = case.build(torch.float32)
        layer.weight.data *= 3
        head = nn.Flatten(), nn.LazyLinear(3)
        model = Net(layer, *head)
        model(x)
        clip = FastClip(every=2)
        fit(model, tmp_path, noise_items(8, x.shape[1:]), [clip], max_steps=2, learning_rate=1e-4)
        for name, shape in watched(model, plain_layers(model), x).items():
            found = dense_norm(model.get_submodule(name), shape)
            assert found <= 1.05
            assert clip.norms[name] == pytest.approx(found, rel=1e-3)

    def test_a_linear_layer_loses_what_is_above_c_and_nothing_else(self, tmp_path):
        model = Net(randomised(nn.Linear(6, 5)), nn.Flatten())
        left, sigma, right = torch.linalg.svd(model.layers[0].weight.detach().double(), full_matrices=False)
        clip = FastClip(c=float(sigma[1:3].mean()))
        model.train()
        fit(model, tmp_path, noise_items(8, (6,)), [clip], max_steps=1, learning_rate=0.0)
        expected = (left * sigma.clamp(max=clip.c)) @ right
        assert (model.layers[0].weight - expected).norm() < 0.02 * clip.c

    def test_a_norm_below_c_stays(self, tmp_path):
        model = Net(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        fit(model, tmp_path, noise_items(8, (1, 4, 4)), [FastClip(c=50.0)], max_steps=1, learning_rate=0.0)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_a_convolution_keeps_more_than_if_it_were_scaled(self, tmp_path):
        conv = randomised(nn.Conv2d(8, 8, 3, padding=1))
        before, high = conv.weight.detach().clone(), dense_norm(conv, (8, 8, 8))
        model = Net(conv.float(), nn.Flatten(), nn.Linear(512, 3))
        fit(model, tmp_path, noise_items(8, (8, 8, 8)), [FastClip(c=0.8 * high)], max_steps=1, learning_rate=0.0)
        change, scaling = float((conv.weight.detach() - before).norm()), 0.2 * float(before.norm())
        assert dense_norm(conv, (8, 8, 8)) <= 0.8 * 1.011 * high
        assert change < 0.7 * scaling

    def test_checkpoints_and_evaluations_see_clipped_weights(self, tmp_path):
        seen = []

        class Look(TrainerCallback):
            def on_save(self, args, state, control, model=None, **_):
                seen.append(max(spectral_norms(model, torch.zeros(1, 1, 4, 4)).values()))

        model = Net(nn.Flatten(), randomised(nn.Linear(16, 12)), nn.ReLU(), randomised(nn.Linear(12, 3)))
        options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "learning_rate": 0.1}
        fit(model, tmp_path, noise_items(64, (1, 4, 4)), [FastClip(every=50), Look()], **options)
        assert len(seen) == 2 and max(seen) <= 1.011

    def test_a_run_that_is_gone_on_with_ends_as_one_left_alone(self, tmp_path):
        def make():
            set_seed(0)
            return Net(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), randomised(nn.Linear(64, 3)))

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                control.should_training_stop = state.global_step == 7

        items = noise_items(64, (1, 4, 4))
        options = {"save_strategy": "steps", "save_steps": 6, "max_steps": 12, "learning_rate": 0.05}
        options["per_device_train_batch_size"] = 8
        whole, cut = make(), make()
        fit(whole, tmp_path / "a", items, [FastClip(every=2)], **options)
        fit(cut, tmp_path / "b", items, [FastClip(every=2), Stop()], **options)
        again, clip = make(), FastClip(every=2)
        clip.resume = True
        fit(again, tmp_path / "b", items, [clip], **options)
        expected = whole.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())

    @pytest.mark.parametrize("choice", ["leave", "clip"])
    def test_batch_norm_is_left_or_clamped(self, tmp_path, choice):
        model = Net(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        norm = model.layers[2]
        norm.weight.data = torch.tensor([5.0, -5.0, 0.1, -0.1, 5.0, 0.0])
        fit(model, tmp_path, noise_items(32, (1, 2, 2)), [FastClip(batch_norm=choice)], max_steps=1, learning_rate=0.0)
        gains = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        if choice == "leave":
            assert norm.weight.tolist() == pytest.approx([5.0, -5.0, 0.1, -0.1, 5.0, 0.0])
        else:
            assert gains[[0, 1, 4]].tolist() == pytest.approx([1, -1, 1])
            assert norm.weight[[2, 3, 5]].tolist() == pytest.approx([0.1, -0.1, 0])

    def test_no_hook_is_left_behind(self, tmp_path):
        model = Net(nn.Flatten(), nn.Linear(4, 3))
        fit(model, tmp_path, noise_items(8, (1, 2, 2)), [FastClip()], max_steps=1)
        assert not any(module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize(
        ("options", "value"), [({"c": 0.0}, "c=0.0"), ({"every": 0}, "every=0"), ({"batch_norm": "off"}, "'off'")]
    )
    def test_an_option_out_of_range_is_refused(self, options, value):
        with pytest.raises(UnlearningError, match=value):
            FastClip(**options)

    def test_sharded_weights_are_refused(self):
        class Sharded:
            fsdp, deepspeed = ["full_shard"], None

        with pytest.raises(UnlearningError, match=r"whole weights.*leave fsdp out"):
            FastClip().on_train_begin(Sharded(), None, None, model=nn.Linear(1, 1))

        class DTensor(torch.Tensor):
            """As accelerate's FSDP leaves parameters behind, whatever the arguments say."""

        Sharded.fsdp, model = None, nn.Linear(1, 1)
        FastClip().on_train_begin(Sharded(), None, None, model=model)
        model.weight = nn.Parameter(torch.zeros(1, 1).as_subclass(DTensor))
        with pytest.raises(UnlearningError, match=r"whole weights.*leave fsdp out"):
            FastClip().on_train_begin(Sharded(), None, None, model=model)


def digits():
    """scikit-learn's 8 x 8 digits in [-1, 1]: 1,347 to train on, 450 to test."""
    data = load_digits()
    pixels = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    parts = train_test_split(range(len(pixels)), test_size=450, random_state=0, stratify=data.target)
    return [[{"pixel_values": pixels[i], "labels": torch.tensor(data.target[i])} for i in rows] for rows in parts]


@pytest.mark.slow
def test_a_network_on_digits_stays_as_good_at_norm_1(tmp_path):
    train, test = digits()
    accuracy, options = {}, {"num_train_epochs": 12, "learning_rate": 3e-3, "lr_scheduler_type": "cosine"}
    for name, callbacks in {"free": [], "clipped": [FastClip(c=1.0, every=10)]}.items():
        set_seed(0)
        model = Net(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
        fit(model, tmp_path / name, train, callbacks, **options)
        pixels, labels = (torch.stack([item[key] for item in test]) for key in ("pixel_values", "labels"))
        with torch.no_grad():
            accuracy[name] = float((model.eval()(pixels)["logits"].argmax(1) == labels).float().mean())
        shapes = watched(model, plain_layers(model), pixels[:2])
        norms = {layer: dense_norm(model.get_submodule(layer), shape) for layer, shape in shapes.items()}
        assert len(norms) == 5
        assert (max(norms.values()) <= 1.05) is (name == "clipped"), norms
    assert accuracy["free"] > 0.96 and accuracy["clipped"] > accuracy["free"] - 0.01, accuracy
