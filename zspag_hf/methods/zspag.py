"""ZS-PAG (arXiv 2507.21738) with the library's choices, made within the run: the default."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adaptive.control import AdaptiveControl
from ..adaptive.first_step import THRESHOLDS, choose_damping
from ..adaptive.head import fit_unseen_rows, head_inputs, predict_with_inputs
from ..adaptive.held_out import HeldOut, split
from ..config import UnlearningConfig, option
from ..errors import UnlearningError
from ..parallel.batches import KeptProxies
from ..parallel.processes import from_first
from ..pipeline.constraint import SoftConstraint
from ..pipeline.proxies import ProxySet
from ..pipeline.pseudo_labels import SIGNS, pseudo_labels
from .options import CONSTRAINTS, TILTS, Paced, Targets
from .plan import Plan
from .run import Run
from .stages import (
    Subspaces,
    constrain,
    gather_proxies,
    gather_subspaces,
    gather_targets,
    head_weight,
    proxy_facts,
    trained_labels,
)

MAX_STEPS = 1000  # of a run that the readings do not end
SCOPES = ("auto", "all", "head")


@dataclass(kw_only=True)
class ZSPAG(Paced, Targets):
    """ZS-PAG under a soft constraint; damping, step size, the share of the deep layers and the end are chosen within
    the run, from the forget set and its proxies alone. :class:`zspag_hf.methods.zspag_paper.ZSPAGPaper` is the literal
    form.

    The forget images are split: one part is trained on and yields the training proxies, the other, with proxies of its
    own, judges (:mod:`zspag_hf.adaptive.control`). Two terms are added to the paper's loss: the original outputs on the
    training proxies, renormalised over the retained classes, are kept (weight ``proxy_weight``), and the penultimate
    features of a forget image are drawn to those of proxies of the classes in its target (weight ``feature_weight``).
    At the end the head's rows for the forgotten classes are fitted (:mod:`zspag_hf.adaptive.head`).
    """

    description: ClassVar[str] = (
        "ZS-PAG ([arXiv 2507.21738](https://arxiv.org/abs/2507.21738)): adversarial proxies, made from the forget"
        " images, stand in for the retained training data."
    )
    refusals: ClassVar[Mapping[str, str]] = {
        "num_train_epochs": "it ends by itself, when the held-out images say so. Give max_steps, or"
        " method='zspag_paper', whose epochs are fixed",
        **dict.fromkeys(
            ("optim", "optim_args", "weight_decay"),
            "rollback and step size assume plain SGD at a constant rate. Leave it out, or give method='zspag_paper'",
        ),
    }

    learning_rate: float | None = option(None, "Unset: chosen within the run.", above=0)
    tilt: str = option("influence", "What tilts the renormalised or uniform targets", choices=TILTS)
    influence_sign: str = option("eq10", "Labels that help what stays, or the printed opposite", choices=SIGNS)
    energy_threshold: float | None = option(
        None, "Share of the proxies' energy that sets the damping, in (0, 1]. Unset: chosen.", above=0, most=1
    )
    scope: str = option(
        "auto", "Whole network as far as proxies allow, then the head; whole network; or head only", choices=SCOPES
    )
    proxy_budget: float = option(
        0.01, "How far outputs on held-out proxies may move: mean KL in nats, over retained classes.", above=0
    )
    proxy_weight: float = option(
        3.0, "Weight of keeping the original outputs on training proxies; 0 for none.", least=0
    )
    feature_weight: float = option(
        1.0, "Weight of drawing forget images' last features to proxies'; 0 for none.", least=0
    )

    def completed(self, args: UnlearningConfig, num_labels: int) -> tuple[ZSPAG, UnlearningConfig]:
        """With a bound on the steps."""
        own, args = super().completed(args, num_labels)
        args.max_steps = MAX_STEPS if args.max_steps == -1 else args.max_steps
        return own, args

    def described(self) -> list[str]:
        """And that proxies damped the steps."""
        return [*super().described(), str(CONSTRAINTS["soft"])]

    def check_model(self, run: Run) -> None:
        """Refuse a model without a head to finish with, and too few images."""
        if self.scope != "all" and run.head is None:
            raise UnlearningError(
                f"no layer of the model has one output for each of its {run.classifier.num_labels} labels, so there is"
                " no head to finish with: give scope='all'."
            )
        if self.tilt == "similarity":
            head_weight(run)
        split(len(run.forget), self.holdout_share, run.seed)

    def prepare(self, run: Run) -> Plan:
        """Proxies, subspaces and targets; then damping and first step from the held-out part."""
        forget = run.forget.pixels
        train, held = split(len(forget), self.holdout_share, run.seed)
        logits = run.classifier.predict_shared(forget)
        trained_labels(run, logits)  # known to all that follows
        proxies = gather_proxies(run, self, train, logits=logits[train])
        share = self.holdout_share / (1 - self.holdout_share)
        judges = gather_proxies(run, self, held, share=share, name="held_out_proxies", logits=logits[held])
        subspaces = gather_subspaces(run, proxies)
        targets = gather_targets(run, self, logits, proxies, subspaces.grams).targets
        plan = Plan(forget[train], targets[train], list(run.layers), facts={"proxies": proxy_facts(run, proxies)})
        held_out = HeldOut(run.classifier, judges.pixels, forget[held], targets[held], run.forget_ids, judges.own)
        self.adapt(run, plan, subspaces, held_out, proxies)
        plan.proxies = self.kept_proxies(run, plan, proxies)
        return plan

    def adapt(self, run: Run, plan: Plan, subspaces: Subspaces, held_out: HeldOut, proxies: ProxySet) -> None:
        """Choose damping and step size, and hand the run to :class:`zspag_hf.adaptive.control.AdaptiveControl`."""
        forget, targets = plan.pixels, plan.targets
        assert forget is not None and targets is not None  # prepare gave them
        thresholds = (self.energy_threshold,) if self.energy_threshold else THRESHOLDS

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            threshold, rate, probe = choose_damping(
                held_out, subspaces.spectrum, run.layers, forget, targets, self.proxy_budget, thresholds
            )
            rate = rate if self.learning_rate is None else self.learning_rate
            return {}, {"threshold": threshold, "rate": rate, "probe": probe}

        chosen = from_first(run.stage("adaptation", make)[1])
        self.energy_threshold = chosen["threshold"]
        self.learning_rate = run.args.learning_rate = chosen["rate"]
        constrain(run, plan, subspaces, "soft", chosen["threshold"], forget)
        assert isinstance(plan.constraint, SoftConstraint)
        finish = None
        if self.scope != "all" and run.head is not None:
            head = run.layers[run.head]
            finish = partial(
                fit_unseen_rows, run.classifier, head, forget, proxies.pixels, run.class_ids, run.forget_ids
            )
        control = AdaptiveControl(
            held_out,
            plan.constraint,
            run.layers,
            self.proxy_budget,
            chosen["rate"],
            run.log,
            finish,
            whole=self.scope != "head",
        )
        plan.callbacks.append(control)
        plan.facts |= {"probe": chosen["probe"], "control": control}

    def kept_proxies(self, run: Run, plan: Plan, proxies: ProxySet) -> KeptProxies:
        """The training proxies with the original's outputs without the forgotten classes, and its features."""
        classifier, features = run.classifier, None
        if run.head is None:
            logits = classifier.predict_shared(proxies.pixels)
        else:
            logits, features = predict_with_inputs(classifier, run.layers[run.head], proxies.pixels)
            self.center, spread = features.mean(0), features.std(0, correction=0)
            # a feature that is dead on the proxies must not own the loss
            self.scale = spread.clamp_min(0.1 * float(spread.median()) + 1e-6)
            features = (features - self.center) / self.scale
            points = {"features": features, "labels": proxies.labels}
            plan.projected = points | {"center": self.center, "scale": self.scale}
        targets = pseudo_labels(logits, run.forget_ids, None, trained=proxies.own).targets
        return KeptProxies(proxies.pixels, targets, proxies.labels, features)

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Soft cross-entropy on the forget images, and two terms more: on proxies that stay (weight ``proxy_weight``)
        and on features that become theirs (weight ``feature_weight``)."""
        weights = inputs["weights"]
        if "proxy_pixels" in inputs:
            logits = self.logits(run, model, inputs["proxy_pixels"])
            kept = F.kl_div(logits.log_softmax(1), inputs["proxy_targets"], reduction="none").sum(1)
            return self.proxy_weight * (weights * kept).sum()
        drawn = "feature_targets" in inputs and run.head is not None
        watched: AbstractContextManager[list[Tensor]] = nullcontext([])
        with head_inputs(run.layers[run.head or ""]) if drawn else watched as features:
            loss = super().compute_loss(run, model, inputs)
        if features:
            mine = (features[0] - self.center.to(features[0])) / self.scale.to(features[0])
            away = F.mse_loss(mine, inputs["feature_targets"], reduction="none").mean(1)
            loss = loss + self.feature_weight * (weights * away).sum()
        return loss
