"""Gram matrices in little memory: in groups, and in a frame where a layer is too wide for a matrix of its own."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from cases import MODELS, FlatClassifier, ModelCase, Recorder
from sweep import sweep
from tiny import trainer
from torch import nn

from zspag_hf import UnlearningError
from zspag_hf.pipeline import grams
from zspag_hf.pipeline.constraint import HardConstraint, SoftConstraint, damped
from zspag_hf.pipeline.gradients import layer_gradients
from zspag_hf.pipeline.grams import collect_grams, find_frames, framed, groups_within, too_wide
from zspag_hf.pipeline.influence import divided, kfac
from zspag_hf.pipeline.layers import Layer, constrained_layers
from zspag_hf.pipeline.subspaces import Spectrum, free_energy

LABELS = torch.tensor([3, 0, 3, 1, 0, 3, 1, 1])
CASES = {case.name: case for case in MODELS}
SOME = sweep("vit", "regnet", among=("vit", "resnet", "regnet", "siglip", "imagegpt"))
WIDTH = 6


@pytest.fixture(autouse=True)
def several_batches(monkeypatch):
    monkeypatch.setattr(grams, "ROW_BATCH", 3)


@pytest.fixture(params=SOME)
def setting(request):
    return prepare(request.param)


def prepare(case):
    classifier, pixels = case.classifier(), case.pixels(len(LABELS))
    return classifier, pixels, constrained_layers(classifier.model, lambda: classifier(pixels))


def rows_of(classifier, pixels, layer):
    """Every input row of one layer, ``(groups, n, d_in)``, by a hook of this test's own."""
    modules = {str(i): module for i, module in enumerate((layer.module, *layer.sharers))}
    with Recorder(modules) as seen, torch.no_grad():
        classifier(pixels)
    return torch.cat([layer.inputs(x) for inputs in seen.inputs.values() for x in inputs], dim=1)


def frames_of(monkeypatch, classifier, pixels, layers, width=WIDTH, **options):
    monkeypatch.setattr(grams, "FRAME_WIDTH", width)
    return find_frames(classifier, pixels, layers, list(layers), **options)


def gigabytes(layer):
    return 8 * layer.groups * layer.width**2 / 1e9


class TestGroups:
    @staticmethod
    def layers(*widths):
        return {str(i): SimpleNamespace(groups=1 + i % 2, width=width) for i, width in enumerate(widths)}

    @pytest.mark.parametrize("most", [1e-12, 2e-6, 5e-6, 2e-5, float("inf")])
    def test_every_layer_is_in_one_group_that_fits(self, most):
        layers = self.layers(100, 300, 100, 100, 700, 50, 50, 50)
        groups = groups_within(layers, most)
        assert [name for group in groups for name in group] == list(layers), "in order"
        assert all(group[name] is layers[name] for group in groups for name in group)
        for group in groups:
            assert len(group) == 1 or sum(map(gigabytes, group.values())) <= most
        for group, after in pairwise(groups):
            together = [*group.values(), next(iter(after.values()))]
            assert sum(map(gigabytes, together)) > most, "no pass more than needed"

    def test_one_group_where_there_is_room_and_one_a_layer_where_there_is_none(self):
        layers = self.layers(100, 300, 100)
        assert len(groups_within(layers, float("inf"))) == 1 and len(groups_within(layers, 1e-12)) == 3

    @pytest.mark.parametrize("most", [1e-12, 1e-6, 6e-6])
    def test_grams_are_the_same_in_groups(self, setting, most):
        classifier, pixels, layers = setting
        whole = collect_grams(classifier, pixels, LABELS, layers)
        parts = collect_grams(classifier, pixels, LABELS, layers, max_memory_gb=most)
        assert list(whole) == list(parts)
        for name in layers:
            torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-12)

    def test_memory_bounds_what_is_summed_at_once(self, monkeypatch):
        """Matrices that one pass sums, and no pass for layers that read what another reads."""
        classifier, pixels, layers = prepare(CASES["vit"])
        seen, visit = [], grams.visit_inputs

        def watched(classifier, pixels, layers, *arguments):
            seen.append(dict(layers))
            visit(classifier, pixels, layers, *arguments)

        monkeypatch.setattr(grams, "visit_inputs", watched)
        most = 1.5 * max(map(gigabytes, layers.values()))
        found = collect_grams(classifier, pixels, LABELS, layers, max_memory_gb=most)
        traces, *passes = seen
        assert 1 < len(passes) < len(traces) and len({id(gram) for gram in found.values()}) == len(traces) < len(layers)
        assert [name for group in passes for name in group] == list(traces)
        assert all(len(group) == 1 or sum(map(gigabytes, group.values())) <= most for group in passes)


