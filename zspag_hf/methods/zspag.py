"""ZS-PAG (arXiv 2507.21738): proxies -> subspaces -> pseudo-labels -> constrained training."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adaptive.control import AdaptiveControl
from ..adaptive.first_step import choose_damping
from ..adaptive.head import fit_unseen_rows, head_inputs, predict_with_inputs
from ..adaptive.held_out import HeldOut
from ..errors import UnlearningError
from ..parallel.batches import KeptProxies
from ..parallel.processes import from_first
from ..pipeline.proxies import ProxySet
from ..pipeline.pseudo_labels import pseudo_labels
from .base import Method, Plan
from .stages import (
    Subspaces,
    build_constraint,
    gather_proxies,
    gather_subspaces,
    gather_targets,
    head_weight,
    layer_facts,
    proxy_facts,
)


class ZSPAG(Method):
    """The paper's method with the library's choices by default; ``variant="paper"`` sets the literal form.

    The adaptive form splits the forget images: one part is trained on and yields the training proxies, the other, with
    proxies of its own, judges (:mod:`..adaptive.control`). It adds two terms to the paper's loss: the original outputs
    on the training proxies, renormalised over the retained classes, are kept (weight ``proxy_weight``), and the
    penultimate features of a forget image are drawn to those of proxies of the classes in its target (weight
    ``feature_weight``). At the end the head's rows for the forgotten classes are fitted (:mod:`..adaptive.head`).
    """

    takes_targets = True
    description = (
        "ZS-PAG ([arXiv 2507.21738](https://arxiv.org/abs/2507.21738)): adversarial proxies, made from the forget"
        " images, stand in for the retained training data."
    )

    @staticmethod
    def reads_proxies(constrained: bool, retained: bool, by_influence: bool) -> bool:
        return True

    def prepare(self, trainer) -> Plan:
        args, forget = trainer.args, trainer.forget
        if args.tilt == "similarity":
            head_weight(trainer)  # a model without a head is refused before the attacks
        train, held = split(len(forget), args.holdout_share if args.adaptive else 0.0, args.seed)
        logits = trainer.classifier.predict_shared(forget.pixels)
        proxies = gather_proxies(
            trainer, forget.pixels[train], args.proxies_per_class, args.max_proxies, logits=logits[train]
        )
        judges = self.held_out_proxies(trainer, forget.pixels[held], logits[held]) if args.adaptive else None
        subspaces = gather_subspaces(trainer, proxies)
        facts = {"proxies": proxy_facts(proxies, trainer.label_names_by_id)}
        labels = gather_targets(trainer, facts, logits, (proxies, subspaces))
        plan = Plan(forget.pixels[train], labels.targets[train], list(trainer.layers), facts=facts)
        if args.adaptive:
            held_out = HeldOut(
                trainer.classifier, judges.pixels, forget.pixels[held], labels.targets[held], trainer.forget_ids
            )
            self.adapt(trainer, plan, subspaces, held_out, proxies)
        else:
            plan.constraint = build_constraint(trainer, subspaces, args.energy_threshold)
            plan.trainable = [trainer.head] if args.scope == "head" else plan.trainable
        if args.adaptive:
            plan.proxies = self.kept_proxies(trainer, proxies)
        plan.facts["layers"] = layer_facts(trainer, plan.constraint, subspaces, forget.pixels[train])
        plan.facts["owner"] = subspaces.grams.owner
        return plan

    def held_out_proxies(self, trainer, pixels: Tensor, logits: Tensor) -> ProxySet:
        """Proxies of the held-out images, in proportion to their share."""
        args = trainer.args
        share = args.holdout_share / (1 - args.holdout_share)
        per_class, most = max(1, round(args.proxies_per_class * share)), max(1, round(args.max_proxies * share))
        return gather_proxies(trainer, pixels, per_class, most, "held_out_proxies", logits)

    def kept_proxies(self, trainer, proxies: ProxySet) -> KeptProxies:
        """The training proxies with the original's outputs without the forgotten classes, and its features."""
        classifier, features = trainer.classifier, None
        if trainer.head is None:
            logits = classifier.predict_shared(proxies.pixels)
        else:
            logits, features = predict_with_inputs(classifier, trainer.layers[trainer.head], proxies.pixels)
            self.center, spread = features.mean(0), features.std(0, correction=0)
            # a feature that is dead on the proxies must not own the loss
            self.scale = spread.clamp_min(0.1 * float(spread.median()) + 1e-6)
            features = (features - self.center) / self.scale
            points = {"features": features, "labels": proxies.labels}
            trainer.projected = points | {"center": self.center, "scale": self.scale}
        targets = pseudo_labels(logits, trainer.forget_ids, None).targets
        return KeptProxies(proxies.pixels, targets, proxies.labels, features)

    def adapt(self, trainer, plan: Plan, subspaces: Subspaces, held_out: HeldOut, proxies: ProxySet) -> None:
        """Choose damping and step size, and hand the run to :class:`AdaptiveControl`."""
        args, layers = trainer.args, trainer.layers
        thresholds = (args.energy_threshold,) if args.energy_threshold else None
        given = args.learning_rate

        def make():
            threshold, rate, probe = choose_damping(
                held_out,
                subspaces.spectrum,
                layers,
                plan.pixels,
                plan.targets,
                args.proxy_budget,
                **({"thresholds": thresholds} if thresholds else {}),
            )
            return {}, {"threshold": threshold, "rate": rate if given is None else given, "probe": probe}

        chosen = from_first(trainer.finished("adaptation", "adaptation", make)[1])
        threshold, rate = args.energy_threshold, args.learning_rate = chosen["threshold"], chosen["rate"]
        plan.constraint = build_constraint(trainer, subspaces, threshold)
        finish = None
        if args.scope != "all" and trainer.head is not None:
            finish = partial(
                fit_unseen_rows,
                trainer.classifier,
                layers[trainer.head],
                plan.pixels,
                proxies.pixels,
                trainer.request.class_ids,
                trainer.forget_ids,
            )
        control = AdaptiveControl(
            held_out,
            plan.constraint,
            layers,
            args.proxy_budget,
            rate,
            trainer.log,
            finish,
            whole=args.scope != "head",
        )
        plan.callbacks.append(control)
        plan.facts |= {"probe": chosen["probe"], "control": control}

    def compute_loss(self, trainer, model, inputs):
        """Soft cross-entropy on the forget images; in an adaptive run two terms more, on proxies that stay (weight
        ``proxy_weight``) and on features that become theirs (weight ``feature_weight``)."""
        args, weights = trainer.args, inputs["weights"]
        if "proxy_pixels" in inputs:
            logits = self.logits(trainer, model, inputs["proxy_pixels"])
            kept = F.kl_div(logits.log_softmax(1), inputs["proxy_targets"], reduction="none").sum(1)
            return args.proxy_weight * (weights * kept).sum()
        with head_inputs(trainer.layers[trainer.head]) if "feature_targets" in inputs else nullcontext() as features:
            loss = super().compute_loss(trainer, model, inputs)
        if features:
            mine = (features[0] - self.center.to(features[0])) / self.scale.to(features[0])
            away = F.mse_loss(mine, inputs["feature_targets"], reduction="none").mean(1)
            loss = loss + args.feature_weight * (weights * away).sum()
        return loss


def split(count: int, held_out_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and to judge by, each in [0, count).

    Raises:
        UnlearningError: too few images for both parts.
    """
    held = round(count * held_out_share)
    if held_out_share and (held < 1 or held >= count):
        raise UnlearningError(
            f"holdout_share={held_out_share} leaves {count} forget images too few to train on and to judge by: pass"
            " forget_views=48, which takes 48 random crops of each image, or adaptive=False with a learning_rate."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values
