from types import SimpleNamespace

import pytest
import torch
from cases import FlatClassifier, ModelCase, Recorder, randomised
from sweep import sweep
from tiny import trainer
from torch import nn

from zspag_hf.errors import UnlearningError
from zspag_hf.methods import find_method
from zspag_hf.pipeline import grams as grams_module
from zspag_hf.pipeline import subspaces
from zspag_hf.pipeline.grams import collect_grams
from zspag_hf.pipeline.layers import constrained_layers
from zspag_hf.pipeline.subspaces import (
    Spectrum,
    counted,
    eigh,
    extended,
    free_energy,
    leading,
    merged_bases,
    random_bases,
    rank_at,
)

MERGES = ("truncated", "gpm")
LABELS = torch.tensor([3, 0, 3, 1, 0, 3])  # three classes of unequal size, one of one image


def merge_bases(stacked, threshold, merge="truncated"):
    """Eq. 3-4 over the classes of a dict of rows, in its order."""
    merged, add = None, {"truncated": counted, "gpm": extended}[merge]
    for rows in stacked.values():
        merged = add(merged, rows.T @ rows, threshold)
    return leading(merged, threshold if len(stacked) > 1 else 1.0) if merge == "truncated" else merged


@pytest.fixture(autouse=True)
def several_batches(monkeypatch):
    monkeypatch.setattr(grams_module, "ROW_BATCH", 4)


@pytest.fixture(scope="module", params=sweep("vit", "regnet"))
def setting(request):
    return prepare(request.param)


def prepare(case):
    """``(classifier, pixels, layers)`` with one image a label of ``LABELS``."""
    classifier, pixels = case.classifier(), case.pixels(len(LABELS))
    return classifier, pixels, constrained_layers(classifier.model, lambda: classifier(pixels))


def stacked_rows(classifier, pixels, layers):
    """Every input row of each layer in one matrix, ``(groups, n, d_in)``, by hooks of this test's own."""
    modules = {(name, i): m for name, layer in layers.items() for i, m in enumerate((layer.module, *layer.sharers))}
    with Recorder(modules) as seen, torch.no_grad():
        classifier(pixels)
    rows = {name: [] for name in layers}
    for (name, _), inputs in seen.inputs.items():
        rows[name] += [layers[name].rows(x) for x in inputs]
    return {name: torch.cat(parts, dim=1) for name, parts in rows.items()}


def direct_grams(classifier, pixels, labels, layers):
    """(1/K) sum_k R_k R_k^T / tr(R_k R_k^T), every row of a class in memory at once."""
    totals = dict.fromkeys(layers, 0)
    for k in labels.unique():
        for name, rows in stacked_rows(classifier, pixels[labels == k], layers).items():
            gram = rows.mT @ rows
            totals[name] = totals[name] + gram / torch.einsum("gii->", gram)
    return {name: total / len(labels.unique()) for name, total in totals.items()}


def random_gram(d=12, rank=12, groups=1):
    rows = torch.randn(groups, rank, d, dtype=torch.float64) * torch.logspace(0, -2, d, dtype=torch.float64)
    gram = rows.mT @ rows
    return gram / torch.einsum("gii->", gram)


def projector(basis):
    return basis @ basis.T


def largest_angle(a, b):
    """Sine of the largest principal angle between two spans of equal rank; 1 if the ranks differ."""
    if a.shape[1] != b.shape[1]:
        return 1.0
    return float(torch.linalg.matrix_norm(projector(a) - projector(b), 2))


