"""The pipeline's stages with a trainer's options filled in, shared by the methods that use them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks import ATTACKS, Attack
from ..constraint import HardConstraint, SoftConstraint
from ..labels import distinct
from ..proxies import ProxySet, make_proxies
from ..subspaces import Spectrum, collect_grams, free_energy, literal_bases


@dataclass
class Subspaces:
    """Proxy Gram matrices with their spectrum, or literal bases (eq. 3-4)."""

    grams: dict[str, Tensor]
    spectrum: Spectrum
    literal: dict | None


def attack_from(args) -> Attack:
    """The attack that the options name."""
    given = {"eps": args.attack_eps, "steps": args.attack_steps}
    return ATTACKS[args.attack](**{k: v for k, v in given.items() if v is not None})


def gather_proxies(trainer, pixels: Tensor, per_class: int, max_proxies: int) -> ProxySet:
    args = trainer.args
    return make_proxies(
        trainer.classifier,
        pixels,
        trainer.forget_ids,
        attack_from(args),
        policy=args.proxy_policy,
        per_class=per_class,
        max_proxies=max_proxies,
        seed=args.seed,
        disable_progress=trainer.quiet,
    )


def gather_subspaces(trainer, proxies: ProxySet) -> Subspaces:
    args = trainer.args
    grams = collect_grams(
        trainer.classifier, proxies.pixels, proxies.labels, trainer.layers, disable_progress=trainer.quiet
    )
    literal = None
    if args.subspace_merge == "literal" and args.constraint == "hard":
        literal = literal_bases(
            trainer.classifier, proxies.pixels, proxies.labels, trainer.layers, args.energy_threshold
        )
    return Subspaces(grams, Spectrum(grams), literal)


def build_constraint(trainer, subspaces: Subspaces, threshold: float) -> HardConstraint | SoftConstraint | None:
    """The constraint that the options name, at one energy threshold for every layer."""
    if trainer.args.constraint == "none":
        return None
    if trainer.args.constraint == "soft":
        return SoftConstraint(trainer.layers, subspaces.spectrum.dampings(threshold))
    bases = subspaces.literal or {name: subspaces.spectrum.basis(name, threshold) for name in trainer.layers}
    return HardConstraint(trainer.layers, bases)


def proxy_facts(proxies: ProxySet, names: list[str]) -> dict:
    names = distinct(names)
    return {
        "count": len(proxies),
        "attack_success_rate": proxies.attack_success_rate,
        "per_class": {names[k]: n for k, n in proxies.per_class.items()},
        "shortfall": {names[k]: n for k, n in proxies.shortfall.items()},
    }


def layer_facts(trainer, constraint, subspaces: Subspaces, forget_pixels: Tensor, args) -> list[dict]:
    """Per layer: width, rank at the threshold, and the share of forget energy that the constraint leaves free."""
    if constraint is None:
        return []
    zeros = torch.zeros(len(forget_pixels), dtype=torch.long)
    forget = collect_grams(trainer.classifier, forget_pixels, zeros, trainer.layers)
    facts = []
    for name, layer in trainer.layers.items():
        basis = subspaces.literal[name] if subspaces.literal else subspaces.spectrum.basis(name, args.energy_threshold)
        if isinstance(constraint, SoftConstraint):
            free = constraint.dampings[name].double().cpu()
        else:
            free = torch.stack([torch.eye(layer.d_in, dtype=torch.float64) - v @ v.T for v in basis.vectors])
        facts.append(
            {
                "name": name,
                "d_in": layer.d_in,
                "rank": basis.rank,
                "free_forget_energy": free_energy(forget[name], free),
            }
        )
    return facts
