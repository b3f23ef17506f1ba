from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import DistributedType
from cases import LAYERS
from sweep import sweep
from torch import nn

from zspag_hf.errors import UnlearningError
from zspag_hf.pipeline.constraint import HardConstraint, SoftConstraint, attach, freeze_unconstrained
from zspag_hf.pipeline.grams import collect_grams
from zspag_hf.pipeline.layers import as_layer, constrained_layers
from zspag_hf.pipeline.subspaces import Basis, Spectrum
from zspag_hf.trainer.refusals import check_processes

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.5),
}
RANKS = {
    "one": lambda d: 1,
    "half": lambda d: d // 2,
    "over_half": lambda d: min(d // 2 + 1, d - 1),
    "all_but_one": lambda d: d - 1,
}
layer_cases = pytest.mark.parametrize("layer_case", LAYERS, ids=lambda case: case.name)
optimizers = pytest.mark.parametrize(
    "optimizer", ["sgd", "adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nesterov", "rmsprop"))]
)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def orthonormal(d, rank):
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q[:, :rank]


def random_basis(layer, rank):
    """Another subspace for each group; the ranks of the groups alternate, so that both storages mix."""
    ranks = [rank if group % 2 == 0 else max(1, layer.d_in - rank) for group in range(layer.groups)]
    return Basis(tuple(orthonormal(layer.d_in, r) for r in ranks))


def random_damping(layer):
    rows = torch.randn(layer.groups, 2 * layer.d_in, layer.d_in, dtype=torch.float64)
    rows = rows * torch.logspace(0, -1.5, layer.d_in, dtype=torch.float64)
    return Spectrum({"it": rows.mT @ rows}).damping("it", 0.9)


