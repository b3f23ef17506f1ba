"""Known answers of the scores that ask who was a member, and the published faults that they must not have."""

import numpy as np
import pytest
from columns import binary, stack, sure
from scipy.special import log_softmax, softmax
from scipy.stats import entropy as shannon
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.svm import SVC

from zspag_hf.metrics import METRICS, compute
from zspag_hf.metrics.rows import entropy, margin, modified_entropy, true_log_probs


def two_populations(members, others):
    """Columns in which every image is of class 0 and has its score as margin."""
    zeros = [np.zeros(len(part), int) for part in (members, others)]
    return stack(forget=(binary(members), zeros[0]), test_forgotten=(binary(others), zeros[1]))


def three_populations(confidences, label=0):
    """Columns of split -> confidence of each image in its own class: 3 for forget images, else ``label``."""
    own = {split: np.full(len(p), 3 if split == "forget" else label) for split, p in confidences.items()}
    return stack(**{split: (sure(own[split], p), own[split]) for split, p in confidences.items()})


def random_rows(count=40, classes=6, scale=3.0):
    rng = np.random.default_rng(0)
    return rng.normal(0, scale, (count, classes)), rng.integers(0, classes, count)


# ------------------------------------------------------------------ what the attacks look at


def test_entropy_and_true_log_probability_equal_those_of_scipy():
    logits, labels = random_rows()
    assert entropy(logits) == pytest.approx(shannon(softmax(logits, 1), axis=1))
    assert true_log_probs(logits, labels) == pytest.approx(log_softmax(logits, 1)[range(40), labels])


def test_modified_entropy_equals_a_loop_over_rows_and_classes():
    logits, labels = random_rows()
    expected = []
    for p, y in zip(softmax(logits, 1), labels, strict=True):
        others = sum(p[k] * np.log(1 - p[k]) for k in range(len(p)) if k != y)
        expected.append(-(1 - p[y]) * np.log(p[y]) - others)
    assert modified_entropy(logits, labels) == pytest.approx(expected)


def test_modified_entropy_has_no_log_p_for_log_of_1_minus_p():
    logits, labels = random_rows()
    p, rows = softmax(logits, 1), np.arange(len(labels))
    weights, logs = p.copy(), np.log(p)  # the fault: log p for the other classes too
    weights[rows, labels] = 1 - p[rows, labels]
    assert np.abs(modified_entropy(logits, labels) + (weights * logs).sum(1)).min() > 1e-3


def test_modified_entropy_of_a_row_does_not_depend_on_the_other_rows():
    logits, labels = random_rows()
    p = softmax(logits, 1)
    reverse, logs = 1 - p, np.log(1 - p)
    weights = p.copy()
    weights[:, labels] = reverse[:, labels]  # the fault: whole columns of the batch
    logs[:, labels] = np.log(p)[:, labels]
    faulty = -(weights * logs).sum(1)
    alone = np.concatenate([modified_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
    assert modified_entropy(logits, labels) == pytest.approx(alone)
    assert np.abs(faulty - alone).max() > 0.1


def test_modified_entropy_tells_a_sure_right_answer_from_a_sure_wrong_one_where_entropy_does_not():
    logits = np.array([[200.0, 0, 0], [200.0, 0, 0]])
    right, wrong = modified_entropy(logits, np.array([0, 1]))
    assert right == pytest.approx(0, abs=1e-9) and 50 < wrong < np.inf
    assert entropy(logits) == pytest.approx([0, 0], abs=1e-9)


def test_the_margin_is_log_p_minus_log_of_1_minus_p():
    logits, labels = random_rows()
    p = softmax(logits, 1)[range(40), labels]
    assert margin(logits, labels) == pytest.approx(np.log(p) - np.log(1 - p))


def test_the_margin_keeps_its_value_where_the_probability_is_rounded_to_one():
    logits = np.array([[45.0, 0], [45.0, 0], [1e4, 0], [-np.inf, 0], [0, -np.inf]])
    labels = np.array([0, 1, 0, 0, 0])
    with np.errstate(divide="ignore"):
        p = softmax(logits[:1], 1)[:, 0]
        assert np.isinf(np.log(p) - np.log(1 - p)).all()  # the plain formula
    assert margin(logits, labels) == pytest.approx([45, -45, 50, -50, 50])


# ------------------------------------------------------------------ the loss attack


@pytest.mark.parametrize("shift", [0, 1.5])
def test_the_loss_attack_finds_a_known_shift_of_gaussian_margins(shift):
    members, others = np.random.default_rng(0).normal(size=(2, 5000))
    result = compute("membership_loss", **two_populations(members + shift, others))
    assert result["mia_loss_auc"] == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.012)
    assert result["mia_loss_tpr_at_1fpr"] == pytest.approx(norm.cdf(shift + norm.ppf(0.01)), abs=0.02)
    assert result["mia_loss_cv"] == pytest.approx(norm.cdf(shift / 2), abs=0.02)


def test_the_loss_attack_equals_a_count_over_pairs_a_count_over_thresholds_and_a_plain_cross_validation():
    rng = np.random.default_rng(1)
    members, others = rng.normal(1, 1, 300), rng.normal(0, 1, 300)
    table = two_populations(members, others)
    loss = -log_softmax(table["predictions"].astype(float), 1)[:, 0]
    inside, outside = -loss[:300], -loss[300:]
    result = compute("membership_loss", **table)
    assert result["mia_loss_auc"] == pytest.approx((inside[:, None] > outside).mean())
    tpr = max(np.mean(inside >= cut) for cut in np.append(outside, 1) if np.mean(outside >= cut) <= 0.01)
    assert result["mia_loss_tpr_at_1fpr"] == pytest.approx(tpr)
    folds = StratifiedShuffleSplit(20, test_size=0.3, random_state=7)
    plain = cross_val_score(LogisticRegression(), loss[:, None], np.repeat([1, 0], 300), cv=folds).mean()
    assert result["mia_loss_cv"] == pytest.approx(plain, abs=0.025)


def test_equal_losses_on_both_sides_are_found_at_one_percent_and_not_below():
    scores = np.arange(200.0) / 20  # each tie of one member and one other is one step of the diagonal
    result = compute("membership_loss", **two_populations(scores, scores))
    assert result["mia_loss_auc"] == pytest.approx(0.5) and result["mia_loss_tpr_at_1fpr"] == pytest.approx(0.01)


def test_the_cross_validated_attack_gets_nothing_from_unequal_numbers():
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=2700), rng.normal(size=300)
    result = compute("membership_loss", **two_populations(members, others))["mia_loss_cv"]
    truth, folds = np.repeat([1, 0], [2700, 300]), StratifiedShuffleSplit(10, random_state=0)
    scores = np.concatenate([members, others])[:, None]
    assert cross_val_score(LogisticRegression(), scores, truth, cv=folds).mean() == pytest.approx(0.9)  # the fault
    assert result == pytest.approx(0.5, abs=0.06)


