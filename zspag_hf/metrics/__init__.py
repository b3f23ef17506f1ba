"""Every score by name, with definition, direction and source; each is computed by an ``evaluate.Metric`` module.

The modules load without a network, ``evaluate.load(metric_path("divergence"))``, and those over the common table
(:mod:`zspag_hf.metrics.rows`) combine, ``evaluate.combine([metric_path(name) for name in TABLE_METRICS])``. A new score
is one line in METRICS and one module in a folder of its name.
"""

import os
from dataclasses import dataclass
from typing import Any

from evaluate.loading import import_main_class

HIGHER, LOWER, CLOSEST = "higher", "lower", "closest to retrained"
LEAST_TOLERANCE = 0.005  # half a percentage point, or five thousandths of a nat, is never evidence
AS_RETRAINED, NOT_FORGOTTEN, DIFFERS, BLIND = "as retrained", "not forgotten", "differs", "cannot tell"  # verdicts

# Those over the common table alone, and those that also take the retrained model's logits.
TABLE_METRICS = ("unlearning_accuracy", "membership_svm", "membership_loss", "mia_nn", "divergence")


@dataclass(frozen=True)
class Score:
    """What one number means."""

    module: str  # the metric module that computes it, one of MODULES
    definition: str  # what it is, with its unit where that is not a share in [0, 1]
    direction: str  # HIGHER, LOWER, or CLOSEST to the retrained model's value
    source: str  # where the definition comes from
    needs: tuple[str, ...] = ()  # keys of NEEDS: what must be given, beyond test images of retained classes
    masked_passes: bool = False  # the masked model, which forgets nothing, gets the best value for free
    detects: bool = True  # meant to tell a model that still remembers from a retrained one
    caveat: str = ""  # where calibration failed, with the numbers


ACC, SVM, LOSS, DIV = "unlearning_accuracy", "membership_svm", "membership_loss", "divergence"
SALUN, PAPER, GKT = "SalUn, arXiv 2310.12508", "ZS-PAG, arXiv 2507.21738, 4.1", "GKT, arXiv 2201.05629"
GOLATKAR, FADE = "Golatkar et al., arXiv 1911.04933", "arXiv 2510.12981, adapted"
RECOVERY, SPOTTER = "prototype_recovery", "arXiv 2506.01318"
BACK = "accuracy on forgotten-class test images, or unseen views, with the mean feature of {} a class in the head, for 1 % of the retained ones"
ZRF, TRW = "ZRF, arXiv 2205.08096, to a retrained model", "TRW, arXiv 2506.20893"
NATS = "nats, log-probabilities cut at -50"

# What a score can need, and the reason that stands in the report where it was not given.
NEEDS = {
    "retain": "needs retained training images: pass retain=",
    "retrained": "needs a model retrained without the forgotten classes: pass retrained=",
    "forgotten": "needs test images of the forgotten classes",
    "full": "computed with level='full' only",
    "views": "needs forget_views",
    "watched": "needs test images of the forgotten classes, or forget_views",
    "five": "needs 5 forget images of every forgotten class",
    "fifty": "needs 50 forget images of every forgotten class",
    "head": "the model has no linear head with one output a label",
    "models": "needs many unlearned and retrained models: use the metric by itself",
    "backdoor": "needs a triggered test set: use zspag_hf.metrics.backdoor",
}

