"""What happened, as one JSON file and one table."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from .files import write_whole
from .tables import score_table, summary_table

SCHEMA_VERSION = 3
REPORT_NAME, PAGE_NAME = "unlearning_report.json", "unlearning_report.html"
SPENT = 0.5  # share of the proxy budget above which what else moved the weights may have cost the forgetting
MODELS = ("original", "masked", "unlearned", "retrained")
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface-hub")


@dataclass
class UnlearningReport:
    """The report of one run; fractions are in [0, 1], times in seconds.

    Attributes:
        models: "original", "masked" (original with the forgotten logits at -inf: changes no weight, and passes both
            accuracies for free), "unlearned", "retrained" (the mean, where several were given), and any baseline that
            was run beside them -> every score of :data:`zspag_hf.metrics.METRICS`, per_class accuracies by label, and
            seconds where the run was timed. None where a model was not given or not yet evaluated.
        reasons: score -> why no model has it. row_reasons: model -> why it lacks scores that others have.
        floors: score -> mean, sd, number and 95 % prediction tolerance of the retrained models; None below two.
        verdicts: model -> score -> "as retrained", "not forgotten", "differs", "cannot tell" (the original passes too),
            or None below three retrained models.
        relearning: model -> "forget" and, at level full, "mixed" -> curve (step, acc_ut, acc_rt).
        rocs: model -> fpr and tpr of the loss attack, or None. heatmaps: model -> mean GradCAM map.
        projection: proxies among test images in two dimensions: x, y, kind and label, a point each; at level full.
        images: rows of the evaluation by split. level: "quick" or "full". retrained_models: how many were given.
        proxies: count, attack_success_rate, per_class, shortfall.
        base_model: Hub id, or name of the folder, of the model that the weights came from; base_revision: its commit on
            the Hub, None for a folder. inherited: license, license_name, license_link and language of its model card,
            those that it gives. dataset: Hub id of the data, where it was given.
        request: what this run forgot, as it stands in the model's config (``data/request.py``); history: the same
            of every earlier request on this model, oldest first. forget_classes holds the classes of all of them.
        forget_images: images in the request; each was seen as ``forget_views`` random crops where that is not 0.
        layers: name, d_in, rank, free_forget_energy, weight_change ||W - W0|| / ||W0||, and proxy_drift, the relative
            change of the layer's outputs on the proxies, a layer.
        choice: what an adaptive run chose; curve: the readings that it chose by.
        timings_s: one entry a stage, and their total.
    """

    method: str
    base_model: str
    forget_classes: list[dict]
    forget_images: int
    seed: int
    models: dict[str, dict | None] = field(default_factory=lambda: dict.fromkeys(MODELS))
    reasons: dict[str, str] = field(default_factory=dict)
    row_reasons: dict[str, str] = field(default_factory=dict)
    floors: dict[str, dict | None] = field(default_factory=dict)
    verdicts: dict[str, dict[str, str | None]] = field(default_factory=dict)
    relearning: dict[str, dict] = field(default_factory=dict)
    rocs: dict[str, dict | None] = field(default_factory=dict)
    heatmaps: dict[str, list] = field(default_factory=dict)
    projection: dict[str, list] | None = None
    images: dict[str, int] = field(default_factory=dict)
    level: str | None = None
    retrained_models: int = 0
    proxies: dict | None = None
    layers: list[dict] = field(default_factory=list)
    base_revision: str | None = None
    inherited: dict[str, str | list[str]] = field(default_factory=dict)
    dataset: str | None = None
    request: dict | None = None
    history: list[dict] = field(default_factory=list)
    choice: dict | None = None
    curve: list[dict] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    config: dict = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def save(self, folder: str) -> str:
        """Write ``unlearning_report.json`` into a folder, and once a model is evaluated ``unlearning_report.html`` and
        ``figures/*.png``, every file whole or not at all; returns the path of the first.

        The numbers are written before anything is drawn: a failure in drawing loses none of them, and leaves an earlier
        page and its pictures as they were.
        """
        os.makedirs(folder, exist_ok=True)
        text = json.dumps(finite(asdict(self)), indent=1, allow_nan=False)
        path = write_whole(os.path.join(folder, REPORT_NAME), text.encode())
        if any(self.models.values()):
            from .figures import draw_figures, write_figures  # here: page imports this module
            from .page import render

            pictures = draw_figures(self)
            page = render(self, pictures)
            write_figures(pictures, folder)
            write_whole(os.path.join(folder, PAGE_NAME), page.encode())
        return path

    @classmethod
    def load(cls, folder: str) -> UnlearningReport:
        """Read ``unlearning_report.json`` from a folder."""
        with open(os.path.join(folder, REPORT_NAME), encoding="utf-8") as file:
            return cls(**json.load(file))

    def summary(self) -> str:
        """The models by a few scores, as fixed-width text."""
        return summary_table({name: row for name, row in self.models.items() if row})

    def table(self) -> str:
        """Every score of every model, as fixed-width text: the best value and distances to the retrained model marked,
        the reason for every one that is missing."""
        return score_table(self)

    def chosen(self) -> str:
        """One paragraph on what an adaptive run chose, and from what."""
        if not self.choice:
            rate = self.config.get("learning_rate")
            return f"fixed run: {rate} learning rate." if rate else "closed form: no training steps."
        c = self.choice
        first, deep, last = c["forget_probability"]
        done = (first - deep) / (first - last) if first > last else 0.0
        depth = f"The whole network did {done:.0%} of the forgetting"
        depth += ", the head the rest: it is shallow." if done < 0.5 else "."
        away = c.get("target_js", 0.0)  # not known of earlier versions
        if c.get("features_drawn") and away > c["proxy_budget"] and c["proxy_kl"] > SPENT * c["proxy_budget"]:
            depth += (
                f"\nHeld-out forget images are answered {away:.3f} nats away from their targets: drawing their features"
                " to proxies' may have used up the budget. With feature_weight 0 the whole network may do more."
            )
        if not c["forgotten"]:
            depth += "\nNOT FORGOTTEN: held-out forget images keep their label; give more max_steps."
        return (
            f"chosen from the held-out proxies: damping at {c['energy_threshold']:g} of their energy, learning rate"
            f" {c['learning_rate']:.3g}.\nWhole network for {c['whole_network_steps']} steps: probability of the"
            f" forgotten classes {first:.3f} -> {deep:.3f}; with the head's rows for them: {last:.4f}.\n{depth}\n"
            f"Held-out proxies moved by {c['proxy_kl']:.4f} nats (budget {c['proxy_budget']:g})."
            f" {c['steps']} steps in all."
        )

    def left_out(self) -> list[str]:
        """What the run could not look at, a sentence each: retained classes without a proxy, parts of wide layers."""
        found, per_class = [], (self.proxies or {}).get("per_class", {})
        empty = sum(not count for count in per_class.values())
        if empty:
            found.append(f"{empty} of {len(per_class)} retained classes have no proxy, so nothing stands for them.")
        missed = [layer["missed"] for layer in self.layers if "missed" in layer]
        if missed:
            found.append(
                f"{len(missed)} wide layers are described in a subspace, which misses at most {max(missed):.2%} of the"
                " proxies' energy."
            )
        return found


def model_name(model) -> str:
    """The last part of the id or folder that a model was loaded from: no path of this machine."""
    return os.path.basename(os.path.normpath(model.config._name_or_path or type(model).__name__))


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers."""
    from .. import __version__

    own = {"python": platform.python_version(), "zspag-hf": __version__}
    return own | {name: version(name) for name in PACKAGES}


def finite(value):
    """The value with every number that JSON does not know replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
