"""Retraining: new weights, retained images alone, and crops that depend on seed and step."""

import copy

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from tiny import NAMES, images, tiny_model, tiny_processor, trainer
from torch import nn

from zspag_hf import UnlearningError
from zspag_hf.hub.adapter import ModuleClassifier, ModuleConfig
from zspag_hf.methods import retrain
from zspag_hf.methods.retrain import augmented, check_renewable, renewed

OPTIONS = {"method": "retrain", "forget_classes": ["cat"], "per_device_train_batch_size": 8}
RETAINED = [0, 1, 3, 4]


def plain_model(*layers):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    config = ModuleConfig(id2label=dict(enumerate(NAMES)), image_size=8, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    return ModuleClassifier(config, nn.Sequential(network, *layers))


def drawn(model):
    """What is not the same constant in every new model."""
    return {name: value for name, value in model.named_parameters() if value.unique().numel() > 1}


MODELS = {"vit": tiny_model, "resnet": lambda: tiny_model("resnet"), "plain": plain_model}


class TestRenewed:
    @pytest.mark.parametrize("name", MODELS)
    def test_no_weight_is_the_original_s_and_seeds_differ(self, name):
        original = MODELS[name]()
        before = copy.deepcopy(original.state_dict())
        one, same, other = renewed(original, 0), renewed(original, 0), renewed(original, 1)
        assert type(one) is type(original) and one.state_dict().keys() == before.keys()
        found = drawn(one)
        assert {key for key, value in original.named_parameters() if value.dim() > 1} <= {
            key for key in found if found[key].dim() > 1
        } | {key for key in before if "position" in key or "token" in key}
        for key, value in found.items():
            assert not (value == before[key]).any(), key
            assert torch.equal(value, same.get_parameter(key)) and not torch.equal(value, other.get_parameter(key))
        assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())

    @pytest.mark.parametrize("name", MODELS)
    def test_every_parameter_is_to_be_trained_though_the_original_s_are_frozen(self, name):
        assert all(p.requires_grad for p in renewed(MODELS[name]().requires_grad_(False), 0).parameters())

    def test_statistics_of_batch_norm_begin_anew(self):
        model = plain_model()
        model.module[0][1].running_mean.fill_(3.0)
        assert (renewed(model, 0).module[0][1].running_mean == 0).all()

    def test_the_random_state_is_left_alone(self):
        model = tiny_model()
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        renewed(model, 0)
        assert torch.equal(torch.rand(1), expected)

    def test_code_of_a_repository_is_refused(self):
        kind = type("Theirs", (type(tiny_model()),), {"__module__": "transformers_modules.user.theirs"})
        model = tiny_model()
        model.__class__ = kind
        with pytest.raises(UnlearningError, match="Theirs comes with code of its own"):
            check_renewable(model)

    def test_a_layer_that_does_not_say_how_it_begins_is_refused(self):
        class Scale(nn.Module):
            def __init__(self):
                super().__init__()
                self.factor = nn.Parameter(torch.ones(5))

            def forward(self, x):
                return x * self.factor

        with pytest.raises(UnlearningError, match=r"'1' \(Scale\) does not say"):
            check_renewable(plain_model(Scale()))


class TestAugmented:
    PIXELS = torch.arange(1, 3 * 16 * 8 + 1).reshape(1, 3, 16, 8).expand(64, -1, -1, -1).to(torch.int16)

    def test_a_crop_in_the_middle_is_the_image_and_a_draw_above_a_half_mirrors_it(self):
        draws = torch.tensor([[0.5, 0.5, 0.2], [0.5, 0.5, 0.8]])
        same, mirrored = augmented(self.PIXELS[:2], draws)
        assert torch.equal(same, self.PIXELS[0]) and torch.equal(mirrored, self.PIXELS[0].flip(2))

    def test_each_image_is_a_crop_of_the_padded_one(self):
        """Sides of 16 and 8 are padded by 2 and 1."""
        padded = torch.zeros(3, 20, 10, dtype=torch.int16)
        padded[:, 2:-2, 1:-1] = self.PIXELS[0]
        crops = {}
        for top in range(5):
            for left in range(3):
                crop = padded[:, top : top + 16, left : left + 8]
                crops |= {(top, left, False): crop, (top, left, True): crop.flip(2)}
        draws = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
        found = set()
        for image in augmented(self.PIXELS, draws):
            (place,) = (place for place, crop in crops.items() if torch.equal(crop, image))
            found.add(place)
        assert len(found) > 20, "they are drawn one by one"

    def test_32_pixels_are_padded_by_4(self):
        white = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
        corner = augmented(white, torch.zeros(1, 3))[0, 0]
        assert (corner[:4] == 0).all() and (corner[:, :4] == 0).all() and (corner[4:, 4:] == 255).all()


