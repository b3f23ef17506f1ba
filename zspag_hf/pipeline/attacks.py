"""Targeted attacks in pixel space (eq. 1): min over delta of CE(f(x + delta), target), ||delta||_p <= eps.

One loop serves every attack; an attack supplies where to start, one step and the projection. Settings follow
torchattacks unless the class says otherwise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .classifier import PixelClassifier, frozen, to_unit


@dataclass(frozen=True)
class AttackResult:
    """pixels ``(N, channels, H, W)`` in [0, 1] on the CPU; predicted ``(N,)``, the model's labels for them;
    crossed ``(N,)``, whether that is the target; steps ``(N,)``, gradient steps taken."""

    pixels: Tensor
    predicted: Tensor
    crossed: Tensor
    steps: Tensor


class Attack:
    """The loop: each image leaves the batch at the step at which the model first answers with its target.

    Args:
        eps: radius of the ball around the image, in units of [0, 1] pixels.
        steps: gradient steps at most.
        step_size: length of a step, in the same units.
        leave_early: stop an image once it has crossed; False spends every step, and the proxy ends deep in the
            target class.
    """

    norm: str

    def __init__(self, eps: float, steps: int, step_size: float | None = None, leave_early: bool = True):
        self.eps, self.steps, self.leave_early = eps, steps, leave_early
        self.step_size = step_size

    def at_eps(self, eps: float) -> Attack:
        """The same attack with another radius; the step grows with it."""
        other = copy.copy(self)
        other.eps = eps
        other.step_size = self.step_size and self.step_size * eps / self.eps
        return other

    def start(self, clean: Tensor, seeds: list[int] | None) -> Tensor:
        return clean.clone()

    def loss(self, logits: Tensor, target: Tensor, x: Tensor, clean: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    def arrived(self, answer: Tensor, target: Tensor) -> Tensor:
        """Which images have crossed, ``(N,)`` bool."""
        return answer == target

    def step(self, x: Tensor, grad: Tensor, logits: Tensor, target: Tensor, clean: Tensor, state: dict) -> Tensor:
        raise NotImplementedError

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """Into the eps-ball of eq. 1 and the [0, 1] box."""
        delta = x - clean
        if self.norm == "inf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / l2(delta).clamp_min(1e-12)).clamp_max(1)
        return (clean + delta).clamp(0, 1)

    def __call__(
        self, classifier: PixelClassifier, pixels: Tensor, target: Tensor, seeds: list[int] | None = None
    ) -> AttackResult:
        """Attack one batch.

        Args:
            pixels: ``(N, channels, H, W)``, uint8 or float in [0, 1].
            target: ``(N,)`` labels to reach.
            seeds: one per image, for attacks with a random start: results then do not depend on the batch.
        """
        classifier.model.eval()
        with frozen(classifier.model):
            return self.run(classifier, pixels, target, seeds)

    def run(self, classifier: PixelClassifier, pixels: Tensor, target: Tensor, seeds: list[int] | None) -> AttackResult:
        device = classifier.device
        clean, target = to_unit(pixels, device), target.to(device)
        x, state = self.start(clean, seeds), {}
        active = torch.arange(len(x), device=device)
        predicted, taken = torch.empty_like(target), torch.zeros_like(target)
        for step in range(self.steps + 1):
            last = step == self.steps
            xa, ca, ta = x[active].requires_grad_(not last), clean[active], target[active]
            with torch.set_grad_enabled(not last):
                logits = classifier(xa)
                answer = logits.argmax(1)
            predicted[active], taken[active] = answer, step
            going = ~self.arrived(answer, ta) if self.leave_early else torch.ones_like(answer, dtype=torch.bool)
            if last or not going.any():
                break
            with torch.enable_grad():
                grad = self.gradient(logits, ta, xa, ca)
            rows = going.nonzero().squeeze(1)
            active = active[rows]
            state["rows"], state["step"] = active, step
            moved = self.step(xa.detach()[rows], grad[rows], logits.detach()[rows], ta[rows], ca[rows], state)
            x[active] = self.project(moved, ca[rows])
        return AttackResult(x.cpu(), predicted.cpu(), self.arrived(predicted, target).cpu(), taken.cpu())

    def gradient(self, logits: Tensor, target: Tensor, x: Tensor, clean: Tensor) -> Tensor:
        return torch.autograd.grad(self.loss(logits, target, x, clean).sum(), x)[0]


class PGDLinf(Attack):
    """Projected gradient descent in the maximum norm (Madry et al. 2017), the paper's attack.

    The default radius is .1: the paper gives none, and 8/255 leaves most 32-pixel images uncrossed for distant classes.
    """

    norm = "inf"

    def __init__(self, eps=0.1, steps=20, step_size=None, leave_early=True, random_start=False):
        super().__init__(eps, steps, eps / 4 if step_size is None else step_size, leave_early)
        self.random_start = random_start

    def start(self, clean, seeds):
        if not self.random_start:
            return clean.clone()
        noise = [torch.rand(clean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (clean + (torch.stack(noise).to(clean) * 2 - 1) * self.eps).clamp(0, 1)

    def step(self, x, grad, logits, target, clean, state):
        return x - self.step_size * grad.sign()


class PGDL2(Attack):
    """Projected gradient descent in the Euclidean norm; eps 1.0 is torchattacks' default for 32-pixel images."""

    norm = "2"

    def __init__(self, eps=1.0, steps=20, step_size=None, leave_early=True):
        super().__init__(eps, steps, eps / 5 if step_size is None else step_size, leave_early)

    def step(self, x, grad, logits, target, clean, state):
        return x - self.step_size * grad / l2(grad).clamp_min(1e-10)


