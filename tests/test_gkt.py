"""Gated knowledge transfer: filter and losses by hand, whose weights each step moves, and a run that reads no image."""

import copy

import pytest
import torch
from cases import randomised
from tiny import NAMES, images, tiny_model, tiny_processor, trainer
from torch import nn

from zspag_hf import PixelClassifier, UnlearningError
from zspag_hf.hub.adapter import ModuleClassifier, ModuleConfig
from zspag_hf.methods import gkt
from zspag_hf.methods.generator import NOISE, Generator
from zspag_hf.methods.gkt import Transfer, attention_map, divergence, passes, student_loss, watched
from zspag_hf.methods.retrain import renewed

BEE = [1]  # the class that the tiny models see


def test_the_filter_sums_the_forgotten_classes():
    p = torch.tensor([[0.009, 0.009, 0.982], [0.004, 0.005, 0.991], [0.2, 0.005, 0.795], [0.0, 0.0101, 0.9899]])
    logits = p.double().log() + torch.tensor([[3.0], [-2.0], [0.0], [1.0]])
    assert passes(logits, [0, 1]).tolist() == [False, True, False, False]
    assert passes(logits, [1]).tolist() == [True, True, True, False]


class TestLosses:
    def test_an_attention_map_is_the_mean_square_over_channels_at_unit_length(self):
        tokens = torch.tensor([[[1.0, 5.0], [1.0, 7.0]]])  # mean squares 13 and 25
        expected = torch.tensor([[13.0, 25.0]]) / (13**2 + 25**2) ** 0.5
        torch.testing.assert_close(attention_map(tokens), expected)
        maps = tokens.transpose(1, 2).unsqueeze(2)  # 2 channels, 1 x 2 positions
        assert maps.shape == (1, 2, 1, 2)
        torch.testing.assert_close(attention_map(maps), expected)

    def test_the_divergence_is_from_the_teacher_averaged_over_images_and_classes(self):
        teacher, student = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
        expected = (0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log()) / 4
        torch.testing.assert_close(divergence(student.log() + 1, teacher.log() - 2), expected)

    def test_the_student_s_loss_adds_beta_times_each_layer(self):
        logits = torch.tensor([[1.0, 2.0]])
        one, other = torch.tensor([[[3.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])  # maps (1, 0) and (0, 1)
        torch.testing.assert_close(student_loss(logits, logits, [one, one], [one, other]), torch.tensor(250.0))
        torch.testing.assert_close(student_loss(logits, logits, [], []), torch.tensor(0.0))


LARGE = pytest.param((3, 224, 224), marks=pytest.mark.slow)


@pytest.mark.parametrize("size", [(3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 30, 52), LARGE])
def test_the_generator_makes_images_of_any_size(size):
    made = Generator(*size)(torch.randn(2, NOISE))
    assert made.shape == (2, *size) and 0 <= made.min() < made.max() <= 1


def test_the_generator_of_32_pixels_is_the_published_one():
    kinds = [type(layer).__name__ for layer in Generator(3, 32, 32).layers]
    block = ["Upsample", "Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == ["Linear", "Unflatten", "BatchNorm2d", *block, *block, "Conv2d", "BatchNorm2d", "Sigmoid"]
    assert Generator(3, 32, 32).layers[0].out_features == 128 * 8 * 8


def transfer(model=None, forget_ids=BEE, batch_size=32, **options):
    torch.manual_seed(0)
    teacher = PixelClassifier(tiny_model("resnet") if model is None else model, tiny_processor())
    with torch.no_grad():
        if model is None:  # as sure as an over-fitted one
            teacher.model.classifier[-1].weight.mul_(4)
    student = renewed(teacher.model, 0)
    return Transfer(teacher, student, forget_ids, (3, 8, 8), batch_size, 0.002, 0, **options)


def state(model):
    return copy.deepcopy(model.state_dict())


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class TestTransfer:
    def test_each_step_moves_one_network_and_never_the_teacher(self, monkeypatch):
        loop, moved = transfer(), []
        step, teacher = loop.step, state(loop.classifier.model)

        def told(which, loss):
            before = [[p.clone() for p in one.parameters()] for one in (loop.generator, loop.student)]
            step(which, loss)
            after = [list(one.parameters()) for one in (loop.generator, loop.student)]
            pairs = zip(before, after, strict=True)
            moved.append([any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs])

        monkeypatch.setattr(loop, "step", told)
        loop.run(1)
        assert moved == [[True, False]] + [[False, True]] * gkt.STUDENT_STEPS
        assert same(teacher, loop.classifier.model.state_dict())

    def test_only_images_that_pass_are_taught_on(self, monkeypatch):
        loop, seen = transfer(), []
        loss = gkt.student_loss
        monkeypatch.setattr(
            gkt, "student_loss", lambda mine, teacher, *rest: seen.append(teacher) or loss(mine, teacher, *rest)
        )
        loop.run(2)
        assert seen and all(passes(logits, BEE).all() for logits in seen)
        assert all(gkt.FEWEST <= len(logits) < 32 for logits in seen), "the filter held some back"

    @pytest.mark.slow
    def test_the_student_comes_nearer_to_the_teacher_on_what_it_is_taught(self):
        loop = transfer()
        with torch.no_grad():
            images, logits, _ = loop.let_through(torch.randn(200, NOISE, generator=torch.Generator().manual_seed(9)))
        away = [divergence(loop.student(pixel_values=images).logits, logits).item()]
        loop.run(15)
        away.append(divergence(loop.student(pixel_values=images).logits, logits).item())
        assert away[1] < away[0] / 2

    @pytest.mark.slow
    def test_a_generator_that_never_passes_ends_the_run(self):
        model = tiny_model("resnet")
        with torch.no_grad():
            model.classifier[-1].bias[1] += 50
        with pytest.raises(UnlearningError, match="of 100 batches of generated images none has 2"):
            transfer(model).run(1)

    def test_a_generator_that_stops_passing_is_set_back(self, monkeypatch):
        loop, answers = transfer(), iter([True, False, False, False, True])
        monkeypatch.setattr(gkt, "EMPTY", 3)
        start, set_back, after = state(loop.generator), loop.set_back, []

        def scripted():
            loop.generator.layers[0].weight.data += 1
            return next(answers)

        monkeypatch.setattr(loop, "pseudo_batch", scripted)
        monkeypatch.setattr(loop, "set_back", lambda: set_back() or after.append(state(loop.generator)))
        loop.run(2)
        assert next(answers, None) is None and len(after) == 1 and same(after[0], start)

    def test_a_loss_that_is_not_finite_ends_the_run(self):
        loop = transfer()
        with pytest.raises(UnlearningError, match="loss of the student is not finite"):
            loop.step(1, torch.tensor(float("nan"), requires_grad=True))


def plain_model():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 5)
    )
    config = ModuleConfig(id2label=dict(enumerate(NAMES)), image_size=8, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    return randomised(ModuleClassifier(config, network), gain=4.0).eval()


def test_activations_are_hidden_states_or_a_plain_module_s_convolutions():
    pixels = torch.rand(2, 3, 8, 8)
    assert [tuple(a.shape) for a in watched(tiny_model(), pixels)[1]] == [(2, 5, 16)] * 3
    assert [tuple(a.shape) for a in watched(plain_model(), pixels)[1]] == [(2, 6, 6, 6), (2, 6, 4, 4)]


class TestRuns:
    OPTIONS = {"method": "gkt", "max_steps": 2, "per_device_train_batch_size": 64}

    @pytest.mark.parametrize("name", ["vit", "plain"])
    @pytest.mark.slow
    def test_the_forget_images_are_not_read(self, tmp_path, name):
        """Two runs over other images end alike, with new weights in every layer."""
        weights = []
        for i in range(2):
            model = tiny_model() if name == "vit" else plain_model()
            head = model.classifier if name == "vit" else model.module[-1]
            head.weight.data *= 6
            before = state(model)
            job = trainer(tmp_path / str(i), model=model, forget=images([2] * (4 + i), seed=i), **self.OPTIONS)
            job.train()
            weights.append(state(job.model))
            for layer in job.run.layers:
                assert not (weights[-1][f"{layer}.weight"] == before[f"{layer}.weight"]).any(), layer
        assert same(*weights)
        assert job.report.proxies is None and job.report.timings_s["training"] > 0

    @pytest.mark.slow
    def test_the_seed_decides(self, tmp_path):
        weights = []
        for seed in (0, 1):
            model = tiny_model()
            model.classifier.weight.data *= 6
            job = trainer(tmp_path / str(seed), model=model, seed=seed, **self.OPTIONS)
            job.train()
            weights.append(state(job.model))
        assert not same(*weights)