# fmt: off
METRICS: dict[str, Score] = {
    "acc_rt": Score(ACC, "test accuracy, mean over retained classes", HIGHER, PAPER, (), True, False),
    "acc_ut": Score(ACC, "test accuracy, mean over forgotten classes", LOWER, PAPER, ("forgotten",), True),
    "acc_rt_micro": Score(ACC, "test accuracy, mean over images of retained classes", HIGHER, PAPER, (), True, False),
    "acc_ut_micro": Score(ACC, "test accuracy, mean over images of forgotten classes", LOWER, PAPER, ("forgotten",), True),
    "acc_views": Score(ACC, "accuracy on unseen random crops of the forget images", LOWER, "this library", ("views",), True),
    "ua": Score(ACC, "unlearning accuracy: 1 - accuracy on the forget images", CLOSEST, SALUN, (), True),
    "ra": Score(ACC, "accuracy on retained training images", CLOSEST, SALUN, ("retain",), True, False),
    "ta": Score(ACC, "accuracy on test images of retained classes", CLOSEST, SALUN, (), True, False),
    "mia_confidence": Score(SVM, "forget images that an SVM on p_y calls non-members; high means forgotten", CLOSEST, SALUN, ("retain",), True),
    "mia_modified_entropy": Score(SVM, "the same on the modified entropy, row by row (SalUn's code mixes rows)", CLOSEST, SALUN, ("retain",), True, caveat="caught the original in 0 of 6 calibration runs: far from its training data an rbf kernel answers by its bias, and retrained models get anything from 0 to 1"),
    "mia_entropy": Score(SVM, "forget images that a regression on the entropy calls members; low means forgotten", CLOSEST, "SSD, arXiv 2308.07707", ("retain",)),
    "mia_loss_auc": Score(LOSS, "ROC area of -loss, forget images against test images of their classes; .5 without a trace", CLOSEST, "challenge kit", ("forgotten",), True, caveat="caught the original in 0 of 6 calibration runs: it tells members within a class, and digits are not over-fitted (.50 for the original)"),
    "mia_loss_tpr_at_1fpr": Score(LOSS, "true positives of that attack at 1 % false positives", CLOSEST, "LiRA, arXiv 2112.03570", ("forgotten",), True, caveat="as mia_loss_auc; digits have too few held-out images to calibrate it"),
    "mia_loss_cv": Score(LOSS, "cross-validated accuracy of a regression on that loss; .5 without a trace", CLOSEST, "SCRUB, arXiv 2302.09880", ("forgotten",), True, caveat="caught the original in 0 of 6 calibration runs, as mia_loss_auc; scatters by .04 at 100 images"),
    "rmia_auc": Score("rmia", "ROC area of offline RMIA, forget against all test images, retrained models as references", CLOSEST, "RMIA, arXiv 2312.03262; AMUN", ("retrained",), True),
    "u_lira": Score("u_lira", "forget images likelier under the original's margins than under the retrained models'", LOWER, "U-LiRA, arXiv 2403.01218", ("retrained",), True, caveat="the original is its own only \"in\" model here and scores 1 by construction; without shadow models this says no more than which side is nearer"),
    "mia_nn": Score("mia_nn", "difference from the retrained model in the classes that forgotten-class images fall into", LOWER, TRW, ("retrained", "forgotten")),
    "kl_ut": Score(DIV, f"KL(retrained || model) on forgotten-class test images, {NATS}", LOWER, GOLATKAR, ("retrained", "forgotten")),
    "kl_reverse_ut": Score(DIV, f"KL(model || retrained) on forgotten-class test images, {NATS}", LOWER, GOLATKAR, ("retrained", "forgotten")),
    "js_ut": Score(DIV, "Jensen-Shannon divergence on forgotten-class test images, nats, at most .693", LOWER, ZRF, ("retrained", "forgotten")),
    "fade_ut": Score(DIV, "FADE adapted to classifiers: mean of both KL on forgotten-class test images, nats", LOWER, FADE, ("retrained", "forgotten")),
    "tv_ut": Score(DIV, "total variation on forgotten-class test images", LOWER, TRW, ("retrained", "forgotten")),
    "agreement_ut": Score(DIV, "equal top-1 answers on forgotten-class test images", HIGHER, "completeness, Cao and Yang 2015", ("retrained", "forgotten")),
    "kl_rt": Score(DIV, f"KL(retrained || model) on retained-class test images, {NATS}", LOWER, GOLATKAR, ("retrained",), False, False),
    "kl_reverse_rt": Score(DIV, f"KL(model || retrained) on retained-class test images, {NATS}", LOWER, GOLATKAR, ("retrained",), False, False),
    "js_rt": Score(DIV, "Jensen-Shannon divergence on retained-class test images, nats", LOWER, ZRF, ("retrained",), False, False),
    "fade_rt": Score(DIV, "mean of both KL on retained-class test images, nats", LOWER, FADE, ("retrained",), False, False),
    "tv_rt": Score(DIV, "total variation on retained-class test images", LOWER, TRW, ("retrained",), False, False),
    "agreement_rt": Score(DIV, "equal top-1 answers on retained-class test images", HIGHER, "completeness, Cao and Yang 2015", ("retrained",), False, False),
    "recovery_1": Score(RECOVERY, BACK.format("1 forget image"), CLOSEST, SPOTTER, ("watched", "head")),
    "recovery_5": Score(RECOVERY, BACK.format("5 forget images"), CLOSEST, SPOTTER, ("watched", "head", "five")),
    "recovery_50": Score(RECOVERY, BACK.format("50 forget images"), CLOSEST, SPOTTER, ("watched", "head", "fifty")),
    "dispersion": Score("dispersion", "mean cosine between penultimate features of two forget images of one class", CLOSEST, SPOTTER, ("head",)),
    "over_unlearning": Score("over_unlearning", "Jensen-Shannon divergence from the masked original on PGD neighbours of forget images, nats; 0: nothing changed there", CLOSEST, f"OU@eps, {SPOTTER}", (), False, False),
    "probe_auc": Score("linear_probe", "ROC area of a linear probe for the forgotten class on penultimate features", CLOSEST, "this library", ("forgotten", "head"), caveat="caught the original in 0 of 6 calibration runs: retrained models separate the unseen class too (.96 to .99 against 1.00)"),
    "relearn": Score("relearning", "mean acc_ut (of unseen views, without such test images) over 20 steps of fine-tuning on forget images", CLOSEST, GKT, ("watched",)),
    "relearn_steps": Score("relearning", "steps of it until 95 % of the original's acc_ut; 21: never", CLOSEST, GKT, ("watched",)),
    "ain": Score("relearning", "anamnesis index: those steps over the retrained model's; 1 is right, below it is shallow", CLOSEST, GKT, ("retrained", "watched"), caveat="caught the original in 3 of 6 calibration runs: a ratio of small numbers of steps; read relearn"),
    "relearn_mixed": Score("relearning", "mean acc_ut over 20 steps on forget and retained images", CLOSEST, GKT, ("retain", "watched", "full")),
    "gradcam_similarity": Score("heatmap_similarity", "cosine with the retrained model's GradCAM, forgotten-class test images", HIGHER, "ZS-PAG, figure 3", ("retrained", "forgotten", "full"), caveat="caught the original in 0 of 6 calibration runs: retrained models look at places as different (.4 to .5)"),
    "avg_gap": Score("gap_to_retrained", "mean distance from the retrained model's ua, ra, ta and mia_confidence", LOWER, SALUN, ("retrained", "retain"), True),
    "tow": Score("gap_to_retrained", "product of 1 - distance over ua, ra and ta", HIGHER, "RUM, arXiv 2406.01257", ("retrained", "retain"), True),
    "forgetting_quality": Score("forgetting_quality", "challenge score over many models of each kind; indicative below 64", HIGHER, "arXiv 2406.09073", ("models",)),
    "attack_accuracy": Score("backdoor_accuracy", "triggered test images that get the attacker's label", LOWER, "ZS-PAG, table 3", ("backdoor",)),
}
# fmt: on
MODULES = tuple(dict.fromkeys(score.module for score in METRICS.values()))


def metric_path(name: str) -> str:
    """The folder of a metric module, for ``evaluate.load``.

    Raises:
        KeyError: no such module; it names those that there are.
    """
    if name not in MODULES:
        raise KeyError(f"no metric module {name!r}: choose from {', '.join(MODULES)}.")
    return os.path.join(os.path.dirname(__file__), name)


def compute(name: str, **columns: Any) -> dict[str, Any]:
    """All scores of one module, a name of MODULES, as its ``evaluate.Metric``'s ``compute`` gives them."""
    metric = import_main_class(f"{__name__}.{name}.{name}")  # with scikit-learn, which tables and pages need not load
    return metric.of_arrays(**columns)