class FGSM(PGDLinf):
    """One signed-gradient step of length eps (Goodfellow et al. 2015)."""

    def __init__(self, eps=0.1, steps=1, step_size=None, leave_early=True, random_start=False):
        super().__init__(eps, 1, eps, leave_early, random_start)


class CW(Attack):
    """Carlini-Wagner L2: Adam on w, x = (tanh w + 1) / 2, of ||x - clean||^2 + c max(max_{k != t} f_k - f_t, -kappa).

    Deviations: the image leaves at its first success, as in every attack here, instead of keeping the smallest one; the
    eps-ball of eq. 1 is applied, which the original does not have; the largest other logit is found by masking, since
    the reference's product with a one-hot is wrong where all others are negative.
    """

    norm = "2"

    def __init__(self, eps=3.0, steps=50, step_size=0.01, leave_early=True, c=10.0, kappa=0.0):
        super().__init__(eps, steps, step_size, leave_early)
        self.c, self.kappa = c, kappa

    def loss(self, logits, target, x, clean):
        others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
        margin = (others - logits.gather(1, target[:, None]).squeeze(1)).clamp_min(-self.kappa)
        return (x - clean).square().flatten(1).sum(1) + self.c * margin

    def step(self, x, grad, logits, target, clean, state):
        rows, step = state["rows"], state["step"] + 1
        if step == 1:
            shape = (int(rows.max()) + 1, *x.shape[1:])
            state["m"], state["v"] = x.new_zeros(shape), x.new_zeros(shape)
        inner = (2 * x - 1).clamp(-1 + 1e-6, 1 - 1e-6)  # atanh is infinite at pixels of exactly 0 or 1
        g = grad * (1 - inner.square()) / 2  # chain rule through x = (tanh w + 1) / 2
        m = state["m"][rows] = 0.9 * state["m"][rows] + 0.1 * g
        v = state["v"][rows] = 0.999 * state["v"][rows] + 0.001 * g.square()
        w = inner.atanh() - self.step_size * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        return (w.tanh() + 1) / 2


class DeepFool(Attack):
    """Targeted DeepFool (Moosavi-Dezfooli et al. 2016): to the linearised boundary with the model's present answer.

    r = (f_y - f_t) / ||w||^2 * w with w = grad (f_t - f_y); x <- x + (1 + overshoot) r. The reference is untargeted
    and has no radius: the eps-ball of eq. 1 is applied here at each step. ``step_size`` is the overshoot.
    """

    norm = "2"

    def __init__(self, eps=3.0, steps=50, step_size=0.02, leave_early=True):
        super().__init__(eps, steps, step_size, leave_early)

    def at_eps(self, eps):
        return type(self)(eps, self.steps, self.step_size, self.leave_early)

    def loss(self, logits, target, x, clean):
        top = logits.amax(1)
        return top - logits.gather(1, target[:, None]).squeeze(1)

    def step(self, x, grad, logits, target, clean, state):
        gap = self.loss(logits, target, x, clean).view(-1, 1, 1, 1)
        return x - (1 + self.step_size) * (gap + 1e-4) * grad / l2(grad).square().clamp_min(1e-10)


def l2(x: Tensor) -> Tensor:
    """Euclidean norm of each image, shaped ``(N, 1, 1, 1)``."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


ATTACKS: dict[str, type[Attack]] = {
    "pgd": PGDLinf,
    "pgd_l2": PGDL2,
    "fgsm": FGSM,
    "cw": CW,
    "deepfool": DeepFool,
}
