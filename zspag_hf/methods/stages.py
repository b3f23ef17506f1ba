"""The pipeline's stages with a trainer's options filled in, shared by the methods that use them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.labels import distinct
from ..errors import UnlearningError
from ..pipeline.attacks import ATTACKS, Attack
from ..pipeline.constraint import HardConstraint, SoftConstraint
from ..pipeline.grams import Frame, collect_grams, energy_missed, find_frames, framed, too_wide
from ..pipeline.influence import inverse_hessian_product, label_influence, mean_gradient
from ..pipeline.proxies import ProxySet, make_proxies
from ..pipeline.pseudo_labels import PseudoLabels, paper_pseudo_labels, pseudo_labels, tilted_reweighting
from ..pipeline.subspaces import Basis, LayerGrams, Spectrum, free_energy, literal_bases, random_bases

REPORTED_IMAGES = 256
INFLUENCE_IMAGES = 256  # proxies, drawn at random, that gradient and curvature are averaged over


@dataclass
class Subspaces:
    """Proxy Gram matrices with their spectrum, and the bases that stand in for its own: literal (eq. 3-4), random, or
    None."""

    grams: LayerGrams
    spectrum: Spectrum
    bases: dict[str, Basis] | None


def attack_from(args) -> Attack:
    """The attack that the options name."""
    given = {"eps": args.attack_eps, "steps": args.attack_steps}
    return ATTACKS[args.attack](**{k: v for k, v in given.items() if v is not None})


def gather_proxies(
    trainer,
    pixels: Tensor,
    per_class: int,
    max_proxies: int,
    name: str = "proxies",
    logits: Tensor | None = None,
    own: Tensor | None = None,
) -> ProxySet:
    """The stage ``name``: proxies of some forget images, whose logits may be known; ``own`` are their classes, where
    these stay."""
    args = trainer.args

    def make():
        found = make_proxies(
            trainer.classifier,
            pixels,
            trainer.forget_ids,
            attack_from(args),
            policy=args.proxy_policy,
            per_class=per_class,
            max_proxies=max_proxies,
            seed=args.seed,
            disable_progress=trainer.quiet,
            logits=logits,
            own=own,
        )
        facts = dict(vars(found))
        return {key: facts.pop(key) for key in ("pixels", "labels")}, facts

    tensors, facts = trainer.finished(name, "proxies", make)
    for key in ("per_class", "shortfall"):  # JSON knows no numbers as keys
        facts[key] = {int(k): n for k, n in facts[key].items()}
    return ProxySet(**tensors, **facts)


def gather_all_proxies(trainer) -> ProxySet:
    """The stage "proxies", of all forget images; of images whose classes stay none is a proxy of its own class."""
    args, forget = trainer.args, trainer.forget
    own = None if trainer.request.class_ids else forget.labels
    return gather_proxies(trainer, forget.pixels, args.proxies_per_class, args.max_proxies, own=own)


def gather_subspaces(trainer, proxies: ProxySet) -> Subspaces:
    """The stages "frames", of layers too wide for a matrix, and "subspaces"; the trainer's layers get their frames."""
    args, classifier = trainer.args, trainer.classifier
    trainer.layers = {name: replace(layer, frame=None) for name, layer in trainer.layers.items()}  # of an earlier run
    wide = too_wide(trainer.layers, args.max_memory_gb)
    options = {"disable_progress": trainer.quiet}

    def make_frames():
        frames = find_frames(classifier, proxies.pixels, trainer.layers, wide, args.seed, **options)
        return {n: frame.columns for n, frame in frames.items()}, {n: frame.missed for n, frame in frames.items()}

    columns, missed = trainer.finished("frames", "subspaces", make_frames) if wide else ({}, {})
    trainer.frames = {name: Frame(columns[name], missed[name]) for name in wide}
    trainer.layers = framed(trainer.layers, trainer.frames)

    def make():
        grams = collect_grams(
            classifier, proxies.pixels, proxies.labels, trainer.layers, max_memory_gb=args.max_memory_gb, **options
        )
        owner = {name: next(n for n in grams if grams[n] is gram) for name, gram in grams.items()}
        return {name: grams[name] for name in set(owner.values())}, owner

    grams = LayerGrams(*trainer.finished("subspaces", "subspaces", make))
    grams.tensors = trainer.cache.on_disk("subspaces", grams.tensors)  # large, and read a layer at a time
    with trainer.stage("subspaces"):
        spectrum = Spectrum(grams, classifier.device, grams.owner)
        bases, threshold = None, args.energy_threshold
        if args.subspace_merge == "literal" and args.constraint == "hard":
            bases = literal_bases(classifier, proxies.pixels, proxies.labels, trainer.layers, threshold)
        if args.subspace_merge == "random":
            bases = random_bases(spectrum.bases(threshold), args.seed)
    return Subspaces(grams, spectrum, bases)


def confine(trainer, plan) -> None:
    """Give a plan without a constraint the one that the options name, from proxies of all forget images; then only
    layers that it confines move."""
    args = trainer.args
    if plan.constraint is not None or args.constraint == "none":
        return
    proxies = gather_all_proxies(trainer)
    subspaces = gather_subspaces(trainer, proxies)
    plan.constraint = build_constraint(trainer, subspaces, args.energy_threshold)
    plan.facts.setdefault("proxies", proxy_facts(proxies, trainer.label_names_by_id))
    plan.facts["layers"] = layer_facts(trainer, plan.constraint, subspaces, trainer.forget.pixels)
    plan.facts["owner"] = subspaces.grams.owner
    names = list(trainer.layers)
    plan.trainable = names if plan.trainable is None else [name for name in plan.trainable if name in names]


