"""Options that several methods share, each a mixin: recipe, proxies, constraint, targets, retained images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from ..config import UnlearningConfig, option
from ..errors import UnlearningError
from ..pipeline.attacks import ATTACKS, Attack
from ..pipeline.proxies import POLICIES
from ..pipeline.pseudo_labels import SIGNS
from .base import Method

PRIORS = {  # targets made of the original's outputs -> in words
    "renormalised": "the original outputs without the forgotten classes",
    "uniform": "all classes that stay alike",
    "second_best": "the most likely class that stays",
}
TILTS = {"influence": ", tilted by influence", "similarity": ", tilted to the classes most like them", "none": ""}
CONSTRAINTS = {
    "none": None,
    "soft": "Training steps were damped in the directions that the proxies use.",
    "hard": "Training steps were confined to directions that the proxies do not use.",
}
MERGES = ("gram", "truncated", "gpm", "random")
PAPER = {  # targets made by influence alone -> in words
    "paper": "pseudo-labels by influence, eq. 7-10 of ZS-PAG",
    "paper_unmasked": "pseudo-labels by influence, eq. 7-10 of ZS-PAG, with its KL in place of a mask",
}


@dataclass(kw_only=True)
class Trained(Method):
    """Steps by Trainer's loop. The recipe is the method's own, as published; the config's has precedence."""

    learning_rate: float | None = option(0.01, "Of the optimizer.", above=0)
    num_train_epochs: float | None = option(10, "Epochs over the images to train on.", above=0)
    optim: str = option("sgd", "Optimizer, as transformers names it.")
    optim_args: str | None = option(None, 'Of the optimizer, for example "momentum=0.9".')
    weight_decay: float = option(0.0, "Of the optimizer.", least=0)


@dataclass(kw_only=True)
class Proxies(Method):
    """Adversarial proxies, made from the forget images (eq. 1 and 2)."""

    attack: str = option("pgd", "Attack that makes the proxies", choices=ATTACKS)
    attack_eps: float | None = option(None, "Its radius in [0, 1] pixel units; unset for the attack's own.", above=0)
    attack_steps: int | None = option(None, "Its steps at most; unset for its own.", least=1, whole=True)
    proxy_policy: str = option("quota", "Proxies for every retained class, or the literal eq. 2", choices=POLICIES)
    proxies_per_class: int = option(
        100, "Proxies per retained class, the paper's n_adv, with proxy_policy='quota'.", least=1, whole=True
    )
    max_proxies: int = option(1000, "Bound on all training proxies together.", least=1, whole=True)

    def __post_init__(self):
        super().__post_init__()
        if self.attack == "fgsm" and self.attack_steps not in (None, 1):
            raise UnlearningError(f"attack_steps={self.attack_steps}: fgsm takes one step; use attack='pgd' for more.")
        if self.proxy_policy == "second" and self.proxies_per_class != 100:
            raise UnlearningError(
                f"proxies_per_class={self.proxies_per_class}: eq. 2 gives each image one proxy; leave it out, or give"
                " proxy_policy='quota'."
            )

    def make_attack(self) -> Attack:
        """The attack that the options name."""
        given: dict[str, Any] = {"eps": self.attack_eps, "steps": self.attack_steps}
        return ATTACKS[self.attack](**{name: value for name, value in given.items() if value is not None})


def nothing(method: Method, name: str, value: Any) -> str:
    """Why an option of the constraint is refused where there is none."""
    return (
        f"{name}={value!r} would change nothing, as {type(method).__name__} has no constraint here: give"
        " constraint='soft' or 'hard', or leave it out."
    )