def train(module, x, optimizer, steps=6):
    """Real steps: two micro-batches a step, clipped gradients, targets of their own."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        optimizer.zero_grad()
        for half in x.chunk(2):
            generator = torch.Generator().manual_seed(step)
            out = module(half)
            target = torch.randn(out.shape, generator=generator).to(out)
            (F.mse_loss(out, target) / 2).backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()


def displacement(layer, before):
    return layer.matrix(layer.weight.detach().double()) - layer.matrix(before.double())


def leak(layer, before, basis):
    """||(W - W0) U|| / ||W - W0||, the largest over the groups, past what rounding W to float32 alone costs."""
    worst = 0.0
    for m, w, u in zip(displacement(layer, before), layer.matrix(before.double()), basis.vectors, strict=True):
        rounding = torch.finfo(torch.float32).eps * w.norm()
        worst = max(worst, float(((m @ u).norm() - rounding).clamp_min(0) / m.norm().clamp_min(1e-30)))
    return worst


class TestHard:
    @layer_cases
    @optimizers
    def test_the_displacement_leaves_the_subspace_alone(self, layer_case, optimizer):
        for rank, of_width in RANKS.items():
            module, x = layer_case.build(torch.float32)
            layer, before = as_layer("it", module), module.weight.detach().clone()
            basis = random_basis(layer, of_width(layer.d_in))
            chosen = OPTIMIZERS[optimizer](module.parameters())
            attach(HardConstraint({"it": layer}, {"it": basis}), chosen)
            train(module, x, chosen)
            assert displacement(layer, before).flatten(1).norm(dim=1).min() > 1e-3, rank
            assert leak(layer, before, basis) < 1e-5, rank

    @layer_cases
    def test_a_subspace_that_is_everything_stops_the_weight(self, layer_case):
        module, x = layer_case.build(torch.float32)
        layer, before = as_layer("it", module), module.weight.detach().clone()
        basis = Basis(tuple(orthonormal(layer.d_in, layer.d_in) for _ in range(layer.groups)))
        optimizer = OPTIMIZERS["adamw"](module.parameters())
        attach(HardConstraint({"it": layer}, {"it": basis}), optimizer)
        train(module, x, optimizer)
        assert torch.equal(module.weight, before)

    @layer_cases
    def test_nothing_but_the_subspace_is_lost(self, layer_case):
        """A constant gradient G: n steps of plain descent end at W0 - n lr G (I - U U^T)."""
        for rank, of_width in RANKS.items():
            module, _ = layer_case.build(torch.float64)
            layer, before = as_layer("it", module), module.weight.detach().clone()
            basis = random_basis(layer, of_width(layer.d_in))
            optimizer = torch.optim.SGD([module.weight], lr=0.1)
            attach(HardConstraint({"it": layer}, {"it": basis}), optimizer)
            gradient = torch.randn_like(module.weight)
            for _ in range(4):
                module.weight.grad = gradient.clone()
                optimizer.step()
            u = [vectors @ vectors.T for vectors in basis.vectors]
            g = layer.matrix(gradient)
            expected = torch.stack([-0.4 * (g[i] - g[i] @ u[i]) for i in range(layer.groups)])
            torch.testing.assert_close(displacement(layer, before), expected, msg=lambda m, rank=rank: rank + m)

    @pytest.mark.parametrize("rank", RANKS)
    def test_a_second_projection_changes_nothing(self, rank):
        module = nn.Linear(10, 4).double()
        layer = as_layer("it", module)
        constraint = HardConstraint({"it": layer}, {"it": random_basis(layer, RANKS[rank](10))})
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        constraint.after_step()
        once = module.weight.detach().clone()
        constraint.after_step()
        torch.testing.assert_close(module.weight.detach(), once, rtol=0, atol=1e-14)

    def test_outputs_on_the_protected_rows_stay(self):
        """What it is for: after training, the layer answers the protected inputs as before and others differently."""
        module = nn.Linear(12, 4)
        protected, other = torch.randn(5, 12), torch.randn(20, 12)
        gram = protected.double().T @ protected.double()
        basis = Spectrum({"it": gram[None]}).basis("it", 1.0)
        before = module(protected).detach(), module(other).detach()
        layer, optimizer = as_layer("it", module), OPTIMIZERS["adamw"]([module.weight])
        attach(HardConstraint({"it": layer}, {"it": basis}), optimizer)
        train(module, other, optimizer, steps=30)
        assert (module(protected) - before[0]).abs().max() < 1e-5
        assert (module(other) - before[1]).abs().mean() > 0.1

    def test_the_smaller_form_is_stored(self):
        """U and W0 U up to half the width, else W0 and the complement."""
        layer = as_layer("it", nn.Linear(10, 4))

        def stored(rank):
            (part,) = HardConstraint({"it": layer}, {"it": random_basis(layer, rank)}).parts
            return sum(x.numel() for x in part if isinstance(x, torch.Tensor))

        assert [stored(rank) for rank in (1, 5, 6, 9)] == [10 + 4, 50 + 20, 40 + 40, 40 + 10]

    def test_a_layer_without_a_basis_is_free(self):
        free, held = nn.Linear(6, 6), nn.Linear(6, 6)
        twin = nn.Linear(6, 6)
        twin.load_state_dict(free.state_dict())
        layers = {"free": as_layer("free", free), "held": as_layer("held", held)}
        constraint = HardConstraint(layers, {"held": random_basis(layers["held"], 3)})
        for module, constrained in ((free, True), (twin, False)):
            optimizer = OPTIMIZERS["sgd"](module.parameters())
            if constrained:
                attach(constraint, optimizer)
            train(module, torch.ones(4, 6), optimizer)
        assert torch.equal(free.weight, twin.weight)

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_projecting_the_gradient_instead_leaks(self, optimizer):
        """The faulty form fails the bound above: momentum, scaling and decay all leave the subspace."""
        case = next(case for case in LAYERS if case.name == "linear_vectors")
        module, x = case.build(torch.float32)
        layer, before = as_layer("it", module), module.weight.detach().clone()
        basis = random_basis(layer, 3)
        u = basis.vectors[0].float()
        chosen = OPTIMIZERS[optimizer](module.parameters())

        def project(*_):
            module.weight.grad -= module.weight.grad @ u @ u.T

        chosen.register_step_pre_hook(project)
        train(module, x, chosen)
        assert leak(layer, before, basis) > 1e-2


class Twin:
    """Hooks around the constraint's own: every raw update that the optimizer made, before the constraint saw it."""

    def __init__(self, layer, optimizer):
        self.layer, self.updates = layer, []
        optimizer.register_step_pre_hook(self.remember)
        optimizer.register_step_post_hook(self.record)

    def remember(self, *_):
        self.before = self.layer.weight.detach().clone()

    def record(self, *_):
        self.updates.append(displacement(self.layer, self.before))


