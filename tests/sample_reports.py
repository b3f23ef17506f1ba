"""Reports made up for the tests of pictures, page and card: no model behind them, fields filled as by a run."""

import numpy as np

from zspag_hf.metrics import METRICS
from zspag_hf.report.report import UnlearningReport

ABSENT = {"forgetting_quality": "needs many models", "attack_accuracy": "needs a triggered test set"}
VERDICTS = ("as retrained", "not forgotten", "differs", "cannot tell")


def minimal() -> UnlearningReport:
    """Right after training: no model is evaluated."""
    return UnlearningReport("zspag", "base", [{"id": 2, "label": "cat"}], 10, 0)


def full(classes: int = 10, layers: int = 13, beside: tuple = ("fine-tuned",), retrained: int = 3) -> UnlearningReport:
    """Everything at level full; the first class, and every twentieth, is forgotten."""
    random = np.random.default_rng(0)
    names = [f"class {i}" for i in range(classes)]
    report = UnlearningReport("zspag", "base", [{"id": i, "label": names[i]} for i in range(0, classes, 20)], 10, 0)
    singles = [f"retrained {i + 1}" for i in range(retrained)]
    models = ["original", "masked", *beside, "unlearned", *(["retrained"] if retrained else [])]
    report.models = {name: row(random, names) for name in models} | ({} if retrained else {"retrained": None})
    report.reasons = dict(ABSENT)
    report.floors = dict.fromkeys(METRICS)
    if retrained > 1:
        tolerance = 0.05 if retrained > 2 else None
        known = {"mean": 0.5, "sd": 0.01, "models": retrained, "tolerance": tolerance}
        report.floors |= {score: known for score in METRICS if score not in ABSENT}
    for i, name in enumerate(n for n in models if n not in ("original", "retrained")):
        given = {score: VERDICTS[(i + j) % 4] if retrained > 2 else None for j, score in enumerate(METRICS)}
        report.verdicts[name] = given | dict.fromkeys(ABSENT)
    drawn = ["original", *beside, "unlearned", *singles]
    report.relearning = {name: {kind: curve(random) for kind in ("forget", "mixed")} for name in drawn}
    report.relearning["masked"] = report.relearning["original"]
    grid = np.linspace(0, 1, 101)
    report.rocs = {name: {"fpr": grid.tolist(), "tpr": (grid ** random.uniform(0.5, 1)).tolist()} for name in drawn}
    report.rocs["masked"] = None
    report.heatmaps = {name: random.random((4, 4)).tolist() for name in drawn}
    report.projection = points(random, names)
    report.images, report.level = {"forget": 10, "test_forgotten": 5, "test_retained": 50}, "full"
    report.retrained_models = retrained
    run(report, random, layers)
    return report


def asked(report: UnlearningReport, labels=("class 0",), earlier=(), images: int = 10) -> UnlearningReport:
    """The same report of a model from the Hub, for a request and those before it, each a tuple of labels."""
    ids = iter(range(1000))
    classes = [[{"id": next(ids), "label": label} for label in gone] for gone in (labels, *earlier)]
    report.base_model, report.base_revision, report.dataset = "user/vit-cifar10", "0123456789abcdef" * 2, "user/cifar10"
    report.inherited = {"license": "apache-2.0", "language": ["en", "de"]}
    report.request, *report.history = (entry(gone, images, day) for day, gone in enumerate(classes, 1))
    report.forget_classes, report.forget_images = [known for gone in classes for known in gone], images
    report.versions = {"python": "3.11.9", "zspag-hf": "0.1.0", "torch": "2.13.0"}
    return report


def entry(classes: list[dict], images: int, day: int) -> dict:
    """One entry of the ledger."""
    return {
        "classes": classes,
        "images": images,
        "method": "zspag",
        "seed": 0,
        "base_model": "vit-cifar10",
        "base_revision": None,
        "date": f"2026-11-{day:02}",
        "commitment": f"{day:02x}" * 32,
        "zspag_hf": "0.1.0",
    }


def row(random, names: list[str]) -> dict:
    """Scores between 0 and 1, accuracies by class."""
    scores = {score: None if score in ABSENT else float(random.random()) for score in METRICS}
    return scores | {"per_class": {name: float(random.random()) for name in names}}


def curve(random) -> dict:
    """Of a fine-tuning, to 20 steps."""
    rising = np.sort(random.random(21)).tolist()
    return {"step": list(map(float, range(21))), "acc_ut": rising, "acc_rt": rising[::-1]}


def points(random, names: list[str]) -> dict:
    """Proxies and test images in two dimensions."""
    kinds = ["retained"] * 30 + ["forgotten"] * 5 + ["proxy"] * 20
    labels = [names[0] if kind == "forgotten" else names[1 + i % (len(names) - 1)] for i, kind in enumerate(kinds)]
    x, y = random.normal(size=(2, len(kinds))).tolist()
    return {"x": x, "y": y, "kind": kinds, "label": labels}


def run(report: UnlearningReport, random, layers: int) -> None:
    """What training leaves behind."""
    report.layers = [
        {
            "name": f"vit.encoder.layer.{i // 6}.attention.attention.part_{i % 6}",
            "d_in": 64,
            "rank": 1 + i % 64,
            "free_forget_energy": float(random.random()),
            "weight_change": 0.0 if i % 7 == 0 else float(random.random()),
            "proxy_drift": 0.0 if i % 7 == 0 else float(random.random()),
        }
        for i in range(layers - 1)
    ] + [{"name": "head", "d_in": 64, "rank": 3, "free_forget_energy": 0.1, "weight_change": 1.0, "proxy_drift": 0.2}]
    readings = [(0, "whole", 0.9, 0.0), (10, "whole", 0.8, None), (20, "whole", 0.7, 0.004)]
    keys = ("step", "phase", "forget_probability", "proxy_kl")
    report.curve = [dict(zip(keys, r, strict=True)) for r in (*readings, (20, "head", 0.001, 0.004))]
    report.choice = {
        "energy_threshold": 0.99,
        "learning_rate": 0.01,
        "whole_network_steps": 20,
        "forget_probability": [0.9, 0.7, 0.001],
        "proxy_kl": 0.004,
        "whole_proxy_kl": 0.003,
        "proxy_budget": 0.01,
        "steps": 20,
        "forgotten": True,
        "way": 1.0,
    }
    report.proxies = {"count": 20, "attack_success_rate": 1.0, "per_class": {"1": 20}, "shortfall": {}}
    report.timings_s, report.peak_memory_mb = {"training": 1.5, "total": 2.0}, 300.0
    report.config, report.versions = {"forget_classes": ["0"], "attack_eps": None}, {"python": "3.11"}