def test_one_percent_needs_a_hundred_held_out_images_and_the_attack_ten():
    scores = np.random.default_rng(0).normal(size=100)
    assert compute("membership_loss", **two_populations(scores, scores[:99]))["mia_loss_tpr_at_1fpr"] is None
    assert None not in compute("membership_loss", **two_populations(scores, scores)).values()
    assert set(compute("membership_loss", **two_populations(scores, scores[:9])).values()) == {None}


def test_the_loss_attack_finds_nothing_in_a_masked_model_and_its_lines_say_so():
    table = two_populations(np.random.default_rng(0).normal(9, 1, 200), np.zeros(200))
    assert compute("membership_loss", **table)["mia_loss_auc"] == 1
    table["predictions"][:, 0] = -np.inf
    result = compute("membership_loss", **table)
    assert result == {"mia_loss_auc": 0.5, "mia_loss_tpr_at_1fpr": 0, "mia_loss_cv": 0.5}
    assert all(METRICS[score].masked_passes for score in result)


# ------------------------------------------------------------------ attacks trained on retained images


def retained_and_asked(retain=400, test=400, asked=200):
    rng = np.random.default_rng(0)
    return {"retain": rng.beta(9, 2, retain), "test_retained": rng.beta(4, 2, test), "forget": rng.beta(3, 2, asked)}


def test_the_svm_scores_equal_a_support_vector_machine_fitted_directly():
    parts = retained_and_asked()
    table = three_populations(parts)
    p, labels, splits = softmax(table["predictions"].astype(float), 1), table["references"], table["splits"]
    own = p[range(len(p)), labels]
    rest = (1 - own) / 3  # the other three classes share alike
    features = {
        "mia_confidence": own,
        "mia_modified_entropy": -(1 - own) * np.log(own) - 3 * rest * np.log(1 - rest),
    }
    result = compute("membership_svm", **table)
    for score, feature in features.items():
        svm = SVC(C=3, gamma=1.0).fit(feature[splits != "forget", None], splits[splits != "forget"] == "retain")
        assert result[score] == pytest.approx(1 - svm.predict(feature[splits == "forget", None]).mean(), abs=0.011)
        assert 0.1 < result[score] < 0.9


def test_the_entropy_score_equals_a_logistic_regression_fitted_directly():
    table = three_populations(retained_and_asked())
    feature, splits = shannon(softmax(table["predictions"].astype(float), 1), axis=1), table["splits"]
    fit = splits != "forget"
    scaled = (feature - feature[fit].mean()) / feature[fit].std()
    regression = LogisticRegression().fit(scaled[fit, None], splits[fit] == "retain")
    expected = regression.predict(scaled[splits == "forget", None]).mean()
    result = compute("membership_svm", **table)["mia_entropy"]
    assert result == pytest.approx(expected, abs=0.011) and 0.1 < result < 0.9


def test_the_attacks_get_nothing_from_ten_times_as_many_members():
    table = three_populations({**retained_and_asked(2000, 200), "retain": np.random.default_rng(1).beta(4, 2, 2000)})
    feature, splits = shannon(softmax(table["predictions"].astype(float), 1), axis=1)[:, None], table["splits"]
    fit = splits != "forget"
    faulty = LogisticRegression().fit(feature[fit], splits[fit] == "retain").predict(feature[~fit]).mean()
    result = compute("membership_svm", **table)
    assert faulty == 1 and all(0.02 < value < 0.98 for value in result.values())


def test_the_definitions_of_membership_accuracy_point_in_opposite_directions():
    rng = np.random.default_rng(0)
    retained = {"retain": rng.uniform(0.97, 0.999, 200), "test_retained": rng.uniform(0.3, 0.9, 200)}
    original = compute("membership_svm", **three_populations({**retained, "forget": rng.uniform(0.97, 0.999, 100)}))
    forgotten = compute("membership_svm", **three_populations({**retained, "forget": rng.uniform(0.2, 0.3, 100)}))
    for score in ("mia_confidence", "mia_modified_entropy"):
        assert original[score] < 0.1 and forgotten[score] > 0.9
    assert original["mia_entropy"] > 0.9 and forgotten["mia_entropy"] < 0.1