class TestSoft:
    @layer_cases
    @optimizers
    def test_every_update_is_damped(self, layer_case, optimizer):
        """Displacement = s sum_t (raw update t) D, momentum and weight decay included."""
        module, x = layer_case.build(torch.float64)
        layer, before = as_layer("it", module), module.weight.detach().clone()
        damping = random_damping(layer)
        chosen = OPTIMIZERS[optimizer](module.parameters())
        twin = Twin(layer, chosen)
        attach(SoftConstraint({"it": layer}, {"it": damping}, step_scale=0.7), chosen)
        train(module, x, chosen)
        assert len(twin.updates) == 6
        torch.testing.assert_close(displacement(layer, before), 0.7 * sum(twin.updates) @ damping)

    def test_step_scale_may_change_between_steps(self):
        module, x = nn.Linear(6, 4).double(), torch.randn(4, 6, dtype=torch.float64)
        layer, before = as_layer("it", module), module.weight.detach().clone()
        damping, optimizer = random_damping(layer), OPTIMIZERS["adamw"](module.parameters())
        twin, constraint = Twin(layer, optimizer), SoftConstraint({"it": layer}, {"it": damping})
        attach(constraint, optimizer)
        train(module, x, optimizer, steps=1)
        constraint.step_scale = 3.0
        train(module, x, optimizer, steps=1)
        expected = (twin.updates[0] + 3 * twin.updates[1]) @ damping
        torch.testing.assert_close(displacement(layer, before), expected)

    def test_dampings_may_be_shared(self):
        modules = {name: nn.Linear(6, 4) for name in "qk"}
        layers = {name: as_layer(name, module) for name, module in modules.items()}
        shared = random_damping(layers["q"])
        constraint = SoftConstraint(layers, {"q": shared, "k": shared})
        assert constraint.dampings["q"] is constraint.dampings["k"]

    def test_attached_twice_damps_once(self):
        module, x = nn.Linear(6, 4).double(), torch.randn(4, 6, dtype=torch.float64)
        layer, before = as_layer("it", module), module.weight.detach().clone()
        damping, optimizer = random_damping(layer), OPTIMIZERS["sgd"](module.parameters())
        twin, constraint = Twin(layer, optimizer), SoftConstraint({"it": layer}, {"it": damping})
        attach(constraint, optimizer)
        attach(constraint, optimizer)
        train(module, x, optimizer)
        torch.testing.assert_close(displacement(layer, before), sum(twin.updates) @ damping)
        assert constraint.before == {}, "no copy of the weights outlives the step"

    def test_extremes(self):
        """No damping is the plain optimizer; full damping, or a step of 0, is no step."""
        x, eye = torch.randn(4, 6), torch.eye(6, dtype=torch.float64)[None]
        start = nn.Linear(6, 4)

        def run(damping, scale=1.0):
            module = nn.Linear(6, 4)
            module.load_state_dict(start.state_dict())
            optimizer = OPTIMIZERS["sgd"](module.parameters())
            if damping is not None:
                attach(SoftConstraint({"it": as_layer("it", module)}, {"it": damping}, scale), optimizer)
            train(module, x, optimizer)
            return module.weight.detach()

        torch.testing.assert_close(run(eye), run(None))
        assert torch.equal(run(0 * eye), start.weight) and torch.equal(run(eye, 0.0), start.weight)

    def test_used_directions_move_less_than_unused_ones(self):
        module, x = nn.Linear(4, 3).double(), torch.randn(8, 4, dtype=torch.float64)
        layer, before = as_layer("it", module), module.weight.detach().clone()
        gram = torch.diag(torch.tensor([0.9, 0.09, 0.01, 0.0], dtype=torch.float64))[None]
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        attach(SoftConstraint({"it": layer}, {"it": Spectrum({"it": gram}).damping("it", 0.99)}), optimizer)
        train(module, x, optimizer)
        columns = displacement(layer, before)[0].norm(dim=0)
        assert columns[0] < columns[1] < columns[2]

    def test_frozen_layers_are_left_alone(self):
        module = nn.Linear(6, 4)
        module.weight.requires_grad_(False)
        constraint = SoftConstraint({"it": as_layer("it", module)}, {"it": random_damping(as_layer("it", module))})
        constraint.before_step()
        assert constraint.before == {}
        constraint.after_step()


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_removed_hooks_constrain_no_longer(kind):
    module, x = nn.Linear(6, 4), torch.randn(4, 6)
    layer = as_layer("it", module)
    everything = Basis((torch.eye(6, dtype=torch.float64),))
    constraint = (
        HardConstraint({"it": layer}, {"it": everything})
        if kind == "hard"
        else SoftConstraint({"it": layer}, {"it": torch.zeros(1, 6, 6)})
    )
    optimizer, before = OPTIMIZERS["sgd"](module.parameters()), module.weight.detach().clone()
    handles = attach(constraint, optimizer)
    train(module, x, optimizer)
    assert torch.equal(module.weight, before)
    for handle in handles:
        handle.remove()
    train(module, x, optimizer)
    assert not torch.allclose(module.weight, before)


