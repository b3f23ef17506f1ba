"""Targeted attacks in pixel space (eq. 1): min over delta of CE(f(x + delta), target), ||delta||_p <= eps.

One loop serves every attack; an attack supplies its loss and one step. Settings follow torchattacks unless the class
says otherwise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnlearningError
from .classifier import PixelClassifier, evaluating, frozen, to_unit

INNERMOST = 1 - 1e-3  # of 2 x - 1, where CW begins: nearer to the end a pixel takes hundreds of steps to move


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
        eps: radius of the ball around the image, in units of [0, 1] pixels. step_size: length of a step, in the same.
        steps: gradient steps at most.
        leave_early: stop an image once it has crossed; False spends every step, and the proxy ends deep in the
            target class.
    """

    norm: str
    step_grows = True  # with the radius

    def __init__(self, eps: float, steps: int, step_size: float, leave_early: bool = True):
        self.eps, self.steps, self.step_size, self.leave_early = eps, steps, step_size, leave_early

    def at_eps(self, eps: float) -> Attack:
        """The same attack with another radius."""
        other = copy.copy(self)
        other.eps = eps
        other.step_size = self.step_size * eps / self.eps if self.step_grows else self.step_size
        return other

    def loss(self, logits: Tensor, target: Tensor, x: Tensor, clean: Tensor) -> Tensor:
        """What is minimised, of each image ``(N,)``."""
        return F.cross_entropy(logits, target, reduction="none")  # eq. 1, within project()

    def arrived(self, logits: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        """Which images have crossed, ``(n,)`` bool; ``rows`` are theirs in the batch."""
        return logits.argmax(1) == target

    def step(self, x: Tensor, grad: Tensor, logits: Tensor, target: Tensor, clean: Tensor, state: dict) -> Tensor:
        """The images after one step by the loss's gradient, before the projection; ``state`` has their rows in the
        batch and the number of the step, and keeps what the attack puts there."""
        raise NotImplementedError

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """Into the eps-ball of eq. 1 and the [0, 1] box."""
        delta = x - clean
        if self.norm == "inf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / l2(delta).clamp_min(1e-12)).clamp_max(1)
        return (clean + delta).clamp(0, 1)

    def __call__(self, classifier: PixelClassifier, pixels: Tensor, target: Tensor) -> AttackResult:
        """Attack one batch: pixels ``(N, channels, H, W)``, uint8 or float in [0, 1], towards the labels ``(N,)``. The
        model is in eval mode meanwhile, and afterwards in the mode that it was in.

        Raises:
            UnlearningError: floats outside of [0, 1].
        """
        clean, target = in_the_box(to_unit(pixels, classifier.device)), target.to(classifier.device)
        x = clean.clone()
        active = torch.arange(len(x), device=x.device)
        predicted, taken = torch.empty_like(target), torch.zeros_like(target)
        crossed = torch.zeros_like(target, dtype=torch.bool)
        state: dict = {}
        with evaluating(classifier.model), frozen(classifier.model):
            for step in range(self.steps + 1):
                last = step == self.steps
                xa, ca, ta = x[active].requires_grad_(not last), clean[active], target[active]
                with torch.set_grad_enabled(not last):
                    logits = classifier(xa)
                    loss = self.loss(logits, ta, xa, ca).sum()
                predicted[active] = logits.detach().argmax(1)
                taken[active] = step
                crossed[active] = there = self.arrived(logits.detach(), ta, active)
                going = ~there if self.leave_early else torch.ones_like(there)
                if last or not going.any():
                    break
                (grad,) = torch.autograd.grad(loss, xa)
                rows = going.nonzero().squeeze(1)
                active = active[rows]
                state |= {"rows": active, "step": step}
                moved = self.step(xa.detach()[rows], grad[rows], logits.detach()[rows], ta[rows], ca[rows], state)
                x[active] = self.project(moved, ca[rows])
        return AttackResult(x.cpu(), predicted.cpu(), crossed.cpu(), taken.cpu())


class Untargeted(Attack):
    """A base beside an attack's own: away from the labels, to whatever comes next."""

    def loss(self, logits, target, x, clean):
        """Away from the label."""
        return -F.cross_entropy(logits, target, reduction="none")

    def arrived(self, logits, target, rows):
        """Any other answer."""
        return logits.argmax(1) != target


class PGDLinf(Attack):
    """Projected gradient descent in the maximum norm (Madry et al. 2017), the paper's attack; from the image itself,
    not from a random start, so that nothing is drawn.

    The default radius is .1: the paper gives none, and 8/255 leaves most 32-pixel images uncrossed for distant classes.
    """

    norm = "inf"

    def __init__(self, eps=0.1, steps=20, step_size=None, leave_early=True):
        super().__init__(eps, steps, eps / 4 if step_size is None else step_size, leave_early)

    def step(self, x, grad, logits, target, clean, state):
        """Down the sign of the gradient."""
        return x - self.step_size * grad.sign()


class PGDL2(Attack):
    """Projected gradient descent in the Euclidean norm; eps 1.0 is torchattacks' default for 32-pixel images."""

    norm = "2"

    def __init__(self, eps=1.0, steps=20, step_size=None, leave_early=True):
        super().__init__(eps, steps, eps / 5 if step_size is None else step_size, leave_early)

    def step(self, x, grad, logits, target, clean, state):
        """Down the gradient, whatever its length."""
        return x - self.step_size * grad / l2(grad).clamp_min(1e-10)


class FGSM(PGDLinf):
    """One signed-gradient step of length eps (Goodfellow et al. 2015)."""

    def __init__(self, eps=0.1, steps=1, step_size=None, leave_early=True):
        super().__init__(eps, 1, eps, leave_early)


class CW(Attack):
    """Carlini-Wagner L2: Adam on w, x = (tanh w + 1) / 2, of ||x - clean||^2 + c max(max_{k != t} f_k - f_t, -kappa).

    Deviations: the image leaves at its first success, as in every attack here, instead of keeping the smallest one; the
    eps-ball of eq. 1 is applied, which the original does not have; the largest other logit is found by masking, since
    the reference's product with a one-hot is wrong where all others are negative. w is kept from step to step: made
    anew from x, it would never leave a pixel of 0 or 255, where a step of w is less than a rounding of x. A step is
    .1, not .01: fifty of those move a black pixel by .002 at most.
    """

    norm = "2"

    def __init__(self, eps=3.0, steps=50, step_size=0.1, leave_early=True, c=10.0, kappa=0.0):
        super().__init__(eps, steps, step_size, leave_early)
        self.c, self.kappa = c, kappa

    def loss(self, logits, target, x, clean):
        """Squared distance, and c times the margin by which the target is missed."""
        others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
        margin = (others - logits.gather(1, target[:, None]).squeeze(1)).clamp_min(-self.kappa)
        return (x - clean).square().flatten(1).sum(1) + self.c * margin

    def step(self, x, grad, logits, target, clean, state):
        """Adam's, in w."""
        rows, step = state["rows"], state["step"] + 1
        if step == 1:
            shape = (int(rows.max()) + 1, *x.shape[1:])
            state["m"], state["v"], state["w"] = x.new_zeros(shape), x.new_zeros(shape), x.new_zeros(shape)
            state["w"][rows] = (2 * x - 1).clamp(-INNERMOST, INNERMOST).atanh()  # infinite at pixels of exactly 0 or 1
        w = state["w"][rows]
        g = grad * (1 - w.tanh().square()) / 2  # chain rule through x = (tanh w + 1) / 2
        m = state["m"][rows] = 0.9 * state["m"][rows] + 0.1 * g
        v = state["v"][rows] = 0.999 * state["v"][rows] + 0.001 * g.square()
        w = w - self.step_size * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        state["w"][rows] = w
        return (w.tanh() + 1) / 2


class DeepFool(Attack):
    """Targeted DeepFool (Moosavi-Dezfooli et al. 2016): to the linearised boundary with the model's present answer.

    r = (f_y - f_t) / ||w||^2 * w with w = grad (f_t - f_y); x <- x + (1 + overshoot) r. The reference is untargeted
    and has no radius: the eps-ball of eq. 1 is applied here at each step. ``step_size`` is the overshoot.
    """

    norm = "2"
    step_grows = False

    def __init__(self, eps=3.0, steps=50, step_size=0.02, leave_early=True):
        super().__init__(eps, steps, step_size, leave_early)

    def loss(self, logits, target, x, clean):
        """f_y - f_t, the gap to the target."""
        return logits.amax(1) - logits.gather(1, target[:, None]).squeeze(1)

    def step(self, x, grad, logits, target, clean, state):
        """A little beyond the boundary."""
        gap = self.loss(logits, target, x, clean).view(-1, 1, 1, 1)
        return x - (1 + self.step_size) * (gap + 1e-4) * grad / l2(grad).square().clamp_min(1e-10)


def in_the_box(pixels: Tensor) -> Tensor:
    """The same pixels.

    Raises:
        UnlearningError: one is outside of [0, 1].
    """
    least, most = (float(end) for end in pixels.aminmax()) if len(pixels) else (0.0, 1.0)
    if not 0 <= least <= most <= 1:
        raise UnlearningError(
            f"pixels from {least:g} to {most:g} are no images to attack: give uint8, or floats in [0, 1]."
        )
    return pixels


def l2(x: Tensor) -> Tensor:
    """Euclidean norm of each image, shaped ``(N, 1, 1, 1)``."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


ATTACKS: dict[str, type[Attack]] = {"pgd": PGDLinf, "pgd_l2": PGDL2, "fgsm": FGSM, "cw": CW, "deepfool": DeepFool}
