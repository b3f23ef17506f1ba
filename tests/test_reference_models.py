"""Known answers of the attacks and scores that compare with retrained models."""

import numpy as np
import pytest
from columns import binary, stack, sure
from scipy.special import expit, log_softmax, softmax
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

from zspag_hf.metrics import compute
from zspag_hf.metrics.forgetting_quality.forgetting_quality import epsilon, epsilon_at

# ------------------------------------------------------------------ membership


def rmia_columns(forget=30, test=50, models=3, shift=0.0):
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 2, (forget + test, 4))
    labels = rng.integers(0, 4, forget + test)
    rows[range(forget), labels[:forget]] += shift
    half = forget + test // 2
    table = stack(
        forget=(rows[:forget], labels[:forget]),
        test_forgotten=(rows[forget:half], labels[forget:half]),
        test_retained=(rows[half:], labels[half:]),
        retain=(rows[:5] + 9, labels[:5]),  # in neither population
    )
    return table | {"reference_log_probs": -rng.exponential(1.5, (forget + test + 5, models))}


def test_rmia_equals_a_loop_over_all_pairs_of_images():
    columns = rmia_columns(shift=1.0)
    p = softmax(columns["predictions"], 1)[range(85), columns["references"]]
    priors = [(1 + 0.3) / 2 * np.mean(np.exp(row)) + (1 - 0.3) / 2 for row in columns["reference_log_probs"]]
    tests = range(30, 80)
    scores = [np.mean([(p[x] / priors[x]) / (p[z] / priors[z]) > 2 for z in tests]) for x in range(80)]
    expected = roc_auc_score([True] * 30 + [False] * 50, scores)
    result = compute("rmia", **columns)["rmia_auc"]
    assert result == pytest.approx(expected, abs=1e-6) and 0.55 < result < 0.95


def test_rmia_is_one_half_without_a_trace_and_one_where_every_forget_image_stands_out():
    assert compute("rmia", **rmia_columns(1500, 1500))["rmia_auc"] == pytest.approx(0.5, abs=0.03)
    columns = rmia_columns(shift=50.0)
    columns["predictions"][30:80] = 0
    columns["reference_log_probs"][:] = np.log(0.5)
    assert compute("rmia", **columns)["rmia_auc"] == 1


def u_lira(phi, inside, outside):
    """Both populations the same for every image, unless given a row an image."""
    rows = {"in_margins": inside, "out_margins": outside}
    rows = {name: np.broadcast_to(margins, (len(phi), np.shape(margins)[-1])) for name, margins in rows.items()}
    return compute("u_lira", **stack(forget=(binary(phi), np.zeros(len(phi), int))), **rows)["u_lira"]


def test_u_lira_with_few_models_counts_images_nearer_to_the_mean_of_the_original():
    phi = np.array([9.0, 4.6, 4.4, -3.0, 1.0])  # the middle between 8 and the mean of 0, 1, 2 is 4.5
    assert u_lira(phi, [8], [0, 1, 2]) == pytest.approx(2 / 5)
    assert u_lira(phi, [8, 8.5, 7.5], [0, 1, 2]) == pytest.approx(2 / 5)
    assert u_lira(phi, [8], [1]) == pytest.approx(2 / 5)


def test_u_lira_with_many_models_compares_gaussian_densities_of_each_image():
    rng = np.random.default_rng(0)
    phi = rng.normal(2, 3, 300)
    inside, outside = rng.normal(3, 0.5, (300, 10)), rng.normal(0, 4, (300, 12))
    densities = [norm.logpdf(phi, m.mean(1), m.std(1, ddof=1) + 1e-3) for m in (inside, outside)]
    likelier = densities[0] > densities[1]
    result = u_lira(phi, inside, outside)
    assert result == pytest.approx(np.mean(likelier))
    assert result < np.mean(np.abs(phi - 3) < np.abs(phi)) - 0.1  # a wide population keeps what a mean alone would lose


def test_u_lira_gives_one_original_the_spread_of_many_retrained_models():
    phi, outside = np.linspace(0, 8, 200), np.random.default_rng(0).normal(0, 2, (200, 12))
    pooled = np.sqrt(outside.var(1, ddof=1).mean())
    own = norm(outside.mean(1), outside.std(1, ddof=1) + 1e-3)
    assert u_lira(phi, [8], outside) == pytest.approx(np.mean(norm(8, pooled).logpdf(phi) > own.logpdf(phi)))


def test_without_reference_models_there_is_no_score():
    assert compute("rmia", **rmia_columns(models=0))["rmia_auc"] is None
    assert u_lira(np.ones(5), [], [0.0]) is None and u_lira(np.ones(5), [0.0], []) is None


# ------------------------------------------------------------------ where forgotten images fall