class TestTooWide:
    @pytest.fixture
    def layers(self, monkeypatch):
        monkeypatch.setattr(grams, "FRAME_WIDTH", 64)
        widths = {"a": 100, "b": 400, "c": 60, "d": 200, "e": 400}
        return {n: SimpleNamespace(groups=1, d_in=width) for n, width in widths.items()}

    def test_nothing_where_everything_fits(self, layers):
        assert too_wide(layers, 1.0) == []

    def test_the_widest_first_until_the_others_fit(self, layers):
        kept = {name: 4 * layer.d_in**2 / 1e9 for name, layer in layers.items()}
        assert too_wide(layers, sum(kept.values()) - 1e-9) != []
        decomposed = 3 * 8 * 400**2 / 1e9
        assert set(too_wide(layers, decomposed * 0.99)) == {"b", "e"}, "one matrix, decomposed, is too much"

    def test_one_of_two_equals_may_be_enough(self, layers):
        """Which is why a frame counts when layers are compared by what they read."""
        kept = sum(4 * layer.d_in**2 for layer in layers.values()) / 1e9
        layers |= {str(i): SimpleNamespace(groups=1, d_in=100) for i in range(2000)}
        kept += 2000 * 4 * 100**2 / 1e9
        assert too_wide(layers, kept - 1e-9) == ["b"]

    def test_no_layer_narrower_than_a_frame(self, layers):
        assert set(too_wide(layers, 1e-12)) == {"a", "b", "d", "e"}


class TestFrames:
    def test_columns_are_orthonormal(self, setting, monkeypatch):
        classifier, pixels, layers = setting
        found = frames_of(monkeypatch, classifier, pixels, layers)
        assert list(found) == list(layers)
        for name, layer in layers.items():
            columns = found[name].columns.double()
            width = min(WIDTH, layer.d_in)
            assert columns.shape == (layer.groups, layer.d_in, width)
            eye = torch.eye(width, dtype=torch.float64).expand(layer.groups, -1, -1)
            torch.testing.assert_close(columns.mT @ columns, eye, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("batch_size", [64, 3])
    def test_missed_is_the_energy_outside(self, setting, monkeypatch, batch_size):
        classifier, pixels, layers = setting
        monkeypatch.setattr(grams, "ROW_BATCH", batch_size)
        found = frames_of(monkeypatch, classifier, pixels, layers)
        some = 0
        for name, layer in layers.items():
            rows, columns = rows_of(classifier, pixels, layer), found[name].columns.double()
            outside = rows - rows @ columns @ columns.mT
            expected = float(outside.square().sum() / rows.square().sum().clamp_min(1e-300))
            assert found[name].missed == pytest.approx(expected, abs=1e-6), name
            some += expected > 0.01
        assert some, "a frame of six columns misses something"

    def test_nearly_the_best_subspace_is_found(self, setting, monkeypatch):
        """Where a layer has one group, no six columns hold more than the leading eigenvectors."""
        classifier, pixels, layers = setting
        found = frames_of(monkeypatch, classifier, pixels, layers)
        for name, layer in layers.items():
            if layer.groups > 1:
                continue
            rows = rows_of(classifier, pixels, layer)[0]
            values = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
            least = float(values[WIDTH:].sum() / values.sum())
            assert least - 1e-6 <= found[name].missed <= 1.5 * least + 0.01, name

    def test_nothing_is_missed_where_the_width_suffices(self, setting, monkeypatch):
        classifier, pixels, layers = setting
        for name, frame in frames_of(monkeypatch, classifier, pixels, layers, width=1024).items():
            assert frame.missed == pytest.approx(0, abs=1e-6), name
            assert frame.columns.shape[-1] == layers[name].d_in

    def test_few_rows_need_few_columns(self, monkeypatch):
        """Eight images give a linear layer eight rows at most, however wide it is."""
        model = FlatClassifier(nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 3))
        classifier, pixels, layers = prepare(ModelCase("wide", lambda: model, 8))
        found = frames_of(monkeypatch, classifier, pixels, layers, width=10)
        assert found["layers.1"].columns.shape == (1, 192, 10) and found["layers.1"].missed < 1e-6
        alone = collect_grams(classifier, pixels, LABELS, framed(layers, found))["layers.1"]
        assert alone.shape == (1, 10, 10) and float(alone[0].trace()) == pytest.approx(1)

    def test_layers_that_read_the_same_share_a_frame(self, monkeypatch):
        classifier, pixels, layers = prepare(CASES["vit"])
        found = frames_of(monkeypatch, classifier, pixels, layers)
        query, key = (f"vit.layers.0.attention.{part}_proj" for part in "qk")
        assert found[query] is found[key] and found[query] is not found["classifier"]

    def test_only_the_named_layers_get_one(self, monkeypatch):
        classifier, pixels, layers = prepare(CASES["vit"])
        monkeypatch.setattr(grams, "FRAME_WIDTH", WIDTH)
        found = find_frames(classifier, pixels, layers, ["classifier"])
        changed = framed(layers, found)
        assert [n for n, layer in changed.items() if layer.frame is not None] == ["classifier"] == list(found)
        assert all(changed[n] is layer for n, layer in layers.items() if n != "classifier")
        assert list(changed) == list(layers) and changed["classifier"].width == WIDTH

    def test_the_seed_decides(self, monkeypatch):
        classifier, pixels, layers = prepare(CASES["vit"])
        one, again, other = (frames_of(monkeypatch, classifier, pixels, layers, seed=s) for s in (0, 0, 1))
        name = "vit.layers.0.mlp.fc1"
        assert torch.equal(one[name].columns, again[name].columns)
        assert not torch.equal(one[name].columns, other[name].columns)