class TestCollectGrams:
    def test_equals_the_stacked_computation(self, setting):
        """And is symmetric, positive and of trace one, as that is; in any order of the images."""
        classifier, pixels, layers = setting
        grams = collect_grams(classifier, pixels, LABELS, layers)
        order = torch.randperm(len(LABELS))
        shuffled = collect_grams(classifier, pixels[order], LABELS[order], layers)
        assert list(grams) == list(layers)
        for name, expected in direct_grams(classifier, pixels, LABELS, layers).items():
            layer, gram = layers[name], grams[name]
            assert gram.shape == (layer.groups, layer.d_in, layer.d_in) and gram.dtype == torch.float64
            torch.testing.assert_close(gram, expected, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: name + m)
            assert float(torch.einsum("gii->", gram)) == pytest.approx(1, abs=1e-12), name
            assert torch.equal(gram, gram.mT) and torch.linalg.eigvalsh(gram).min() > -1e-14, name
            assert (gram - shuffled[name]).abs().max() < 1e-9, name

    def test_batch_size_does_not_matter(self, vit, monkeypatch):
        classifier, pixels, layers = prepare(vit)
        found = []
        for size in (64, 1, 2, 5):
            monkeypatch.setattr(grams_module, "ROW_BATCH", size)
            found.append(collect_grams(classifier, pixels, LABELS, layers))
        for other in found[1:]:
            assert max(float((found[0][name] - other[name]).abs().max()) for name in layers) < 1e-9

    def test_names_of_the_classes_do_not_matter(self, vit):
        classifier, pixels, layers = prepare(vit)
        renamed = torch.tensor([900, 2, 900, 70, 2, 900])
        a, b = (collect_grams(classifier, pixels, labels, layers) for labels in (LABELS, renamed))
        assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-12) for name in layers)

    def test_each_class_weighs_the_same(self, vit):
        """Repeating the images of one class changes nothing."""
        classifier, pixels, layers = prepare(vit)
        more, labels = torch.cat([pixels, pixels[LABELS == 3]]), torch.cat([LABELS, LABELS[LABELS == 3]])
        a = collect_grams(classifier, pixels, LABELS, layers)
        b = collect_grams(classifier, more, labels, layers)
        assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-12) for name in layers)

    def test_uint8_pixels_are_taken(self, vit):
        classifier, pixels, layers = prepare(vit)
        pixels = (pixels * 255).to(torch.uint8)
        a, b = (collect_grams(classifier, x, LABELS, layers) for x in (pixels, pixels.float() / 255))
        assert all(torch.equal(a[name], b[name]) for name in layers)

    def test_no_hook_and_no_graph_stays(self, vit):
        classifier, pixels, layers = prepare(vit)
        grams = collect_grams(classifier, pixels, LABELS, layers)
        assert not any(gram.requires_grad for gram in grams.values())
        assert not any(module._forward_pre_hooks for module in classifier.modules())


