"""ZS-PAG as the paper prints it (arXiv 2507.21738, section 3): proxies, subspaces, pseudo-labels, projected steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config import option
from ..pipeline.proxies import POLICIES
from .options import CONSTRAINTS, MERGES, PAPER, PRIORS, Constrained, Proxies, Targets, Trained
from .plan import Plan
from .run import Run
from .stages import constrain, gather_proxies, gather_subspaces, gather_targets, proxy_facts


@dataclass(kw_only=True)
class ZSPAGPaper(Constrained, Proxies, Targets, Trained):
    """What the paper states, and our choice where it is silent (METHODS A). Fixed rate, fixed epochs, one preset.

    The paper's section 3 in order, each step one line of :meth:`prepare`:

    - eq. 1: delta = argmin CE(f(x + delta), y_t), ||delta||_p <= eps (:mod:`zspag_hf.pipeline.attacks`);
    - eq. 2: y_t, the second most likely class (:mod:`zspag_hf.pipeline.proxies`);
    - eq. 3: SVD of a layer's inputs on the proxies of class k, eq. 4: the merge over classes
      (:func:`zspag_hf.pipeline.subspaces.merged_bases`, cut as its authors' code for UNSC cuts it);
    - eq. 5: W <- W - eta grad P, P = I - S S^T (:mod:`zspag_hf.pipeline.constraint`, exact for any optimizer);
    - eq. 6: the theorem's claim, L_r(theta_u) ~ L_r(theta_o): no line of code, but what the report's ``proxy_drift``
      and acc_rt measure;
    - eq. 7 to 9: influence of (x, y) on the proxies' loss (:mod:`zspag_hf.pipeline.influence`, by K-FAC: the paper
      names no solver, and our tables tell none from another), eq. 10: the pseudo-labels that it picks
      (:func:`zspag_hf.pipeline.pseudo_labels.paper_pseudo_labels`, which says why not with the printed sign).

    The paper names ten epochs, and neither rate nor energy threshold. PRESET_NOTE
    Other options than the defaults are its ablations: table 5's random subspace is ``subspace_merge="random"``.
    """

    description: ClassVar[str] = (
        "ZS-PAG as printed ([arXiv 2507.21738](https://arxiv.org/abs/2507.21738)): adversarial proxies,"
        " made from the forget images, stand in for the retained training data."
    )

    hard_threshold: ClassVar[float] = 0.97

    proxy_policy: str = option("second", "Eq. 2, or proxies for every retained class", choices=POLICIES)
    constraint: str = option("hard", "Leave the proxies' subspace alone, damp it, or neither", choices=CONSTRAINTS)
    subspace_merge: str = option("truncated", "How classes are merged; hard form alone: all but gram", choices=MERGES)
    learning_rate: float | None = option(0.2, "Of the optimizer.", above=0)
    num_train_epochs: float | None = option(5, "Epochs over the forget images; the paper has 10.", above=0)
    targets: str = option("paper", "Targets of the forget images", choices=(*PAPER, *PRIORS))

    def prepare(self, run: Run) -> Plan:
        """Section 3.1 to 3.4."""
        forget = run.forget.pixels
        logits = run.classifier.predict_shared(forget)  # f(x; theta_o)
        proxies = gather_proxies(run, self, logits=logits)  # section 3.2, eq. 1 and 2
        subspaces = gather_subspaces(run, proxies, self)  # section 3.3, eq. 3 and 4
        labels = gather_targets(run, self, logits, proxies, subspaces.grams)  # section 3.4, eq. 7 to 10
        plan = Plan(forget, labels.targets, list(run.layers), facts={"proxies": proxy_facts(run, proxies)})
        if self.constraint != "none":
            constrain(run, plan, subspaces, self.constraint, self.threshold, forget)  # section 3.3, eq. 5
        return plan

    def described(self) -> list[str]:
        """And how proxies confined the steps."""
        text = CONSTRAINTS[self.constraint]
        return super().described() + ([text] if text else [])
