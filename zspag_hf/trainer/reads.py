"""Which options of the pipeline a run reads: one that would change nothing is refused, or dropped from a comparison."""

from __future__ import annotations

from ..methods import METHODS

FEW_LABELS = 10  # what settings are for until the model is known
TARGETS = ("pseudo_label", "prior", "tilt")
SURE = "second_best"  # the prior that is one class, which no tilt changes
TARGETED = ", ".join(repr(name) for name, method in METHODS.items() if method.takes_targets)
UNTRAINED = ", ".join(repr(name) for name, method in METHODS.items() if not method.trains)
OUTSIDE_TRAINER = ", ".join(repr(name) for name, method in METHODS.items() if method.own_loop or not method.trains)
# options -> where they are read
READ = {
    ("attack", "attack_eps", "attack_steps", "proxy_policy", "max_proxies"): "where proxies are made",
    ("proxies_per_class",): "with proxy_policy='quota', where proxies are made",
    ("energy_threshold", "subspace_merge"): "under a constraint",
    ("pseudo_label",): f"where classes are forgotten, by {TARGETED}",
    ("prior", "tilt"): f"with pseudo_label='prior', where classes are forgotten, by {TARGETED}",
    ("tilt_temperature",): "with pseudo_label='prior' and tilt='influence'",
    ("influence_sign", "influence_solver"): "where targets are made by influence",
    ("influence_damping",): "where targets are made by influence, by other solvers than 'identity'",
    ("holdout_share", "proxy_budget", "proxy_weight", "feature_weight"): "in adaptive runs of zspag",
    ("scope",): "by zspag",
    ("max_retain_samples",): "with retained data",
    ("learning_rate", "max_steps"): f"by methods that train, not by {UNTRAINED}",
    ("num_train_epochs", "optim", "optim_args", "weight_decay"): (
        f"by methods that Trainer's loop trains, not by {OUTSIDE_TRAINER}"
    ),
}
WHERE = {name: where for names, where in READ.items() for name in names}  # option -> where it is read


def unread(values: dict) -> set[str]:
    """Those of WHERE that a run would not read, whether they are given or not.

    Args:
        values: options of :class:`zspag_hf.UnlearningConfig` as they are given, None where they are not.
    """
    method, default = METHODS[values["method"]], values["method"] == "zspag"
    retained = method.needs_retain if values["with_retain"] is None else bool(values["with_retain"])
    settings = method.retained_settings(FEW_LABELS) if retained else method.settings(FEW_LABELS)
    values = values | {name: value for name, value in settings.items() if values[name] is None and not default}
    paper = values["variant"] == "paper"
    constraint = values["constraint"] or (("hard" if paper else "soft") if default else "none")
    adaptive = default and constraint == "soft" and values["num_train_epochs"] is None
    adaptive = adaptive and (not paper if values["adaptive"] is None else values["adaptive"])
    named = method.takes_targets and (default or any(values[name] is not None for name in TARGETS))
    literal = named and (values["pseudo_label"] or ("paper" if paper else "prior")) == "paper"
    tilted = named and not literal and values["tilt"] in (None, "influence") and values["prior"] != SURE
    nameable = method.takes_targets and ("images" not in method.forgets or bool(values["forget_classes"]))
    proxies = method.reads_proxies(constraint != "none", retained, literal or tilted)
    policy = values["proxy_policy"] or ("second" if paper else "quota")
    where = {
        "attack": proxies,
        "proxies_per_class": proxies and policy == "quota",
        "energy_threshold": constraint != "none",
        "pseudo_label": nameable,
        "prior": nameable and not literal,
        "tilt_temperature": tilted,
        "influence_sign": literal or tilted,
        "influence_damping": (literal or tilted) and values["influence_solver"] != "identity",
        "holdout_share": adaptive,
        "scope": default,
        "max_retain_samples": retained,
        "learning_rate": method.trains,
        "num_train_epochs": method.trains and not method.own_loop,
    }
    return {name for names in READ for name in names if not where[names[0]]}
