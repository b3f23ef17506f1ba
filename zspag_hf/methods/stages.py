"""The pipeline's stages with a run's data and a method's options filled in, shared by the methods that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.labels import distinct
from ..errors import UnlearningError
from ..pipeline.constraint import HardConstraint, SoftConstraint
from ..pipeline.gradients import mean_gradient
from ..pipeline.grams import Frame, collect_grams, energy_missed, find_frames, framed, too_wide
from ..pipeline.influence import kfac, label_influence
from ..pipeline.proxies import ProxySet, make_proxies
from ..pipeline.pseudo_labels import PseudoLabels, paper_pseudo_labels, pseudo_labels, seen_labels, tilted_reweighting
from ..pipeline.subspaces import Basis, LayerGrams, Spectrum, free_energy, merged_bases, random_bases
from .options import PAPER, Confined, Constrained, Proxies, Targets
from .plan import Plan
from .run import Run

TRAINED_LABELS = "trained_labels"  # a stage
REPORTED_IMAGES = 256
INFLUENCE_IMAGES = 256  # proxies, drawn at random, that gradient and curvature are averaged over


@dataclass
class Subspaces:
    """Proxy Gram matrices with their spectrum; the bases that stand in for its own: merged (eq. 3-4), random, or None;
    and the frames of layers too wide for a matrix."""

    grams: LayerGrams
    spectrum: Spectrum
    bases: dict[str, Basis] | None
    frames: dict[str, Frame]


# ---------------------------------------------------------------------- labels that were trained, and are wrong


def trained_labels(run: Run, logits: Tensor | None = None) -> Tensor | None:
    """The stage "trained_labels": ``(N,)`` the retained class that the original was trained to give each forget image,
    -1 for none; None where there is none at all. Told by a column, or else by the original's sure answers
    (:func:`zspag_hf.pipeline.pseudo_labels.seen_labels`), of requests for classes alone.

    Args:
        logits: ``(N, C)`` of the original on the forget images, where they are known.
    """
    forget = run.forget
    if not run.class_ids:
        return None

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        wrong, given = forget.trained_labels, forget.trained_labels is not None
        if wrong is None:
            whole = len(forget.images) == len(forget)  # no crops in place of the images
            known = logits if whole and logits is not None else run.classifier.predict_shared(forget.images)
            wrong = seen_labels(known, forget.image_labels, run.forget_ids)
            wrong = wrong.repeat_interleave(len(forget) // len(wrong))
        each = max(1, run.args.forget_views)
        counts = {k: int((wrong == k).sum()) // each for k in wrong[wrong >= 0].unique().tolist()}
        return {"labels": wrong}, {"given": given, "images": [[k, count] for k, count in counts.items()]}

    wrong = run.stage(TRAINED_LABELS, make)[0]["labels"]
    return wrong if (wrong >= 0).any() else None


def masked_outputs(run: Run, logits: Tensor, start: Tensor | None = None) -> Tensor:
    """``(N, C)``: what the original says of the forget images, or of images made one from each, without the forgotten
    classes and the wrong labels that it was trained to give.

    Args:
        logits: ``(N, C)``. start: the same of the forget images, where these are others.
    """
    trained = trained_labels(run, logits if start is None else start)
    return pseudo_labels(logits, run.forget_ids, None, trained=trained).targets


# ---------------------------------------------------------------------- proxies (eq. 1 and 2)


def gather_proxies(
    run: Run,
    method: Proxies,
    rows: Tensor | None = None,
    *,
    share: float = 1.0,
    name: str = "proxies",
    logits: Tensor | None = None,
) -> ProxySet:
    """The stage ``name``: proxies of some forget images, of all by default.

    Args:
        rows: ``(n,)`` indices of the forget images.
        share: of the numbers of proxies that the options name. logits: ``(n, C)`` of the images, where they are known.
    """
    wrong = trained_labels(run, logits if rows is None else None)
    own = wrong if run.class_ids else run.forget.labels  # classes that stay: no proxy of one's own
    if own is not None and rows is not None:
        own = own[rows]

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        proxies = make_proxies(
            run.classifier,
            run.forget.pixels if rows is None else run.forget.pixels[rows],
            run.forget_ids,
            method.make_attack(),
            policy=method.proxy_policy,
            per_class=max(1, round(method.proxies_per_class * share)),
            max_proxies=max(1, round(method.max_proxies * share)),
            disable_progress=run.quiet,
            logits=logits,
            own=own,
        )
        facts = dict(vars(proxies))
        tensors = {key: facts.pop(key) for key in ("pixels", "labels", "own")}
        return {key: tensor for key, tensor in tensors.items() if tensor is not None}, facts

    tensors, facts = run.stage(name, make, under="proxies")
    for key in ("per_class", "shortfall"):  # JSON knows no numbers as keys
        facts[key] = {int(k): n for k, n in facts[key].items()}
    return ProxySet(tensors["pixels"], tensors["labels"], **facts, own=tensors.get("own"))


def proxy_facts(run: Run, proxies: ProxySet) -> dict[str, Any]:
    """For the report: how many proxies there are, by class, and how many attacks succeeded."""
    names = distinct(run.label_names)
    return {
        "count": len(proxies),
        "attack_success_rate": proxies.attack_success_rate,
        "per_class": {names[k]: n for k, n in proxies.per_class.items()},
        "shortfall": {names[k]: n for k, n in proxies.shortfall.items()},
    }


# ---------------------------------------------------------------------- subspaces and constraint (eq. 3 to 5)


def gather_subspaces(run: Run, images: Any, method: Constrained | None = None) -> Subspaces:
    """The stages "frames", of layers too wide for a matrix, and "subspaces"; the run's layers get their frames.

    Args:
        images: ``pixels`` ``(n, channels, H, W)`` and ``labels`` ``(n,)`` that stand for retained ones. method: where
            it asks for other bases than those of the Gram matrices.
    """
    classifier, bound = run.classifier, run.args.max_memory_gb
    run.layers = {name: replace(layer, frame=None) for name, layer in run.layers.items()}  # of an earlier run
    wide = too_wide(run.layers, bound)

    def make_frames() -> tuple[dict[str, Tensor], dict[str, Any]]:
        made = find_frames(classifier, images.pixels, run.layers, wide, run.seed, disable_progress=run.quiet)
        return {n: frame.columns for n, frame in made.items()}, {n: frame.missed for n, frame in made.items()}

    columns, missed = run.stage("frames", make_frames, under="subspaces") if wide else ({}, {})
    frames = {name: Frame(columns[name], missed[name]) for name in wide}
    run.layers = framed(run.layers, frames)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        grams = collect_grams(
            classifier, images.pixels, images.labels, run.layers, max_memory_gb=bound, disable_progress=run.quiet
        )
        owner = {name: next(n for n in grams if grams[n] is gram) for name, gram in grams.items()}
        return {name: grams[name] for name in set(owner.values())}, owner

    grams = LayerGrams(*run.stage("subspaces", make))
    grams.tensors = run.stages.on_disk("subspaces", dict(grams.tensors))  # large, and read a layer at a time
    with run.timed("subspaces"):
        spectrum, bases = Spectrum(grams, classifier.device, grams.owner), None
        merge = "gram" if method is None else method.subspace_merge
        if method is not None and merge != "gram":
            rule = "truncated" if merge == "random" else merge  # whose ranks the random ones have
            inputs = (classifier, images.pixels, images.labels, run.layers)
            bases = merged_bases(*inputs, method.threshold, rule, bound, run.quiet)
            bases = random_bases(bases, run.seed) if merge == "random" else bases
    return Subspaces(grams, spectrum, bases, frames)


def constrain(run: Run, plan: Plan, subspaces: Subspaces, kind: str, threshold: float, forget: Tensor) -> None:
    """Give a plan its constraint, "soft" or "hard", at one energy threshold for every layer, and its facts (eq. 5)."""
    if kind == "soft":
        plan.constraint = SoftConstraint(run.layers, subspaces.spectrum.dampings(threshold))
    else:
        plan.constraint = HardConstraint(run.layers, subspaces.bases or subspaces.spectrum.bases(threshold))
    plan.facts["layers"] = layer_facts(run, plan.constraint, subspaces, threshold, forget)
    plan.facts["owner"] = subspaces.grams.owner


def confine(run: Run, plan: Plan, method: Confined) -> None:
    """Give a plan without a constraint the one that the options name, from proxies of all forget images; then only
    layers that it confines move."""
    if method.constraint == "none":
        return
    proxies = gather_proxies(run, method)
    subspaces = gather_subspaces(run, proxies, method)
    plan.facts.setdefault("proxies", proxy_facts(run, proxies))
    constrain(run, plan, subspaces, method.constraint, method.threshold, run.forget.pixels)
    names = list(run.layers)
    plan.trainable = names if plan.trainable is None else [name for name in plan.trainable if name in names]


def layer_facts(
    run: Run, constraint: HardConstraint | SoftConstraint, subspaces: Subspaces, threshold: float, forget: Tensor
) -> list[dict[str, Any]]:
    """The stage "layers": width, rank at the threshold, the share of forget energy (of ``REPORTED_IMAGES`` images at
    most) that the constraint leaves free, and of proxy energy that a wide layer's frame misses."""

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        some = forget[:: -(-len(forget) // REPORTED_IMAGES)]
        one_class = torch.zeros(len(some), dtype=torch.long)
        grams = collect_grams(run.classifier, some, one_class, run.layers, max_memory_gb=run.args.max_memory_gb)
        columns = {name: frame.columns for name, frame in subspaces.frames.items()}
        outside = energy_missed(run.classifier, some, run.layers, columns) if columns else {}
        facts = []
        for name, layer in run.layers.items():
            given = subspaces.bases[name] if subspaces.bases else None
            if isinstance(constraint, SoftConstraint):
                free = constraint.dampings[name].double().cpu()
            else:
                vectors = (given or subspaces.spectrum.basis(name, threshold)).vectors
                free = torch.stack([torch.eye(layer.width, dtype=torch.float64) - v @ v.T for v in vectors])
            missed = outside.get(name, 0.0)  # nothing is damped there
            record: dict[str, Any] = {
                "name": name,
                "d_in": layer.d_in,
                "rank": given.rank if given else subspaces.spectrum.rank(name, threshold),
                "free_forget_energy": missed + (1 - missed) * free_energy(grams[name], free),
            }
            if name in subspaces.frames:
                record |= {"frame_width": layer.width, "missed": subspaces.frames[name].missed}
            facts.append(record)
        return {}, {"layers": facts}

    return run.stage("layers", make, under="subspaces")[1]["layers"]


# ---------------------------------------------------------------------- targets (eq. 7 to 10)


def gather_targets(
    run: Run,
    method: Targets,
    logits: Tensor | None = None,
    images: Any = None,
    grams: Mapping[str, Tensor] | None = None,
) -> PseudoLabels:
    """The stage "pseudo_labels": the targets of the forget images that ``targets`` and ``tilt`` name.

    Args:
        logits: ``(N, C)`` of the original on the forget images, where they are known.
        images, grams: ``pixels`` and ``labels`` that stand for the retained ones, and the Gram matrices of their
            inputs, for what is made by influence.
    """

    trained = trained_labels(run, logits)  # a stage of its own, timed by itself

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        start = run.classifier.predict_shared(run.forget.pixels) if logits is None else logits
        made = make_targets(run, method, start, images, grams, trained)
        return {name: tensor for name, tensor in vars(made).items() if tensor is not None}, {}

    tensors, _ = run.stage("pseudo_labels", make)
    return PseudoLabels(tensors["targets"], tensors.get("influence"))


def targets_from_proxies(run: Run, method: Any, facts: dict[str, Any]) -> Tensor:
    """``(N, C)`` targets of a method that makes proxies for them alone, whose facts go into ``facts``."""
    if not method.by_influence:
        return gather_targets(run, method).targets
    proxies = gather_proxies(run, method)
    facts["proxies"] = proxy_facts(run, proxies)
    return gather_targets(run, method, None, proxies, gather_subspaces(run, proxies).grams).targets


def make_targets(
    run: Run,
    method: Targets,
    logits: Tensor,
    images: Any,
    grams: Mapping[str, Tensor] | None,
    trained: Tensor | None,
) -> PseudoLabels:
    """By the original's logits ``(N, C)``, tilted by influence or by the likeness of classes, or by influence alone."""
    influence = forget_influence(run, images, grams) if method.by_influence and grams is not None else None
    if method.targets in PAPER and influence is not None:
        masked = method.targets == "paper"
        return paper_pseudo_labels(
            influence, run.forget.labels, run.forget_ids, run.seed, method.influence_sign, masked, trained
        )
    if method.tilt == "similarity":
        head = head_weight(run)
        return tilted_reweighting(logits, run.forget_ids, head, run.class_ids, method.targets, trained)
    return pseudo_labels(logits, run.forget_ids, influence, method.targets, sign=method.influence_sign, trained=trained)


def forget_influence(run: Run, images: Any, grams: Mapping[str, Tensor]) -> Tensor:
    """``(N, C)``: of each forget image with each label, on the mean loss of ``images`` (eq. 7 to 9)."""
    generator = torch.Generator().manual_seed(run.seed)
    some = torch.randperm(len(images.labels), generator=generator)[:INFLUENCE_IMAGES]
    pixels, labels = images.pixels[some], images.labels[some]
    weights = {f"{name}.weight": layer.weight for name, layer in run.layers.items()}
    gradients = mean_gradient(run.classifier, pixels, labels, weights)
    g = {name: gradients[f"{name}.weight"] for name in run.layers}
    v = kfac(run.classifier, pixels, run.layers, grams, g, seed=run.seed)
    return label_influence(run.classifier, run.forget.pixels, v, run.layers, disable_progress=run.quiet)


def head_weight(run: Run) -> Tensor:
    """The head's rows, ``(C, d_in)``, one a class.

    Raises:
        UnlearningError: the model has no head.
    """
    if run.head is None:
        raise UnlearningError(
            f"no layer of the model has one output for each of its {run.classifier.num_labels} labels, and its rows"
            " are what classes are compared by: give tilt='none' in place of tilt='similarity', or another method than"
            " method='trw'."
        )
    layer = run.layers[run.head]
    return layer.matrix(layer.weight.detach()).flatten(0, 1)