@dataclass(kw_only=True)
class Constrained(Method):
    """Steps confined to what some images do not use (eq. 3 to 5), or damped by how much they use it."""

    hard_threshold: ClassVar[float] = 0.99

    constraint: str = option(
        "none", "Damp what proxies use, leave their subspace alone exactly, or neither", choices=CONSTRAINTS
    )
    energy_threshold: float | None = option(
        None,
        "Share of the proxies' energy that sets rank (hard; unset .99) or damping (soft; .999), in (0, 1].",
        above=0,
        most=1,
    )
    subspace_merge: str = option(
        "gram",
        "One Gram matrix a layer; hard form alone: eq. 4 cut as UNSC's, GPM's rule, or random at the ranks of the cut",
        choices=MERGES,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.constraint != "hard" and self.subspace_merge != "gram":
            raise UnlearningError(
                f"subspace_merge={self.subspace_merge!r} yields bases, and constraint={self.constraint!r} is made of"
                " none: give subspace_merge='gram', or constraint='hard'."
            )
        if self.constraint == "none" and self.energy_threshold is not None:
            raise UnlearningError(nothing(self, "energy_threshold", self.energy_threshold))

    def completed(self, args: UnlearningConfig, num_labels: int) -> tuple[Self, UnlearningConfig]:
        """And the energy threshold, where anything is confined."""
        own, args = super().completed(args, num_labels)
        if own.constraint != "none":
            own.energy_threshold = own.threshold
        return own, args

    @property
    def threshold(self) -> float:
        """The energy threshold, also where it is unset."""
        return self.energy_threshold or (self.hard_threshold if self.constraint == "hard" else 0.999)


@dataclass(kw_only=True)
class Confined(Constrained, Proxies):
    """A constraint from proxies, for a method that makes none without it."""

    def __post_init__(self):
        super().__post_init__()
        names = {one.name for one in fields(Proxies)}
        given = {name: value for name, value in self.given().items() if name in names}
        if given and not self.makes_proxies:
            raise UnlearningError(nothing(self, *next(iter(given.items()))))

    @property
    def makes_proxies(self) -> bool:
        """Whether a run with these options makes proxies."""
        return self.constraint != "none"

    def described(self) -> list[str]:
        """And how proxies confined the steps."""
        text = CONSTRAINTS[self.constraint]
        return super().described() + ([text] if text else [])


@dataclass(kw_only=True)
class Targets(Method):
    """What the forget images are trained on: the method's own targets, its defaults, or others by name."""

    targets: str = option("renormalised", "Targets of the forget images", choices=("paper", *PRIORS))
    tilt: str = option("none", "What tilts the renormalised or uniform targets", choices=TILTS)
    influence_sign: str = option(
        "upweight", "Labels that help what stays, or eq. 10's printed sign, whose labels harm most", choices=SIGNS
    )

    def __post_init__(self):
        super().__post_init__()
        if self.targets not in ("renormalised", "uniform") and self.tilt != "none":
            raise UnlearningError(
                f"tilt={self.tilt!r} would change nothing: targets={self.targets!r} are not tilted. Give tilt='none',"
                " or targets='renormalised'."
            )
        if "influence_sign" in self.given() and not self.by_influence:
            raise UnlearningError(
                f"influence_sign={self.influence_sign!r} would change nothing, as no target is made by influence: give"
                " tilt='influence' or targets='paper', or leave it out."
            )

    @property
    def by_influence(self) -> bool:
        """Whether targets are made by influence."""
        return self.targets in PAPER or self.tilt == "influence"

    def described(self) -> list[str]:
        """And what the forget images were trained on, where that is not the method's own."""
        lines = super().described()
        if not self.given().keys() & {"targets", "tilt"}:
            return lines
        text = (PRIORS | PAPER)[self.targets] + TILTS[self.tilt]
        return [*lines, f"In place of the method's own targets the forget images had {text}."]


@dataclass(kw_only=True)
class OptionalRetained(Method):
    """A form with retained data beside the zero-shot one."""

    with_retain: bool = option(False, "Train on retained data too.")
    max_retain_samples: int | None = option(
        None, "Use at most so many retained images, drawn at random.", least=1, whole=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_retain_samples is not None and not self.reads_retained:
            raise UnlearningError(
                f"max_retain_samples={self.max_retain_samples} would change nothing without retained data: give"
                " with_retain=True too, or leave it out."
            )

    @property
    def reads_retained(self) -> bool:
        """Whether it is asked to."""
        return self.with_retain


@dataclass(kw_only=True)
class Retained(Method):
    """A method that cannot work without retained data."""

    needs_retain: ClassVar[bool] = True

    max_retain_samples: int | None = option(
        None, "Use at most so many retained images, drawn at random.", least=1, whole=True
    )