def with_frames(monkeypatch, case, width=WIDTH, names=None):
    """Classifier, pixels, layers as they are, layers with frames."""
    classifier, pixels, layers = prepare(case)
    monkeypatch.setattr(grams, "FRAME_WIDTH", width)
    return classifier, pixels, layers, framed(layers, find_frames(classifier, pixels, layers, names or list(layers)))


class TestInAFrame:
    @pytest.fixture(params=SOME)
    def setting(self, request, monkeypatch):
        return with_frames(monkeypatch, request.param)

    def test_grams_are_those_of_the_coordinates(self, setting):
        classifier, pixels, layers, narrow = setting
        found = collect_grams(classifier, pixels, LABELS, narrow)
        for name, layer in narrow.items():
            coordinates = {k: rows_of(classifier, pixels[k == LABELS], layers[name]) for k in LABELS.unique().tolist()}
            expected = 0
            for rows in coordinates.values():
                inside = rows @ layer.frame.double()
                gram = inside.mT @ inside
                expected = expected + gram / torch.einsum("gii->", gram).clamp_min(1e-300) / len(coordinates)
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-11)

    def test_a_mix_of_layers_with_and_without_a_frame(self, monkeypatch):
        """Also where one of several layers that read the same input has one: each has a matrix of its own width."""
        query = "vit.layers.0.attention.q_proj"
        classifier, pixels, layers, narrow = with_frames(monkeypatch, CASES["vit"], names=[query])
        found = collect_grams(classifier, pixels, LABELS, narrow)
        dense = collect_grams(classifier, pixels, LABELS, layers)
        for name, layer in narrow.items():
            assert found[name].shape[-1] == layer.width == (WIDTH if name == query else layer.d_in), name
            if name != query:
                torch.testing.assert_close(found[name], dense[name], rtol=0, atol=1e-12)

    def test_a_soft_update_is_the_dense_formula(self, setting):
        """W_before + s (W - W_before) (I - F (I - D) F^T), in every group."""
        classifier, pixels, _, narrow = setting
        dampings = Spectrum(collect_grams(classifier, pixels, LABELS, narrow)).dampings(0.9)
        for name, layer in narrow.items():
            update = torch.randn_like(layer.matrix(layer.weight))
            f, d = layer.frame.double(), dampings[name].double()
            dense = torch.eye(layer.d_in).double() - f @ (torch.eye(layer.width).double() - d) @ f.mT
            torch.testing.assert_close(damped(layer, update, dampings[name]), update @ dense, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("threshold", [0.5, 0.999])
    def test_a_hard_constraint_takes_away_the_leading_directions_in_the_frame_and_no_others(self, setting, threshold):
        """(W - W0) (I - U U^T), U = F V, V the eigenvectors of the coordinates' matrix."""
        classifier, pixels, _, narrow = setting
        bases = Spectrum(collect_grams(classifier, pixels, LABELS, narrow)).bases(threshold)
        constraint = HardConstraint(narrow, bases)
        before = {name: layer.weight.detach().clone() for name, layer in narrow.items()}
        moves = {name: torch.randn_like(weight) for name, weight in before.items()}
        with torch.no_grad():
            for name, layer in narrow.items():
                layer.weight.add_(moves[name])
        constraint.after_step()
        for name, layer in narrow.items():
            change, move = (layer.matrix(w) for w in (layer.weight.detach() - before[name], moves[name]))
            for group, vectors in enumerate(bases[name].vectors):
                u = layer.frame[group].double() @ vectors
                torch.testing.assert_close(change[group] @ u, 0 * (change[group] @ u), rtol=0, atol=1e-5)
                torch.testing.assert_close(change[group], move[group] - move[group] @ u @ u.T, rtol=0, atol=1e-5)

    def test_a_soft_constraint_applies_it_to_each_step(self, setting):
        classifier, pixels, _, narrow = setting
        dampings = Spectrum(collect_grams(classifier, pixels, LABELS, narrow)).dampings(0.9)
        constraint = SoftConstraint(narrow, dampings, step_scale=0.5)
        before = {name: layer.weight.detach().clone() for name, layer in narrow.items()}
        constraint.before_step()
        moves = {name: torch.randn_like(weight) for name, weight in before.items()}
        with torch.no_grad():
            for name, layer in narrow.items():
                layer.weight.add_(moves[name])
        constraint.after_step()
        for name, layer in narrow.items():
            change = layer.matrix(layer.weight.detach() - before[name])
            expected = 0.5 * damped(layer, layer.matrix(moves[name]), dampings[name])
            torch.testing.assert_close(change, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("damping", [0.01, 1.0])
    def test_division_is_the_dense_solution(self, setting, damping):
        """rows (F a F^T + damping)^-1."""
        classifier, pixels, _, narrow = setting
        found = collect_grams(classifier, pixels, LABELS, narrow)
        for name, layer in narrow.items():
            rows = torch.randn_like(layer.matrix(layer.weight))
            f = torch.linalg.qr(layer.frame.double()).Q  # the frame itself is orthonormal to float32 alone
            exact = SimpleNamespace(frame=f)
            a = f @ found[name] @ f.mT + damping * torch.eye(layer.d_in).double()
            dense = torch.linalg.solve(a, rows.mT).mT
            torch.testing.assert_close(divided(exact, rows, found[name], damping), dense, rtol=1e-7, atol=1e-7)

    def test_a_frame_that_misses_nothing_changes_nothing(self, monkeypatch):
        """Ranks, dampings and the inverse-Hessian product are those of the whole matrices."""
        classifier, pixels, layers, wide = with_frames(monkeypatch, CASES["vit"], width=1024)
        labels = LABELS % classifier.num_labels
        results = []
        for these in (layers, wide):
            found = collect_grams(classifier, pixels, LABELS, these)
            g = layer_gradients(classifier, pixels, labels, these)
            results.append((Spectrum(found), found, g, kfac(classifier, pixels, these, found, g)))
        (dense, grams_, g, solved), (spectrum, narrow, _, same) = results
        for name, layer in wide.items():
            assert dense.rank(name, 0.9) == spectrum.rank(name, 0.9)
            update = layer.matrix(g[name])
            one = damped(layers[name], update, dense.damping(name, 0.9))
            other = damped(layer, update, spectrum.damping(name, 0.9))
            torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * float(one.abs().max()))
            torch.testing.assert_close(same[name], solved[name], rtol=0, atol=1e-4 * float(solved[name].abs().max()))
            whole = free_energy(grams_[name], dense.damping(name, 0.9))
            assert free_energy(narrow[name], spectrum.damping(name, 0.9)) == pytest.approx(whole, abs=1e-5)


@pytest.mark.slow
class TestRuns:
    FIXED = {"method": "zspag_paper", "subspace_merge": "gram", "energy_threshold": 0.9, "learning_rate": 0.05}
    NARROW = {"max_steps": 5, "max_memory_gb": 1e-9}

    @pytest.fixture(params=["vit", "resnet"])
    def run(self, request, tmp_path, monkeypatch):
        """A function: a trained run of a family, frames of ten columns for every layer that is wider; and the weights
        that it began with."""
        monkeypatch.setattr(grams, "FRAME_WIDTH", 10)

        def train(**options):
            job = trainer(tmp_path, request.param, **{**self.NARROW, **options})
            before = {name: layer.weight.detach().clone() for name, layer in job.run.layers.items()}
            job.train()
            wide = {name for name, layer in job.run.layers.items() if layer.d_in > 10}
            assert len(wide) > 2
            assert {name for name, layer in job.run.layers.items() if layer.frame is not None} == wide
            return job, before

        return train

    def test_a_hard_run_leaves_the_framed_subspace_alone(self, run):
        job, before = run(**self.FIXED)
        moved = 0
        for layer, group, u, _, q in job.run.plan.constraint.parts:
            change = layer.matrix(layer.weight.detach() - before[layer.name])[group]
            part = change @ u if q is None else change - change @ q @ q.T
            assert part.norm() <= 1e-5 * (1 + change.norm()), layer.name
            if layer.frame is not None and q is None:
                inside = layer.frame[group] @ (layer.frame[group].T @ u)
                torch.testing.assert_close(inside, u, rtol=0, atol=1e-5)
                moved += float(change.norm()) > 1e-4
        assert moved > 2

    @pytest.mark.parametrize("options", [{**FIXED, "constraint": "soft"}, {}], ids=["soft", "default"])
    def test_soft_and_adaptive_runs_train(self, run, options):
        job, _ = run(**{**options, "max_steps": 10})
        facts = {layer["name"]: layer for layer in job.report.layers}
        for name, layer in job.run.layers.items():
            assert torch.isfinite(layer.weight).all()
            assert ("missed" in facts[name]) == (layer.d_in > 10)
            if layer.d_in > 10:
                assert facts[name]["frame_width"] == 10 and 0 <= facts[name]["missed"] < 1
            assert facts[name]["proxy_drift"] >= 0 and 0 <= facts[name]["free_forget_energy"] <= 1 + 1e-9

    def test_only_some_of_the_layers_that_read_the_same_have_a_frame(self, tmp_path, monkeypatch):
        """Memory that suffices once one of q, k and v has one."""
        monkeypatch.setattr(grams, "FRAME_WIDTH", 10)
        query = "vit.layers.0.attention.q_proj"
        monkeypatch.setattr("zspag_hf.methods.stages.too_wide", lambda layers, _: [query])
        job = trainer(tmp_path, **self.FIXED, constraint="soft", max_steps=5)
        job.train()
        assert [name for name, layer in job.run.layers.items() if layer.frame is not None] == [query]
        assert all(layer["weight_change"] > 0 for layer in job.report.layers if ".attention." in layer["name"])


class TestNotFinite:
    @staticmethod
    def broken(value):
        """The second layer reads numbers that are not finite."""
        model = FlatClassifier(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        classifier, pixels, layers = prepare(ModelCase("broken", lambda: model, 2))
        with torch.no_grad():
            classifier.model.layers[1].bias[0] = value
        return classifier, pixels, layers

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_the_layer_is_named(self, value):
        classifier, pixels, layers = self.broken(value)
        with pytest.raises(UnlearningError, match=r"input of layer 'layers.3' is not finite on 8 images"):
            collect_grams(classifier, pixels, LABELS, layers)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_also_on_the_way_to_a_frame(self, monkeypatch, value):
        monkeypatch.setattr(grams, "FRAME_WIDTH", 4)
        classifier, pixels, layers = self.broken(value)
        with pytest.raises(UnlearningError, match=r"input of layer 'layers.3' is not finite on 8 images"):
            find_frames(classifier, pixels, layers, list(layers))

    @pytest.mark.slow
    def test_a_run_says_so_before_it_trains(self, tmp_path, monkeypatch):
        """Images that look finite at first, and a layer that overflows on proxies."""
        job = trainer(tmp_path, max_steps=3)
        inputs = Layer.inputs
        monkeypatch.setattr(Layer, "inputs", lambda layer, x: inputs(layer, x) * 1e200)
        with pytest.raises(UnlearningError, match="is not finite"):
            job.train()
        assert job.state.global_step == 0