def gather_targets(trainer, facts: dict, logits: Tensor | None = None, known: tuple | None = None) -> PseudoLabels:
    """The stage "pseudo_labels": the targets of the forget images that ``pseudo_label``, ``prior`` and ``tilt`` name.

    Args:
        facts: of the plan, which get those of proxies that are made here.
        logits: ``(N, C)`` of the original on the forget images, where they are known.
        known: images with labels that stand for the retained ones, and their :class:`Subspaces`, for what is made by
            influence; unset: proxies of all forget images.
    """
    args = trainer.args

    def make():
        start = trainer.classifier.predict_shared(trainer.forget.pixels) if logits is None else logits
        found = make_targets(trainer, start, known)
        return {name: tensor for name, tensor in vars(found).items() if tensor is not None}, {}

    if known is None and args.by_influence:  # stages of their own
        proxies = gather_all_proxies(trainer)
        facts["proxies"] = proxy_facts(proxies, trainer.label_names_by_id)
        known = proxies, gather_subspaces(trainer, proxies)
    tensors, _ = trainer.finished("pseudo_labels", "pseudo_labels", make)
    return PseudoLabels(tensors["targets"], tensors.get("influence"))


def make_targets(trainer, logits: Tensor, known: tuple | None) -> PseudoLabels:
    args, forget, gone = trainer.args, trainer.forget, trainer.forget_ids
    influence = forget_influence(trainer, *known) if args.by_influence else None
    if args.pseudo_label == "paper":
        return paper_pseudo_labels(influence, forget.labels, gone, seed=args.seed, sign=args.influence_sign)
    if args.tilt == "similarity":
        return tilted_reweighting(logits, gone, head_weight(trainer), trainer.request.class_ids, prior=args.prior)
    return pseudo_labels(logits, gone, influence, args.prior, args.tilt_temperature, args.influence_sign)


def forget_influence(trainer, images, subspaces: Subspaces) -> Tensor:
    """``(N, C)``: of each forget image with each label, on the mean loss of ``images`` (``pixels`` and ``labels``)."""
    args, classifier, layers = trainer.args, trainer.classifier, trainer.layers
    generator = torch.Generator().manual_seed(args.seed)
    some = torch.randperm(len(images.labels), generator=generator)[:INFLUENCE_IMAGES]
    pixels = images.pixels[some]
    g = mean_gradient(classifier, pixels, images.labels[some], layers)
    v = inverse_hessian_product(
        args.influence_solver, classifier, pixels, layers, subspaces.grams, g, args.influence_damping, seed=args.seed
    )
    return label_influence(classifier, trainer.forget.pixels, v, layers, disable_progress=trainer.quiet)


def build_constraint(trainer, subspaces: Subspaces, threshold: float) -> HardConstraint | SoftConstraint | None:
    """The constraint that the options name, at one energy threshold for every layer."""
    if trainer.args.constraint == "none":
        return None
    if trainer.args.constraint == "soft":
        return SoftConstraint(trainer.layers, subspaces.spectrum.dampings(threshold))
    return HardConstraint(trainer.layers, subspaces.bases or subspaces.spectrum.bases(threshold))


def head_weight(trainer) -> Tensor:
    """The head's rows, ``(C, d_in)``, one a class.

    Raises:
        UnlearningError: the model has no head.
    """
    if trainer.head is None:
        raise UnlearningError(
            f"no layer of the model has one output for each of its {trainer.classifier.num_labels} labels, and its rows"
            " are what classes are compared by: give tilt='none' in place of tilt='similarity', or another method than"
            " method='trw'."
        )
    layer = trainer.layers[trainer.head]
    return layer.matrix(layer.weight.detach()).flatten(0, 1)


def proxy_facts(proxies: ProxySet, names: list[str]) -> dict:
    names = distinct(names)
    return {
        "count": len(proxies),
        "attack_success_rate": proxies.attack_success_rate,
        "per_class": {names[k]: n for k, n in proxies.per_class.items()},
        "shortfall": {names[k]: n for k, n in proxies.shortfall.items()},
    }


def layer_facts(trainer, constraint, subspaces: Subspaces, forget_pixels: Tensor) -> list[dict]:
    """The stage "layers": width, rank at the threshold, the share of forget energy (of ``REPORTED_IMAGES`` images at
    most) that the constraint leaves free, and of proxy energy that a wide layer's frame misses."""
    if constraint is None:
        return []
    threshold = trainer.args.energy_threshold

    def make():
        some = forget_pixels[:: -(-len(forget_pixels) // REPORTED_IMAGES)]
        one_class = torch.zeros(len(some), dtype=torch.long)
        forget = collect_grams(
            trainer.classifier, some, one_class, trainer.layers, max_memory_gb=trainer.args.max_memory_gb
        )
        columns = {name: frame.columns for name, frame in trainer.frames.items()}
        outside = energy_missed(trainer.classifier, some, trainer.layers, columns) if columns else {}
        facts = []
        for name, layer in trainer.layers.items():
            given = subspaces.bases[name] if subspaces.bases else None
            if isinstance(constraint, SoftConstraint):
                free = constraint.dampings[name].double().cpu()
            else:
                vectors = (given or subspaces.spectrum.basis(name, threshold)).vectors
                free = torch.stack([torch.eye(layer.width, dtype=torch.float64) - v @ v.T for v in vectors])
            missed = outside.get(name, 0.0)  # nothing is damped there
            record = {
                "name": name,
                "d_in": layer.d_in,
                "rank": given.rank if given else subspaces.spectrum.rank(name, threshold),
                "free_forget_energy": missed + (1 - missed) * free_energy(forget[name], free),
            }
            frame = trainer.frames.get(name)
            facts.append(record if frame is None else record | {"frame_width": layer.width, "missed": frame.missed})
        return {}, {"layers": facts}

    return trainer.finished("layers", "subspaces", make)[1]["layers"]