def coloured(labels):
    """Images whose colour tells their class."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    pictures = [PILImage.new("RGB", (8, 8), colours[label]) for label in labels]
    return Dataset.from_dict({"image": pictures, "label": labels}, features=features)


class TestRuns:
    @pytest.mark.slow
    def test_it_learns_the_retained_classes_and_never_answers_with_the_forgotten_one(self, tmp_path):
        job = trainer(tmp_path, "resnet", retain=coloured(RETAINED * 8), learning_rate=0.01, max_steps=60, **OPTIONS)
        job.train()
        logits = job.run.classifier.predict(job.run.retained.pixels)
        assert (logits.argmax(1) == job.run.retained.labels).all()
        assert not (job.run.classifier.predict(job.run.forget.pixels).argmax(1) == 2).any()
        assert job.model.config.num_labels == 5 and not job.model.training

    def test_the_original_s_weights_and_the_forget_images_leave_no_trace(self, tmp_path):
        weights = []
        for i in range(2):
            model = tiny_model()
            model.vit.layers[0].mlp.fc1.weight.data += i
            forget = images([2] * 4, seed=i)
            job = trainer(
                tmp_path / str(i), model=model, forget=forget, retain=coloured(RETAINED), max_steps=3, **OPTIONS
            )
            job.train()
            weights.append(job.model.state_dict())
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    def test_a_last_batch_of_one_image(self, tmp_path):
        """Batch norm over maps of one pixel has no statistics of it."""
        layers = [nn.Unflatten(1, (5, 1, 1)), nn.BatchNorm2d(5), nn.Flatten()]
        model = plain_model(*layers)
        job = trainer(tmp_path, model=model, retain=coloured([*RETAINED, *RETAINED, 0]), num_train_epochs=2, **OPTIONS)
        job.train()
        assert job.state.global_step == 4 and model.module[2].num_batches_tracked == 2

    def test_draws_are_those_of_the_global_batch_whatever_the_number_of_processes(self, tmp_path, monkeypatch):
        job = trainer(tmp_path, retain=coloured(RETAINED * 2), max_steps=1, **OPTIONS)
        job.train()
        seen = []
        monkeypatch.setattr(retrain, "augmented", lambda pixels, draws: seen.append(draws) or pixels.float() / 255)
        for rank, size in ((0, 1), (0, 2), (1, 2)):
            monkeypatch.setattr(retrain, "rank_and_size", lambda rank=rank, size=size: (rank, size))
            job.args.per_device_train_batch_size = 6 // size
            job.method.step = -1
            rows = slice(rank, 5, size)  # the last batch is not full
            batch = {
                "pixels": job.run.retained.pixels[rows],
                "targets": job.run.plan.targets[rows],
                "weights": torch.ones(5)[rows],
            }
            job.method.compute_loss(job.run, job.model, batch)
        assert torch.equal(seen[0][0::2], seen[1]) and torch.equal(seen[0][1::2], seen[2])

    def test_draws_differ_between_steps_and_between_the_batches_of_one(self, tmp_path):
        job = trainer(tmp_path, retain=coloured(RETAINED), max_steps=1, **OPTIONS)
        job.train()
        first, second = job.method.draws(job.run, 4), job.method.draws(job.run, 4)
        job.run.state.global_step += 1
        third = job.method.draws(job.run, 4)
        assert not any(torch.equal(a, b) for a, b in ((first, second), (first, third), (second, third)))

    @pytest.mark.slow
    def test_a_plain_module_is_retrained(self, tmp_path):
        model = plain_model()
        processor = tiny_processor()
        assert model.image_processor().size == processor.size
        job = trainer(tmp_path, model=model, retain=coloured(RETAINED * 8), learning_rate=0.01, max_steps=60, **OPTIONS)
        job.train()
        assert (job.run.classifier.predict(job.run.retained.pixels).argmax(1) == job.run.retained.labels).all()
