"""What a run did and what its evaluation measured: the fields of a report, and the few sentences that the run says of
itself. Tables, page, figures and card are made from these; :class:`zspag_hf.UnlearningReport` saves and shows them."""

from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 3
MODELS = ("original", "masked", "unlearned", "retrained")


@dataclass
class Findings:
    """Fractions are in [0, 1], times in seconds.

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
        images: rows of the evaluation by split; left_out_tests: test images that are forget images, and not among them.
            level: "quick" or "full". retrained_models: how many were given.
        proxies: count, attack_success_rate, per_class, shortfall.
        base_model: Hub id, or name of the folder, that the weights came from; base_revision: its commit on the Hub, or
            None. inherited: license, license_name, license_link, language, as its card has them. dataset: Hub id.
        request: what this run forgot, as the model's config has it (``data/request.py``); history: the same of every
            earlier request on this model, oldest first. forget_classes: the classes of all of them.
        forget_images: in the request; each was seen as ``forget_views`` random crops where that is not 0.
        layers: a layer's name, d_in, rank, free_forget_energy, weight_change ||W - W0|| / ||W0||, and proxy_drift, the
            relative change of its outputs on the proxies.
        trained_labels: "images", a retained label -> forget images that the original was trained to give it, and
            "given", whether a column said so, or else the original's answers; None where there are none.
        choice: what an adaptive run chose; curve: the held-out measurements that it chose by.
        timings_s: one entry a stage, and their total.
        config: options of the run. method_options: the method's, as the run resolved them. given: all that were given,
            for the command that repeats it. about: what the method does, in sentences. reads_retained: whether it read
            retained data; retained_images: how many, None where it read none.
        public_images: "used", unlabelled images that stood in for retained ones, and "left_out", those that the
            original gives a forgotten class; None where none were given.
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
    left_out_tests: int = 0
    level: str | None = None
    retrained_models: int = 0
    proxies: dict | None = None
    layers: list[dict] = field(default_factory=list)
    trained_labels: dict | None = None
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
    method_options: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)
    about: list[str] = field(default_factory=list)
    reads_retained: bool | None = None
    retained_images: int | None = None
    public_images: dict[str, int] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def options(self) -> dict[str, Any]:
        """All options of the run; the method's, as resolved, come first and have precedence."""
        return self.method_options | self.config | self.method_options

    @property
    def zero_shot(self) -> bool:
        """Whether no retained data was read; a report of an earlier version says so by an option."""
        return not (self.options.get("with_retain") if self.reads_retained is None else self.reads_retained)

    def tolerance(self, score: str) -> float | None:
        """Half-width of the range in which one more retrained model would fall; None where it is not known."""
        return (self.floors.get(score) or {}).get("tolerance")

    def chosen(self) -> str:
        """One paragraph on what an adaptive run chose, and from what."""
        if not self.choice:
            rate = self.options.get("learning_rate")
            return f"fixed run: {rate} learning rate." if rate else "closed form: no training steps."
        c = self.choice
        first, deep, last = c["forget_probability"]
        done = (first - deep) / (first - last) if first > last else 0.0
        depth = f"The whole network did {done:.0%} of the forgetting"
        depth += ", the head the rest: it is shallow." if done < 0.5 else "."
        if not c["forgotten"]:
            depth += "\nNOT FORGOTTEN: held-out forget images keep their label; give more max_steps."
        if "way" in c:  # not known of earlier versions
            depth += f"\n{c['way']:.0%} of the way was kept, as far as the held-out proxies allow."
        return (
            f"judged by held-out proxies: damping at {c['energy_threshold']:g} of their energy, learning rate"
            f" {c['learning_rate']:.3g}.\nWhole network for {c['whole_network_steps']} steps: probability of the"
            f" forgotten classes {first:.3f} -> {deep:.3f}; with the head's rows for them: {last:.4f}.\n{depth}\n"
            f"Held-out proxies moved by {c.get('whole_proxy_kl', c['proxy_kl']):.4f} nats (budget"
            f" {c['proxy_budget']:g}), with the head by {c['proxy_kl']:.4f}. {c['steps']} steps in all."
        )

    def left_out(self) -> list[str]:
        """What the run left out, a sentence each: labels that were wrong, public images of forgotten classes, retained
        classes without a proxy, parts of wide layers."""
        lines, per_class = [], (self.proxies or {}).get("per_class", {})
        if self.trained_labels:
            told = ", ".join(f"{n} as {label!r}" for label, n in self.trained_labels["images"].items())
            by = "the data say" if self.trained_labels["given"] else "the original's sure answers say"
            lines.append(
                f"Forget images were trained under a label of another class, {by}: {told}; neither their targets nor"
                " their proxies keep it."
            )
        if self.public_images and (left := self.public_images["left_out"]):
            lines.append(
                f"{left} of {left + self.public_images['used']} unlabelled images were left out, as the original gives"
                " them a forgotten class."
            )
        if empty := sum(not count for count in per_class.values()):
            lines.append(f"{empty} of {len(per_class)} retained classes have no proxy, so nothing stands for them.")
        if missed := [layer["missed"] for layer in self.layers if "missed" in layer]:
            lines.append(
                f"{len(missed)} wide layers are described in a subspace, which misses at most {max(missed):.2%} of the"
                " proxies' energy."
            )
        return lines