def class_columns(fall, retrained_fall, retained=3):
    """Test images of retained classes under a sharp retrained model; those of class 3 fall into the given classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(retained), 40)
    kept = sure(labels, rng.uniform(0.8, 0.99, len(labels)))
    gone = [sure(np.full(60, to), rng.uniform(0.8, 0.99, 60)) for to in (fall, retrained_fall)]
    if fall == retrained_fall:
        gone[0] = gone[1]
    columns = stack(test_retained=(kept, labels), test_forgotten=(gone[0], np.full(60, 3)))
    return columns | {"retrained": np.concatenate([kept, gone[1]])}


def test_mia_nn_is_0_for_the_retrained_model():
    assert compute("mia_nn", **class_columns(0, 0))["mia_nn"] == 0


def test_mia_nn_equals_the_gap_of_linear_machines_fitted_directly_and_is_large_where_images_fall_elsewhere():
    columns = class_columns(1, 0)
    kept = columns["splits"] == "test_retained"
    mine, theirs = (log_softmax(columns[side].astype(float), 1)[:, :3] for side in ("predictions", "retrained"))
    center, spread = theirs[kept].mean(0), theirs[kept].std(0)
    gaps = []
    for k in range(3):
        svm = LinearSVC(class_weight="balanced", random_state=0, max_iter=5000)
        svm.fit((theirs[kept] - center) / spread, columns["references"][kept] == k)
        sides = [expit(svm.decision_function((side[~kept] - center) / spread)).mean() for side in (mine, theirs)]
        gaps.append(abs(sides[0] - sides[1]))
    result = compute("mia_nn", **columns)["mia_nn"]
    assert result == pytest.approx(np.mean(gaps), abs=0.01) and result > 0.3 > 10 * gaps[2]


def test_mia_nn_learns_the_classes_from_the_retrained_model_alone():
    columns = class_columns(1, 0)
    scrambled = columns["predictions"].copy()
    scrambled[columns["splits"] == "test_retained"] = 0
    assert compute("mia_nn", **columns) == compute("mia_nn", **columns | {"predictions": scrambled})


def test_mia_nn_tells_a_model_that_answers_with_the_forgotten_class_from_the_same_model_masked():
    columns, gone = class_columns(0, 0), np.arange(4) == 3
    original = columns["predictions"] + 20 * gone  # surely class 3
    masked = np.where(gone, -np.inf, original)
    scores = [compute("mia_nn", **columns | {"predictions": logits})["mia_nn"] for logits in (original, masked)]
    assert scores[0] > 0.2 > 0.05 > scores[1]


def test_mia_nn_needs_two_retained_classes():
    assert compute("mia_nn", **class_columns(1, 0, retained=1))["mia_nn"] is None


# ------------------------------------------------------------------ forgetting quality


def test_epsilon_of_a_case_by_hand():
    u, r = np.array([5.0, 6, 7, 8]), np.array([1, 2, 3, 6.5])
    expected = np.log((1 - 1e-5 - 0.25) / 0.25)  # at 6 one of four is wrong on either side, and no cut does better
    assert epsilon(u, r) == pytest.approx(expected) == epsilon(r, u)
    assert compute("forgetting_quality", unlearned=[u], retrained=[r])["forgetting_quality"] == 2.0**-2


def test_one_model_of_each_kind_gives_no_forgetting_quality():
    assert compute("forgetting_quality", unlearned=[[1.0]], retrained=[[0.0]])["forgetting_quality"] is None


def test_a_threshold_without_any_error_counts_50_and_one_with_a_single_zero_error_counts_nothing():
    assert epsilon_at(0, 0) == 50 and epsilon_at(0, 0.3) == 0 == epsilon_at(0.3, 0)
    assert epsilon_at(0.9, 0.9) == 0 and epsilon_at(0.1, 0.5) == pytest.approx(np.log((1 - 1e-5 - 0.5) / 0.1))


def test_forgetting_quality_tells_equal_from_shifted_from_disjoint_populations():
    r, u = np.random.default_rng(0).normal(size=(2, 10, 64))
    scores = [compute("forgetting_quality", unlearned=x, retrained=r)["forgetting_quality"] for x in (r, u, u + 1)]
    assert scores[0] == 1 and 0.1 < scores[1] < 0.4 and scores[2] < scores[1] / 2
    disjoint = compute("forgetting_quality", unlearned=u + 20, retrained=r)["forgetting_quality"]
    assert disjoint == 2 ** -np.ceil(np.log(63) / 0.5)


def test_a_collapsed_population_is_told_apart_from_one_that_spreads_around_it():
    assert epsilon(np.zeros(64), np.random.default_rng(0).normal(size=64)) == 50
    assert epsilon(np.zeros(64), np.zeros(64)) == 0


def test_one_stray_model_hides_no_gap_between_the_others():
    u, r = np.linspace(0, 0.25, 64), np.append(np.linspace(0.26, 0.5, 63), 15)
    grid = np.linspace(0, 15, 100)
    assert not any((r >= cut).all() and (u < cut).all() for cut in grid)  # a grid over the range finds none
    assert epsilon(u, r) == 50


@pytest.mark.parametrize("shift", [0, 0.3])
def test_a_population_between_the_two_halves_of_the_other_is_told_apart_by_an_interval(shift):
    inner, outer = np.array([-0.4, -0.2, 0.1, 0.3]) + shift, np.array([-6, -5, 5, 6.5])
    assert (np.median(inner) > np.median(outer)) == (shift > 0)
    assert epsilon(inner, outer) == 50 == epsilon(outer, inner)
