"""Refusals of options by themselves, before anything is loaded: out of range, or together with another."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from ..errors import UnlearningError, check_choice, check_range
from ..methods import METHODS
from ..pipeline.attacks import ATTACKS
from ..pipeline.influence import SOLVERS
from ..pipeline.proxies import POLICIES
from ..pipeline.pseudo_labels import PRIORS, SIGNS, TILTS
from .reads import SURE, WHERE, unread

if TYPE_CHECKING:
    from ..config import UnlearningConfig

VARIANTS = ("adaptive", "paper")
CONSTRAINTS = ("soft", "hard", "none")
SCOPES = ("auto", "all", "head")
MERGES = ("gram", "literal", "random")

POSITIVE, COUNT, WEIGHT = {"above": 0}, {"least": 1, "whole": True}, {"least": 0}
RANGES = {
    "holdout_share": {"above": 0, "below": 1},
    "max_memory_gb": POSITIVE,
    "energy_threshold": {"above": 0, "most": 1},
    "attack_eps": POSITIVE,
    "attack_steps": COUNT,
    "proxies_per_class": COUNT,
    "max_proxies": COUNT,
    "proxy_budget": POSITIVE,
    "proxy_weight": WEIGHT,
    "feature_weight": WEIGHT,
    "tilt_temperature": POSITIVE,
    "influence_damping": POSITIVE,
    "max_retain_samples": COUNT,
    "forget_views": {"least": 0, "most": 1000, "whole": True},
    "learning_rate": POSITIVE,
    "num_train_epochs": POSITIVE,
    "max_steps": COUNT,
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "dataloader_num_workers": {"least": 0, "whole": True},
    "weight_decay": WEIGHT,
    "seed": {"least": 0, "most": 2**32 - 1, "whole": True},
}


def check_options(config: UnlearningConfig) -> None:
    """Raise an UnlearningError for any option outside its choices or range."""
    check_choice("attack", config.attack, ATTACKS)
    check_choice("proxy_policy", config.proxy_policy, POLICIES)
    check_choice("constraint", config.constraint, CONSTRAINTS)
    check_choice("subspace_merge", config.subspace_merge, MERGES)
    check_choice("scope", config.scope, SCOPES)
    if config.pseudo_label is not None:  # else the method has its own
        check_choice("pseudo_label", config.pseudo_label, ("prior", "paper"))
        check_choice("prior", config.prior, PRIORS)
        check_choice("tilt", config.tilt, TILTS)
        if (config.prior, config.pseudo_label) == (SURE, "prior") and config.tilt != "none":
            raise UnlearningError(
                f"tilt={config.tilt!r}: prior={SURE!r} is one class, which no tilt changes. Give tilt='none', or"
                " another prior."
            )
    check_choice("influence_sign", config.influence_sign, SIGNS)
    check_choice("influence_solver", config.influence_solver, SOLVERS)
    check_numbers(config)
    if config.adaptive and config.constraint != "soft":
        raise UnlearningError(
            f"adaptive=True works on the soft constraint, not on {config.constraint!r}: leave adaptive unset."
        )
    if config.attack == "fgsm" and config.attack_steps not in (None, 1):
        raise UnlearningError(f"attack_steps={config.attack_steps}: fgsm takes one step; use attack='pgd' for more.")
    check_adaptive(config)
    check_method(config)
    check_read(config)
    check_exact(config)
    if config.constraint == "soft" and config.subspace_merge in ("literal", "random"):
        raise UnlearningError(
            f"subspace_merge={config.subspace_merge!r} yields bases, and constraint='soft' is made of none: use"
            " constraint='hard'."
        )
    if config.remove_unused_columns:
        raise UnlearningError("remove_unused_columns=True would drop the images before they are read: leave it False.")


def check_numbers(config: UnlearningConfig) -> None:
    """Refuse numbers out of range, also those of transformers that would fail, or do nothing, much later."""
    may_be_unset = {f.name for f in fields(config) if f.default is None}
    for name, bounds in RANGES.items():
        value = getattr(config, name)
        if not (value is None and name in may_be_unset) and not (name == "max_steps" and value == -1):
            check_range(name, value, **bounds)


def check_adaptive(config: UnlearningConfig) -> None:
    """Refuse what an adaptive run cannot judge by or roll back."""
    if not config.adaptive:
        return
    if config.method != "zspag":
        raise UnlearningError(f"adaptive=True belongs to method='zspag', not to {config.method!r}: leave it unset.")
    given = {"optim": config.optim, "lr_scheduler_type": config.lr_scheduler_type, "optim_args": config.optim_args}
    for (name, value), needed in zip(given.items(), ("sgd", "constant", None), strict=True):
        if value != needed:
            raise UnlearningError(
                f"an adaptive run needs {name}={needed!r}, not {value!r}: rollback and step size assume plain SGD"
                " at a constant rate. Give adaptive=False with a learning_rate to use another."
            )
    if str(config.save_strategy) in ("best", "SaveStrategy.BEST"):
        raise UnlearningError(
            "save_strategy='best' would save in the middle of a round, before it is judged: give 'steps' or 'epoch'"
            " in an adaptive run."
        )
    if config.load_best_model_at_end:
        raise UnlearningError("load_best_model_at_end=True would choose by test data: leave it off in an adaptive run.")


def check_method(config: UnlearningConfig) -> None:
    """Refuse data that the method must not see or cannot do without, and a constraint that means nothing to it."""
    method = METHODS[config.method]
    if config.with_retain and not (method.needs_retain or method.takes_retain):
        raise UnlearningError(
            f"with_retain=True: method={config.method!r} has no form that reads retained data. Leave it unset."
        )
    if method.needs_retain and not config.with_retain:
        raise UnlearningError(
            f"with_retain=False: method={config.method!r} cannot work without retained data. Leave it unset, or give"
            " another method."
        )
    if config.constraint != "none" and not method.constrainable:
        raise UnlearningError(
            f"constraint={config.constraint!r}: method={config.method!r} begins with new weights, which no constraint"
            " can keep near the old ones. Leave it unset."
        )


def check_read(config: UnlearningConfig) -> None:
    """Refuse an option that would change nothing."""
    usual = {f.name: f.default for f in fields(config)}
    for name in sorted(unread(config.given)):
        if config.given[name] != usual[name]:
            raise UnlearningError(
                f"{name}={config.given[name]!r} would change nothing in this run of method={config.method!r}: it is"
                f" read {WHERE[name]}. Leave it unset."
            )


def check_exact(config: UnlearningConfig) -> None:
    """Refuse what would bypass the constraint or make it inexact, leave images out, and pushes that would leak."""
    for name in ("tf32", "torch_compile", "fp16_full_eval", "bf16_full_eval"):
        if getattr(config, name):
            raise UnlearningError(f"{name}=True makes the constraint or the evaluation inexact: leave it off.")
    for name in ("fsdp", "deepspeed"):
        if getattr(config, name):
            raise UnlearningError(
                f"{name}={getattr(config, name)!r} shards the weights that the constraint must see whole: leave it"
                " out. For FSDP version 2 launch with 'accelerate_configs/fsdp2.yaml'."
            )
    if config.auto_find_batch_size:
        raise UnlearningError(
            "auto_find_batch_size=True would change what the result depends on: leave it off, and give"
            " per_device_train_batch_size."
        )
    if config.gradient_checkpointing:
        raise UnlearningError(
            "gradient_checkpointing=True does nothing in eval mode, which unlearning trains in: leave it off, lower"
            " per_device_train_batch_size and raise gradient_accumulation_steps."
        )
    if config.dataloader_drop_last:
        raise UnlearningError("dataloader_drop_last=True would leave out images to forget: leave it off.")
    if any(part in str(config.optim) for part in ("lomo", "layerwise")):
        raise UnlearningError(
            f"optim={str(config.optim)!r} updates weights during the backward pass, past the constraint: use sgd or"
            " adamw_torch."
        )
    if config.hub_create_pr and config.hub_revision is not None:
        raise UnlearningError(
            "hub_create_pr=True opens a pull request on the main branch: leave"
            f" hub_revision={config.hub_revision!r} out."
        )
    if config.push_to_hub and str(config.hub_strategy) not in ("end", "HubStrategy.END"):
        raise UnlearningError(
            f"hub_strategy={str(config.hub_strategy)!r} would upload checkpoints that still remember: use 'end'."
        )