WHOLE = sweep("vit", "regnet", among=("vit", "swin", "imagegpt", "resnet", "regnet", "mobilenet_v1", "siglip"))


def train_classifier(classifier, pixels, optimizer, steps=4):
    for step in range(steps):
        optimizer.zero_grad()
        for i, half in enumerate(pixels.chunk(2)):
            F.cross_entropy(classifier(half), torch.tensor([step % 5, i, 4])).div(2).backward()
        nn.utils.clip_grad_norm_([p for p in classifier.parameters() if p.grad is not None], 1.0)
        optimizer.step()


@pytest.mark.parametrize("case", WHOLE)
class TestWholeModels:
    @pytest.mark.parametrize("threshold", [0.9, 0.999])
    def test_hard(self, case, threshold):
        classifier, proxies = case.classifier(torch.float32), case.pixels(6, torch.float32, seed=5)
        layers = constrained_layers(classifier.model, lambda: classifier(proxies))
        before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        spectrum = Spectrum(collect_grams(classifier, proxies, torch.tensor([0, 0, 1, 1, 2, 2]), layers))
        bases = {name: spectrum.basis(name, threshold) for name in layers}
        freeze_unconstrained(classifier.model, set(layers))
        optimizer = OPTIMIZERS["adamw"]([p for p in classifier.parameters() if p.requires_grad])
        attach(HardConstraint(layers, bases), optimizer)
        train_classifier(classifier, case.pixels(6, torch.float32), optimizer)
        moved = 0
        for name, layer in layers.items():
            assert leak(layer, before[name], bases[name]) < 1e-5, name
            moved += displacement(layer, before[name]).norm() > 1e-3
        assert moved >= 3

    def test_freezing_leaves_only_the_named_weights(self, case):
        classifier, pixels = case.classifier(torch.float32), case.pixels(6, torch.float32)
        model = classifier.model
        layers = constrained_layers(model, lambda: classifier(pixels))
        chosen = set(list(layers)[1::2])
        train_classifier(classifier, pixels, torch.optim.SGD(model.parameters(), lr=0.0))
        freeze_unconstrained(model, chosen)
        model.zero_grad()
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == {f"{name}.weight" for name in chosen}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_classifier(classifier, pixels, OPTIMIZERS["adamw"](model.parameters()))
        for name, value in model.state_dict().items():
            if name not in trainable:
                assert torch.equal(value, before[name]), name
        assert sum(not torch.equal(model.state_dict()[name], before[name]) for name in trainable) >= len(trainable) - 2

    def test_freezing_again_thaws_what_is_named(self, case):
        classifier, pixels = case.classifier(torch.float32), case.pixels(2, torch.float32)
        names = list(constrained_layers(classifier.model, lambda: classifier(pixels)))
        freeze_unconstrained(classifier.model, {names[-1]})
        freeze_unconstrained(classifier.model, set(names[:2]))
        trainable = {name for name, p in classifier.model.named_parameters() if p.requires_grad}
        assert trainable == {f"{name}.weight" for name in names[:2]}


def test_proxy_inputs_of_the_first_layer_give_the_same_outputs_after_training(vit):
    classifier, proxies = vit.classifier(torch.float32), vit.pixels(2, torch.float32, seed=5)
    layers = constrained_layers(classifier.model, lambda: classifier(proxies))
    first = next(iter(layers))
    basis = Spectrum(collect_grams(classifier, proxies, torch.tensor([0, 1]), layers)).basis(first, 1.0)
    assert basis.vectors[0].shape[1] == 8 < layers[first].d_in, "2 images of 4 patches"
    freeze_unconstrained(classifier.model, {first})
    optimizer = OPTIMIZERS["adamw"]([layers[first].weight])
    attach(HardConstraint(layers, {first: basis}), optimizer)
    before, forget = classifier.predict(proxies), vit.pixels(6, torch.float32)
    forget_before = classifier.predict(forget)
    train_classifier(classifier, forget, optimizer, steps=8)
    after = classifier.predict(proxies)
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert (classifier.predict(forget) - forget_before).abs().max() > 0.1


def test_backends_that_flatten_or_shard_weights_are_refused():
    for kind in DistributedType:
        sharding = kind.value in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA", "TP")
        accelerator = SimpleNamespace(distributed_type=kind, num_processes=1)
        with pytest.raises(UnlearningError, match=kind.value) if sharding else nullcontext():
            check_processes(accelerator, 1)
