"""ZS-PAG (arXiv 2507.21738) that forgets in the features and not in the answers alone: the default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adaptive.confident import confident_proxies
from ..adaptive.control import AdaptiveControl
from ..adaptive.head import CachedHead, fit_retained_rows, head_inputs, predict_with_inputs, write_never_seen_rows
from ..adaptive.held_out import HeldOut, split
from ..adaptive.scatter import gathered, joint_discrepancy, scatter, scatter_goal
from ..adaptive.views import moved, view_targets
from ..config import UnlearningConfig, option, plain
from ..errors import UnlearningError
from ..parallel.batches import KeptProxies
from ..pipeline.constraint import SoftConstraint
from ..pipeline.proxies import ProxySet
from ..pipeline.pseudo_labels import pseudo_labels
from .options import CONSTRAINTS, OptionalRetained, Proxies
from .plan import Plan
from .real_proxies import gather_real, joined, retained_answers
from .run import Run
from .stages import constrain, gather_proxies, gather_subspaces, proxy_facts, trained_labels

STEPS = 100  # unless max_steps says otherwise
SCOPES = ("auto", "head")
DEEP = ("learning_rate", "optim", "optim_args", "weight_decay", "energy_threshold", "proxy_budget", "proxy_weight")


@dataclass(kw_only=True)
class ZSPAG(Proxies, OptionalRetained):
    """ZS-PAG (arXiv 2507.21738) under a soft constraint, with terms that move the features and not the answers alone.
    :class:`zspag_hf.methods.zspag_paper.ZSPAGPaper` is the literal form.

    A part of the forget images trains, with proxies made from it; the other, with proxies of its own, watches. Proxies
    are used twice: as they cross, and as confident as the forget images were (:mod:`zspag_hf.adaptive.confident`).

    - targets: the original's outputs without the forgotten classes, averaged with views
      (:mod:`zspag_hf.adaptive.views`);
    - loss: CE(target, model) on forget images + ``proxy_weight`` x KL(original || model over retained classes) on
      proxies of both kinds + ``depth_weight`` x the joint discrepancy between forget images and confident proxies of
      the classes in their targets (:mod:`zspag_hf.adaptive.scatter`), until their features are scattered halfway;
    - steps: Adam's, each damped by how much the proxies use a direction (eq. 5 in its soft form), over half a cosine;
    - at the end as much of the way as the held-out proxies allow (:mod:`zspag_hf.adaptive.control`), and the head as in
      a model that never saw the classes (:mod:`zspag_hf.adaptive.head`).

    Real images, retained ones or unlabelled ones under the original's label, stand beside the confident proxies where
    they are given, in both parts (:mod:`zspag_hf.methods.real_proxies`).
    """

    description: ClassVar[str] = (
        "ZS-PAG ([arXiv 2507.21738](https://arxiv.org/abs/2507.21738)): adversarial proxies, made from the forget"
        " images, stand in for the retained training data, in the outputs and in the features, beside real images if"
        " there are any."
    )
    reads_public: ClassVar[bool] = True
    refusals: ClassVar[Mapping[str, str]] = {
        "num_train_epochs": "it takes a number of steps. Give max_steps, or method='zspag_paper', whose epochs are"
        " fixed",
    }

    scope: str = option("auto", "Whole network as far as proxies allow, then the head; or head only", choices=SCOPES)
    holdout_share: float = option(0.3, "Share of the forget images kept to judge by, in (0, 1).", above=0, below=1)
    learning_rate: float | None = option(1e-3, "Of the first step.", above=0)
    optim: str = option("adamw_torch", "Optimizer, as transformers names it.")
    optim_args: str | None = option(None, "Of the optimizer.")
    weight_decay: float = option(0.0, "Of the optimizer.", least=0)
    energy_threshold: float = option(
        0.9, "Share of the proxies' energy that sets the damping, in (0, 1].", above=0, most=1
    )
    proxy_budget: float = option(
        0.03, "How far outputs on held-out proxies may move: mean KL in nats, over retained classes.", above=0
    )
    proxy_weight: float = option(
        100.0, "Weight of keeping the original outputs on training proxies; 0 for none.", least=0
    )
    depth_weight: float = option(
        30.0, "Weight of scattering forget images' last features like proxies'; 0 for none.", least=0
    )

    def __post_init__(self):
        super().__post_init__()
        for name in (*DEEP, "depth_weight") if self.scope == "head" else ():
            if name in self.given():
                raise UnlearningError(
                    f"{name}={getattr(self, name)!r} would change nothing with scope='head', which moves no deep layer:"
                    " leave it out, or give scope='auto'."
                )

    def check(self, args: UnlearningConfig) -> None:
        """Refuse what would pace or choose beside it."""
        super().check(args)
        if plain(args.lr_scheduler_type) != "constant":
            raise UnlearningError(
                f"lr_scheduler_type={plain(args.lr_scheduler_type)!r} means nothing to ZSPAG, which sets its steps"
                " itself: leave it out, or give method='zspag_paper'."
            )
        if plain(args.save_strategy) == "best" or args.load_best_model_at_end:
            raise UnlearningError(
                "save_strategy='best' and load_best_model_at_end=True would choose by test data what ZSPAG judges by"
                " its own: give save_strategy='steps' or 'epoch' alone."
            )

    def completed(self, args: UnlearningConfig, num_labels: int) -> tuple[ZSPAG, UnlearningConfig]:
        """With the number of steps."""
        own, args = super().completed(args, num_labels)
        usual = STEPS if own.scope == "auto" else 1
        args.max_steps = usual if args.max_steps == -1 else args.max_steps
        return own, args

    def described(self) -> list[str]:
        """And that proxies damped the steps."""
        return [*super().described(), str(CONSTRAINTS["soft"])]

    def check_model(self, run: Run) -> None:
        """Refuse a model without a head, and too few images."""
        if run.head is None:
            raise UnlearningError(
                f"no layer of the model has one output for each of its {run.classifier.num_labels} labels, and its"
                " inputs are the features that ZSPAG moves: give method='zspag_paper'."
            )
        split(len(run.forget), self.holdout_share, run.seed)
        if run.public is not None:
            retained_answers(run)

    def prepare(self, run: Run) -> Plan:
        """Proxies of both kinds, targets, their subspace, and the held-out part."""
        forget = run.forget.pixels
        train, held = split(len(forget), self.holdout_share, run.seed)
        logits = run.classifier.predict_shared(forget)
        wrong = trained_labels(run, logits)
        crossed, clear, judges, facts = self.gather(run, (train, held), logits, wrong)
        targets = self.gather_targets(run, wrong)
        both = joined(clear, crossed)
        kept, attacked = self.kept(run, both, len(clear)), slice(len(crossed))
        labels = F.one_hot(run.forget.labels, run.classifier.num_labels).float()
        plan = Plan(
            forget[train],
            torch.cat([targets, labels], 1)[train],
            list(run.layers),
            facts={"proxies": proxy_facts(run, crossed)} | facts,
            proxies=kept,
            projected={"features": self.unit_features(run, kept)[attacked], "labels": kept.labels[attacked]},
        )
        constrain(run, plan, gather_subspaces(run, both), "soft", self.energy_threshold, forget)
        self.set_goal(run, plan, targets[train], run.forget.labels[train])
        seen = (forget[held], targets[held], run.forget_ids)
        held_out = HeldOut(run.classifier, judges.pixels, *seen, judges.own)
        turned = moved(both.pixels, 1.0, torch.Generator().manual_seed(run.seed))
        beside = self.kept(run, replace(both, pixels=turned), 0)
        self.watch(run, plan, held_out, partial(self.finish, run, forget[train], targets[train], (kept, beside)))
        return plan

    def gather(
        self, run: Run, parts: tuple[Tensor, Tensor], logits: Tensor, wrong: Tensor | None
    ) -> tuple[ProxySet, ProxySet, ProxySet, dict[str, Any]]:
        """Training proxies as they cross and confident ones, judges of both kinds, and what the report says of real
        images, which stand beside the confident ones.

        Args:
            parts: rows of the forget images that train and that judge. logits: ``(N, C)``, the original's on all.
            wrong: ``(N,)``, as ``trained`` in :func:`zspag_hf.pipeline.pseudo_labels.allowed_mask`.
        """
        train, held = parts
        share = self.holdout_share / (1 - self.holdout_share)
        crossed = gather_proxies(run, self, train, logits=logits[train])
        near = gather_proxies(run, self, held, share=share, name="held_out_proxies", logits=logits[held])
        known = run.forget.labels if wrong is None else torch.where(wrong < 0, run.forget.labels, wrong)
        sure = logits.softmax(1).gather(1, known[:, None]).squeeze(1)
        real = gather_real(run, self.holdout_share)
        clear = real.training.beside(self.raised(run, "confident_proxies", crossed, sure), run.seed)
        far = real.judging.beside(self.raised(run, "held_out_confident_proxies", near, sure), run.seed)
        return crossed, clear, joined(far, near), real.facts

    def gather_targets(self, run: Run, wrong: Tensor | None) -> Tensor:
        """The stage "targets": ``(N, C)`` of the forget images."""

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            made, strength = view_targets(run.classifier, run.forget.pixels, run.forget_ids, run.seed, wrong)
            return {"targets": made}, {"strength": strength}

        return run.stage("targets", make)[0]["targets"]

    def watch(self, run: Run, plan: Plan, held_out: HeldOut, finish: Callable[[], float]) -> None:
        """Hand the run to :class:`zspag_hf.adaptive.control.AdaptiveControl`."""
        assert isinstance(plan.constraint, SoftConstraint) and self.learning_rate is not None
        rates, whole = (self.proxy_budget, self.learning_rate), self.scope == "auto"
        control = AdaptiveControl(held_out, plan.constraint, run.layers, *rates, run.log, finish, whole)
        plan.callbacks.append(control)
        plan.facts["control"] = control

    def raised(self, run: Run, name: str, proxies: ProxySet, sure: Tensor) -> ProxySet:
        """The stage ``name``: the proxies, attacked on until as confident as forget images, ``sure`` ``(N,)``."""

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            made = confident_proxies(run.classifier, proxies.pixels, proxies.labels, sure, run.seed, run.quiet)
            return {"pixels": made}, {}

        return replace(proxies, pixels=run.stage(name, make, under="proxies")[0]["pixels"])

    def kept(self, run: Run, proxies: ProxySet, drawn: int) -> KeptProxies:
        """Proxies with the original's outputs; drawn like the forget images are the first of them, whose unit features
        ``(P, D)`` and outputs ``(P, C)`` stand side by side."""
        logits, features = predict_with_inputs(run.classifier, run.layers[run.head or ""], proxies.pixels)
        targets = pseudo_labels(logits, run.forget_ids, None, trained=proxies.own).targets
        features = torch.cat([F.normalize(features, dim=1), targets], 1)[:drawn]
        return KeptProxies(proxies.pixels, targets, proxies.labels[:drawn], features)

    def unit_features(self, run: Run, kept: KeptProxies) -> Tensor:
        """``(P, D)``, of confident proxies."""
        assert kept.features is not None
        return kept.features[:, : run.layers[run.head or ""].d_in]

    def set_goal(self, run: Run, plan: Plan, targets: Tensor, labels: Tensor) -> None:
        """The scatter at which the depth term rests; where no class has two images, any: views of one image are alike
        in a retrained model too."""
        self.goal = math.inf
        if int(run.forget.image_labels.bincount().max()) < 2:
            return
        assert plan.pixels is not None and plan.proxies is not None
        _, mine = predict_with_inputs(run.classifier, run.layers[run.head or ""], plan.pixels)
        theirs = self.unit_features(run, plan.proxies)
        self.goal = scatter_goal(mine, labels, theirs, plan.proxies.labels, targets)

    def finish(self, run: Run, forget: Tensor, targets: Tensor, proxies: Sequence[KeptProxies]) -> float:
        """Fit the head, on proxies and on the same moved a little: there are as many weights in a head as proxies."""
        pixels, answers = (torch.cat([getattr(one, name) for one in proxies]) for name in ("pixels", "targets"))
        head = CachedHead(run.classifier, run.layers[run.head or ""], forget, pixels)
        fit_retained_rows(head, targets, answers, run.forget_ids)
        return write_never_seen_rows(head, run.class_ids, run.forget_ids)

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Of proxies, or of forget images and their features."""
        weights = inputs["weights"]
        if "proxy_pixels" in inputs:
            logits = self.logits(run, model, inputs["proxy_pixels"])
            gone = logits.new_zeros(logits.shape[1])
            gone[run.forget_ids] = -torch.inf
            kept = F.kl_div((logits + gone).log_softmax(1).clamp_min(-1e4), inputs["proxy_targets"], reduction="none")
            return self.proxy_weight * (weights * kept.sum(1)).sum()
        targets, labels = inputs["targets"].chunk(2, 1)
        with head_inputs(run.layers[run.head or ""]) as features:
            logits = self.logits(run, model, inputs["pixels"])
        learned = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
        return learned + self.depth_weight * self.depth(run, features[0], targets, labels, inputs)

    def depth(self, run: Run, features: Tensor, targets: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The joint discrepancy of the global batch, 0 once its features are scattered enough."""
        columns = torch.cat([F.normalize(features, dim=1), targets, labels, inputs["feature_targets"]], 1)
        columns = torch.cat([columns, inputs["weights"][:, None]], 1)
        columns = gathered(columns, run.args.per_device_train_batch_size)
        columns = columns[columns[:, -1] > 0]  # rows that are images
        d, c = features.shape[1], targets.shape[1]
        mine, wanted, own, theirs, answers, _ = columns.split([d, c, c, d, c, 1], 1)
        now = scatter(mine.detach(), own.argmax(1))
        if not now > self.goal:  # also where no class has two images in the batch
            return features.new_zeros(())
        return joint_discrepancy(mine, wanted, theirs, answers)