class TestSharedInputs:
    def test_query_key_and_value_share_one_matrix_and_nothing_else_does(self, vit):
        classifier, pixels, layers = prepare(vit)
        grams = collect_grams(classifier, pixels, LABELS, layers)
        owners = {}
        for name, gram in grams.items():
            owners.setdefault(id(gram), []).append(name)
        shared = [names for names in owners.values() if len(names) > 1]
        assert len(shared) == 2, "one group a block"
        for block, names in enumerate(shared):
            attention = classifier.model.vit.layers[block].attention
            assert {id(layers[name].module) for name in names} == {
                id(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj)
            }

    def test_sharing_changes_no_matrix(self, setting):
        """A follower's matrix is what it would be on its own."""
        classifier, pixels, layers = setting
        grams = collect_grams(classifier, pixels, LABELS, layers)
        owners = {}
        for name, gram in grams.items():
            if owners.setdefault(id(gram), name) != name:
                alone = collect_grams(classifier, pixels, LABELS, {name: layers[name]})[name]
                torch.testing.assert_close(grams[name], alone, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("batch_size", [64, 2])
    def test_a_module_that_runs_twice_keeps_all_its_inputs(self, batch_size, monkeypatch):
        """Its second input may be another layer's, or its first."""

        class Twice(FlatClassifier):
            def forward(self, pixel_values):
                x = self.layers[0](pixel_values)
                h = self.layers[1](x)
                self.layers[2](h), self.layers[3](x), self.layers[4](x.clone())
                return SimpleNamespace(logits=self.layers[2](x) + self.layers[3](h))

        model = Twice(*(nn.Linear(4, 4) for _ in range(4)))
        classifier, pixels, layers = prepare(ModelCase("twice", lambda: model, 2, 1))
        monkeypatch.setattr(grams_module, "ROW_BATCH", batch_size)
        grams = collect_grams(classifier, pixels, LABELS, layers)
        for name, expected in direct_grams(classifier, pixels, LABELS, layers).items():
            torch.testing.assert_close(grams[name], expected)

    def test_an_input_that_is_zero_for_a_class_is_no_division_by_zero(self):
        model = FlatClassifier(nn.Linear(4, 4), nn.Threshold(1e9, 0.0), nn.Linear(4, 3))
        classifier, pixels, layers = prepare(ModelCase("dead", lambda: model, 2, 1))
        grams = collect_grams(classifier, pixels, LABELS, layers)
        assert torch.equal(grams["layers.3"], torch.zeros(1, 4, 4, dtype=torch.float64))
        spectrum = Spectrum(grams)
        assert spectrum.basis("layers.3", 0.99).vectors[0].isfinite().all()
        torch.testing.assert_close(spectrum.damping("layers.3", 0.99)[0], torch.eye(4, dtype=torch.float64))

    def test_a_tensor_changed_in_place_is_another_input(self):
        class InPlace(FlatClassifier):
            def forward(self, pixel_values):
                x = self.layers[0](pixel_values).clone()
                first = self.layers[1](x)
                x.mul_(2).add_(1)
                return SimpleNamespace(logits=first + self.layers[2](x))

        model = InPlace(nn.Linear(4, 4), nn.Linear(4, 4))
        classifier, pixels, layers = prepare(ModelCase("in_place", lambda: model, 2, 1))
        grams = collect_grams(classifier, pixels, LABELS, layers)
        assert grams["layers.1"] is not grams["layers.2"]
        expected = direct_grams(classifier, pixels, LABELS, layers)["layers.2"]
        torch.testing.assert_close(grams["layers.2"], expected)

    def test_a_tied_weight_sees_the_inputs_of_all_its_modules(self):
        model = FlatClassifier(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        randomised(model)
        model.layers[3].weight = model.layers[1].weight
        classifier, pixels, layers = prepare(ModelCase("tied", lambda: model, 2, 1))
        assert len(layers["layers.1"].sharers) == 1
        grams = collect_grams(classifier, pixels, LABELS, layers)
        expected = direct_grams(classifier, pixels, LABELS, layers)["layers.1"]
        torch.testing.assert_close(grams["layers.1"], expected)
        for merge in MERGES:
            merged = merged_bases(classifier, pixels, LABELS, layers, 1.0, merge)["layers.1"].vectors[0]
            assert largest_angle(merged, Spectrum(grams).basis("layers.1", 1.0).vectors[0]) < 1e-6, merge


class TestEigh:
    def test_identities(self):
        gram = random_gram()[0]
        values, vectors = eigh(gram)
        assert (values.diff() <= 0).all()
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(12, dtype=torch.float64))
        torch.testing.assert_close(vectors @ values.diag() @ vectors.T, gram)

    def test_known_matrix(self):
        values, vectors = eigh(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
        torch.testing.assert_close(values, torch.tensor([3.0, 1.0], dtype=torch.float64))
        torch.testing.assert_close(vectors.abs(), torch.full((2, 2), 0.5**0.5, dtype=torch.float64))

    def test_rounding_below_zero_is_clamped(self):
        row = torch.randn(1, 30, dtype=torch.float64)
        values, _ = eigh(row.T @ row)
        assert (values >= 0).all()

    def test_a_failure_to_converge_is_met_by_a_jitter(self, monkeypatch):
        gram, calls, real = random_gram(rank=3)[0], [], torch.linalg.eigh

        def stubborn(matrix):
            calls.append(matrix)
            if len(calls) == 1:
                raise torch.linalg.LinAlgError("failed to converge")
            return real(matrix)

        monkeypatch.setattr(subspaces.torch.linalg, "eigh", stubborn)
        values, vectors = eigh(gram)
        assert len(calls) == 2 and not torch.equal(calls[0], calls[1])
        torch.testing.assert_close(vectors @ values.diag() @ vectors.T, gram, rtol=0, atol=2e-12)


class TestRank:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)

    @pytest.mark.parametrize(
        ("threshold", "rank"), [(0, 1), (0.3, 1), (0.4, 1), (0.41, 2), (0.7, 2), (0.71, 3), (0.9, 3), (0.91, 4), (1, 4)]
    )
    def test_smallest_rank_that_reaches_the_threshold(self, threshold, rank):
        assert rank_at(self.values, threshold) == rank

    def test_it_reaches_the_threshold_and_one_less_does_not(self):
        values = torch.rand(40, dtype=torch.float64).sort(descending=True).values ** 4
        for threshold in torch.linspace(0.01, 0.999, 50).tolist():
            r = rank_at(values, threshold)
            assert values[:r].sum() / values.sum() >= threshold - 1e-9
            assert r == 1 or values[: r - 1].sum() / values.sum() < threshold

    def test_rounding_does_not_add_directions(self):
        values = torch.tensor([9.0, 9.0, 6.0, 6.0], dtype=torch.float64) / 10
        assert (values.cumsum(0) / values.sum())[2] < 0.8 and rank_at(values, 0.8) == 3
        values = torch.cat([torch.full((3,), 1 / 3, dtype=torch.float64), torch.full((5,), 1e-18, dtype=torch.float64)])
        assert rank_at(values, 1.0) == 3


class TestSpectrum:
    @pytest.mark.parametrize("threshold", [0.5, 0.9, 0.999, 1.0])
    @pytest.mark.parametrize("groups", [1, 3])
    def test_basis_is_orthonormal_and_a_projection(self, threshold, groups):
        gram = random_gram(groups=groups)
        basis = Spectrum({"it": gram}).basis("it", threshold)
        assert len(basis.vectors) == groups
        for u, g in zip(basis.vectors, gram, strict=True):
            eye = torch.eye(12, dtype=torch.float64)
            torch.testing.assert_close(u.T @ u, eye[: u.shape[1], : u.shape[1]])
            p = eye - u @ u.T
            torch.testing.assert_close(p @ p, p)
            assert (p @ u).abs().max() < 1e-12
            assert float((u.T @ g @ u).trace() / g.trace()) >= threshold - 1e-9

    def test_basis_spans_the_leading_directions(self):
        """No other subspace of that rank holds more energy."""
        gram = random_gram()[0]
        basis = Spectrum({"it": gram[None]}).basis("it", 0.9).vectors[0]
        for _ in range(20):
            other = torch.linalg.qr(torch.randn_like(basis)).Q
            assert (other.T @ gram @ other).trace() < (basis.T @ gram @ basis).trace()

    def test_update_confined_to_the_complement_leaves_the_outputs(self):
        """What the basis is for: with every direction of the rows protected, an update P changes no output."""
        rows = torch.randn(5, 12, dtype=torch.float64)
        u = Spectrum({"it": (rows.T @ rows)[None]}).basis("it", 1.0).vectors[0]
        assert u.shape == (12, 5)
        update = torch.randn(3, 12, dtype=torch.float64)
        assert ((update - update @ u @ u.T) @ rows.T).abs().max() < 1e-12

    def test_rank_is_the_mean_over_groups(self):
        gram = torch.stack([torch.diag(torch.tensor(v, dtype=torch.float64)) for v in ([1, 0, 0], [1, 1, 1.0])])
        assert Spectrum({"it": gram}).basis("it", 0.99).rank == 2

    def test_one_decomposition_for_a_shared_matrix(self, monkeypatch):
        gram, calls, real = random_gram(groups=2), [], subspaces.eigenvalues
        monkeypatch.setattr(subspaces, "eigenvalues", lambda g: calls.append(g) or real(g))
        spectrum = Spectrum({"q": gram, "k": gram, "other": gram.clone()})
        assert len(calls) == 4, "two matrices of two groups"
        assert spectrum.values["q"] is spectrum.values["k"]
        assert spectrum.values["q"] is not spectrum.values["other"]

    @pytest.mark.parametrize("threshold", [0.5, 0.9, 0.999])
    def test_damping(self, threshold):
        """(I + G / mu)^-1: symmetric, eigenvalues in (0, 1], exactly 1/2 where the proxies' energy is mu."""
        gram = random_gram(groups=2)
        spectrum = Spectrum({"it": gram})
        damping = spectrum.damping("it", threshold)
        assert damping.shape == gram.shape and damping.dtype == torch.float64
        for group in range(2):
            values, vectors = eigh(gram[group])
            r = rank_at(values, threshold) - 1
            d, eye = damping[group], torch.eye(12, dtype=torch.float64)
            torch.testing.assert_close(d, torch.linalg.inv(eye + gram[group] / values[r]))
            torch.testing.assert_close(d, d.T)
            assert torch.linalg.eigvalsh(d).min() > 0 and torch.linalg.eigvalsh(d).max() <= 1 + 1e-12
            torch.testing.assert_close(d @ vectors[:, r], vectors[:, r] / 2)

    def test_damping_takes_used_directions_more_than_unused_ones(self):
        gram = torch.diag(torch.tensor([0.9, 0.09, 0.01, 0.0], dtype=torch.float64))
        kept = Spectrum({"it": gram[None]}).damping("it", 0.99)[0].diagonal()
        torch.testing.assert_close(kept, torch.tensor([1 / 11, 0.5, 0.9, 1.0], dtype=torch.float64))

    def test_dampings_of_shared_matrices_share_a_tensor(self):
        gram = random_gram()
        spectrum = Spectrum({"q": gram, "k": gram, "other": random_gram()})
        dampings = spectrum.dampings(0.9)
        assert dampings["q"] is dampings["k"] and dampings["q"] is not dampings["other"]
        for name in ("q", "other"):
            assert torch.equal(dampings[name], spectrum.damping(name, 0.9).float())


class TestFreeEnergy:
    @pytest.mark.parametrize("threshold", [0.5, 0.9, 0.999])
    def test_of_the_protected_data_is_what_the_threshold_leaves(self, threshold):
        gram = random_gram(groups=2)
        basis = Spectrum({"it": gram}).basis("it", threshold)
        complement = torch.stack([torch.eye(12, dtype=torch.float64) - projector(u) for u in basis.vectors])
        free = free_energy(gram, complement)
        left = [g.trace() - (u.T @ g @ u).trace() for u, g in zip(basis.vectors, gram, strict=True)]
        assert free == pytest.approx(float(sum(left)))
        assert free <= 1 - threshold + 1e-9

    def test_of_the_protected_data_is_small_in_the_soft_form(self):
        gram = random_gram()
        spectrum = Spectrum({"it": gram})
        free = [free_energy(gram, spectrum.damping("it", threshold)) for threshold in (0.5, 0.9, 0.999)]
        assert free[0] > free[1] > free[2] and free[2] < 0.02
        values = spectrum.values["it"][0]
        mu = values[rank_at(values, 0.999) - 1]
        assert free[2] == pytest.approx(float((values / (1 + values / mu)).sum()))

    def test_extremes(self):
        gram, eye = random_gram(groups=2) * 7, torch.eye(12, dtype=torch.float64).expand(2, 12, 12)
        assert free_energy(gram, eye) == pytest.approx(1)
        assert free_energy(gram, 0 * eye) == 0

    def test_of_other_data_is_larger(self):
        gram, other = random_gram(), random_gram().flip(1, 2)
        damping = Spectrum({"it": gram}).damping("it", 0.99)
        assert free_energy(other, damping) > 5 * free_energy(gram, damping)


class TestMergeBases:
    """Eq. 3-4, class by class."""

    def rows(self, d=20, n=(4, 3, 5)):
        """Three classes with one shared direction."""
        common = torch.randn(1, d, dtype=torch.float64)
        return {k: torch.cat([torch.randn(m, d, dtype=torch.float64), common]) for k, m in enumerate(n)}

    @pytest.mark.parametrize("merge", MERGES)
    def test_uncut_it_spans_the_union(self, merge):
        rows = self.rows()
        merged = merge_bases(rows, 1.0, merge)
        stacked = torch.cat(list(rows.values()))
        assert merged.shape == (20, 4 + 3 + 5 + 1), "the shared direction counts once"
        torch.testing.assert_close(merged.T @ merged, torch.eye(13, dtype=torch.float64))
        assert (stacked - stacked @ projector(merged)).abs().max() < 1e-6

    @pytest.mark.parametrize("threshold", [0.8, 0.97])
    def test_truncated_is_the_cut_svd_of_the_concatenated_bases(self, threshold):
        """By SVDs as the equations read; UNSC's merge_subspace."""
        rows, bases = self.rows(), []
        for r in rows.values():
            u, singular, _ = torch.linalg.svd(r.T, full_matrices=False)
            bases.append(u[:, : rank_at(singular.square(), threshold)])
        u, singular, _ = torch.linalg.svd(torch.cat(bases, 1), full_matrices=False)
        expected = u[:, : rank_at(singular.square(), threshold)]
        assert expected.shape[1] < torch.cat(bases, 1).shape[1]
        assert largest_angle(merge_bases(rows, threshold), expected) < 1e-6
        assert largest_angle(merge_bases({k: rows[k] for k in (2, 0, 1)}, threshold), expected) < 1e-6

    def test_nearly_equal_bases_do_not_fill_the_width(self):
        """Nine of 24 of 128 dimensions would, without the cut, and no weight could move."""
        base, tail = torch.randn(200, 24, dtype=torch.float64), 1e-2 * torch.randn(9, 24, 128, dtype=torch.float64)
        mixing = torch.randn(24, 128, dtype=torch.float64)
        rows = {k: base @ (mixing + tail[k]) for k in range(9)}
        ranks = {merge: merge_bases(rows, 0.97, merge).shape[1] for merge in MERGES}
        union = torch.cat([leading(r.T @ r, 0.97) for r in rows.values()], 1)
        assert torch.linalg.matrix_rank(union) == 128 and max(ranks.values()) <= 24, ranks

    @pytest.mark.parametrize("threshold", [0.8, 0.97])
    def test_gpm_is_its_residual_rule(self, threshold):
        """The published loop, by SVDs of what the basis does not hold yet."""
        rows, expected = self.rows(), None
        for r in rows.values():
            if expected is None:
                u, singular, _ = torch.linalg.svd(r.T, full_matrices=False)
                expected = u[:, : rank_at(singular.square(), threshold)]
                continue
            rest = r.T - projector(expected) @ r.T
            u, singular, _ = torch.linalg.svd(rest, full_matrices=False)
            held, added = 1 - float(rest.square().sum() / r.square().sum()), 0
            while held < threshold:
                held += float(singular[added] ** 2 / r.square().sum())
                added += 1
            expected = torch.cat([expected, u[:, :added]], 1)
        merged = merge_bases(rows, threshold, "gpm")
        assert largest_angle(merged, expected) < 1e-6
        assert all((r @ merged).square().sum() >= threshold * r.square().sum() for r in rows.values())

    @pytest.mark.parametrize("merge", MERGES)
    def test_one_class_is_the_singular_value_cut(self, merge):
        rows = torch.randn(50, 8, dtype=torch.float64) * torch.logspace(0, -2, 8, dtype=torch.float64)
        own = Spectrum({"it": (rows.T @ rows)[None]}).basis("it", 0.95).vectors[0]
        assert largest_angle(merge_bases({5: rows}, 0.95, merge), own) < 1e-6

    @pytest.mark.parametrize("merge", MERGES)
    def test_never_more_directions_than_the_width(self, merge):
        rows = {k: torch.randn(9, 6, dtype=torch.float64) for k in range(4)}
        assert merge_bases(rows, 1.0, merge).shape == (6, 6)


@pytest.mark.parametrize("merge", MERGES)
class TestMergedBases:
    def test_one_class_agrees_with_its_gram_matrices(self, setting, merge):
        classifier, pixels, layers = setting
        labels = torch.zeros(len(pixels), dtype=torch.long)
        grams = collect_grams(classifier, pixels, labels, layers)
        spectrum = Spectrum(grams)
        for name, merged in merged_bases(classifier, pixels, labels, layers, 0.95, merge).items():
            for gram, a, b in zip(grams[name], merged.vectors, spectrum.basis(name, 0.95).vectors, strict=True):
                assert not gram.any() or largest_angle(a, b) < 1e-5, name  # of a dead channel there is none to agree on

    def test_several_classes_are_merged_a_layer_and_group_at_a_time(self, setting, merge):
        classifier, pixels, layers = setting
        bases = merged_bases(classifier, pixels, LABELS, layers, 0.9, merge)
        rows = {k: stacked_rows(classifier, pixels[k == LABELS], layers) for k in LABELS.unique().tolist()}
        assert list(bases) == list(layers)
        for name, layer in layers.items():
            for group in range(layer.groups):
                mine, its = bases[name].vectors[group], {k: all_of[name][group].double() for k, all_of in rows.items()}
                expected = merge_bases(its, 0.9, merge)
                if merge == "gpm":
                    assert largest_angle(mine, expected) < 1e-5, (name, group)
                    continue
                # the cut may fall among directions that lead in equally many classes, any of which will do
                counts = sum(projector(leading(x.T @ x, 0.9)) for x in its.values())
                held = [float((projector(u) * counts).sum()) for u in (mine, expected)]
                assert mine.shape == expected.shape and held[0] == pytest.approx(held[1], abs=1e-6), (name, group)

    def test_shared_inputs_share_a_basis(self, vit, merge):
        classifier, pixels, layers = prepare(vit)
        bases = merged_bases(classifier, pixels, LABELS, layers, 0.9, merge)
        assert len({id(basis) for basis in bases.values()}) == len(layers) - 4


class TestRandomBases:
    """Table 5's "random subspace": everything as estimated but the directions."""

    def estimated(self):
        shared = random_gram(groups=2)
        return Spectrum({"q": shared, "k": shared, "other": random_gram(d=20, rank=20)}).bases(0.9)

    def test_orthonormal_and_of_the_same_shapes(self):
        bases = self.estimated()
        made = random_bases(bases, seed=3)
        assert list(made) == list(bases)
        for name, basis in made.items():
            assert [u.shape for u in basis.vectors] == [u.shape for u in bases[name].vectors], name
            assert basis.rank == bases[name].rank and basis.vectors[0].dtype == torch.float64
            for u in basis.vectors:
                torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1], dtype=torch.float64))

    def test_other_directions_than_the_estimated_ones_and_in_each_group(self):
        bases = self.estimated()
        made = random_bases(bases, seed=3)
        for name, basis in made.items():
            for u, estimated in zip(basis.vectors, bases[name].vectors, strict=True):
                assert u.shape[1] < len(u) and largest_angle(u, estimated) > 0.5, name
        first, second = (u[:, :1] for u in made["q"].vectors)
        assert largest_angle(first, second) > 0.1

    def test_a_seed_is_a_choice_and_the_global_one_is_none(self):
        bases = self.estimated()
        made = random_bases(bases, seed=3)
        torch.manual_seed(99)
        again, other = random_bases(bases, seed=3), random_bases(bases, seed=4)
        for name in bases:
            assert all(map(torch.equal, made[name].vectors, again[name].vectors))
            assert not any(map(torch.equal, made[name].vectors, other[name].vectors))

    def test_layers_that_share_a_basis_still_do(self):
        made = random_bases(self.estimated(), seed=0)
        assert made["q"] is made["k"] and made["q"] is not made["other"]

    def test_uniform_over_subspaces(self):
        """The mean projector of a uniform subspace of rank r in d dimensions is r/d times the identity."""
        basis = subspaces.Basis((torch.zeros(5, 2, dtype=torch.float64),))
        mean = sum(projector(random_bases({"it": basis}, seed)["it"].vectors[0]) for seed in range(2000)) / 2000
        assert (mean - 0.4 * torch.eye(5, dtype=torch.float64)).abs().max() < 0.05

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["random_labels", "zspag_paper"])
    def test_a_run_is_confined_to_them_at_the_estimated_ranks(self, tmp_path, method):
        """No weight moves along the random directions; along the proxies' own it does."""
        options = {"method": method, "constraint": "hard", "energy_threshold": 0.9, "max_steps": 5, "seed": 7}
        jobs, before = {}, {}
        for merge in ("truncated", "random"):
            jobs[merge] = job = trainer(tmp_path / merge, subspace_merge=merge, learning_rate=0.1, **options)
            before = {name: layer.weight.detach().clone() for name, layer in job.run.layers.items()}
            job.train()
        parts = {merge: job.run.plan.constraint.parts for merge, job in jobs.items()}
        assert len(parts["truncated"]) == len(parts["random"]) > 5
        inside = {}
        for own, other in zip(parts["truncated"], parts["random"], strict=True):
            layer = other.layer
            change = layer.matrix(layer.weight.detach() - before[layer.name])[other.group]
            for merge, part in (("truncated", own), ("random", other)):
                p = part.u @ part.u.T if part.q is None else torch.eye(layer.d_in) - part.q @ part.q.T
                inside.setdefault(merge, []).append(float((change @ p).norm() / change.norm().clamp_min(1e-12)))
            ranks = [u.shape[1] if q is None else layer.d_in - q.shape[1] for _, _, u, _, q in (own, other)]
            assert ranks[0] == ranks[1], layer.name
        assert max(inside["random"]) < 1e-3 and max(inside["truncated"]) > 0.1
        if method == "zspag_paper":
            rows = [job.report.layers for job in jobs.values()]
            assert [r["rank"] for r in rows[0]] == [r["rank"] for r in rows[1]]
            assert any(abs(a["free_forget_energy"] - b["free_forget_energy"]) > 0.1 for a, b in zip(*rows, strict=True))

    @pytest.mark.parametrize("constraint", ["soft", "none"])
    def test_they_need_the_hard_constraint(self, constraint):
        with pytest.raises(UnlearningError, match=f"subspace_merge='random' .*constraint='{constraint}'.*'hard'"):
            find_method("zspag_paper")(subspace_merge="random", constraint=constraint)
