"""Gated knowledge transfer (arXiv 2201.05629; METHODS C.8): a new network taught on noise that a filter lets pass."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..config import option
from ..errors import UnlearningError
from ..hub.adapter import ModuleClassifier
from ..parallel.processes import tensors_from_first
from ..pipeline.classifier import frozen
from .base import Method
from .generator import NOISE, Generator
from .plan import Plan
from .retrain import check_renewable, renewed
from .run import Run, state_tensors

PSEUDO_BATCHES = 4000
STUDENT_STEPS = 10  # after one of the generator, on the same noise
THRESHOLD = 0.01  # probability of the forgotten classes up to which an image passes
ATTENTION = 250.0  # weight beta of the attention maps
CLIP = 5.0  # norm of each gradient at most
EMPTY = 100  # batches in a row without images that pass, after which the generator is set back
REMEMBERED = 50  # pseudo-batches between the generators that it may be set back to
FEWEST = 2  # images of a batch: batch norm in train mode has no statistics of one


def passes(logits: Tensor, forget_ids: list[int]) -> Tensor:
    """The band-pass filter, ``(n,)`` bool: the teacher's probability of all forgotten classes together is small."""
    return logits.softmax(1)[:, forget_ids].sum(1) <= THRESHOLD


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits ``(n, C)`` at temperature 1, averaged over images and classes: beta is tuned to
    the published code's ``kl_div``, which divides by both."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).mean()


def attention_map(activation: Tensor) -> Tensor:
    """Mean square over channels, by position and of unit length for each image: ``(n, positions)``.

    Args:
        activation: maps ``(n, channels, H, W)`` or tokens ``(n, T, channels)``.
    """
    channels = 1 if activation.dim() == 4 else -1
    return F.normalize(activation.square().mean(channels).flatten(1))


def student_loss(student: Tensor, teacher: Tensor, of_student: list[Tensor], of_teacher: list[Tensor]) -> Tensor:
    """Divergence of the logits plus beta times the mean squared difference of each pair of attention maps."""
    pairs = zip(of_student, of_teacher, strict=True)
    gaps = sum((attention_map(a) - attention_map(b)).square().mean() for a, b in pairs)
    return divergence(student, teacher) + ATTENTION * gaps


@contextlib.contextmanager
def convolution_outputs(model: nn.Module):
    """Collect what every convolution of a plain module gives."""
    outputs: list[Tensor] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_hook(lambda _m, _x, output: outputs.append(output)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def watched(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and the activations that attention maps are made of: the hidden states of a model of transformers', the
    outputs of a plain module's convolutions."""
    if isinstance(model, ModuleClassifier):
        with convolution_outputs(model) as outputs:
            return model(pixel_values=pixel_values).logits, outputs
    output = model(pixel_values=pixel_values, output_hidden_states=True)
    return output.logits, list(output.hidden_states)


class Transfer:
    """The loop: one generator step towards what teacher and student say differently, then ten of the student.

    Args:
        classifier: the teacher, with its normalisation. student: of the same architecture, on the same device.
        size: channels, height and width of an image. batch_size: images that noise is drawn for at a time.
        rate: of both Adams. seed: of everything that is drawn.
    """

    def __init__(self, classifier, student: nn.Module, forget_ids: list[int], size, batch_size: int, rate, seed: int):
        self.classifier, self.student, self.forget_ids = classifier, student, forget_ids
        self.batch_size, self.random = batch_size, torch.Generator().manual_seed(seed)
        self.generator = Generator(*size).to(classifier.device)
        self.optimizers = [torch.optim.Adam(one.parameters(), rate) for one in (self.generator, self.student)]
        self.earlier = [copy.deepcopy(self.generator.state_dict())] * 2
        self.empty, self.is_stuck = 0, True

    def run(self, count: int, disable_progress: bool = True) -> None:
        """``count`` pseudo-batches that the filter let images of pass.

        Raises:
            UnlearningError: the generator is stuck, or something is not finite.
        """
        for number in tqdm(range(count), desc="Pseudo-batches", disable=disable_progress):
            while not self.pseudo_batch():
                self.empty += 1
                if self.empty >= EMPTY:
                    self.set_back()
            self.empty, self.is_stuck = 0, False
            if number % REMEMBERED == 0:
                self.earlier = [self.earlier[1], copy.deepcopy(self.generator.state_dict())]

    def pseudo_batch(self) -> bool:
        """Steps on one draw of noise; whether there were images to take them on."""
        noise = torch.randn(self.batch_size, NOISE, generator=self.random).to(self.classifier.device)
        images, logits, _ = self.let_through(noise)
        if len(images) < FEWEST:
            return False
        self.step(0, -divergence(self.student(pixel_values=images).logits, logits))
        with torch.no_grad():
            images, logits, activations = self.let_through(noise)
        if len(images) < FEWEST:
            return False
        for _ in range(STUDENT_STEPS):
            mine, of_mine = watched(self.student, images)
            self.step(1, student_loss(mine, logits, of_mine, activations))
        return True

    def let_through(self, noise: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Normalised images that pass the filter, and the teacher's logits and activations for them."""
        images = self.classifier.normalize(self.generator(noise))
        self.check_finite("a generated image", images)
        logits, activations = watched(self.classifier.model, images)
        kept = passes(logits.detach(), self.forget_ids)
        return images[kept], logits[kept], [activation[kept] for activation in activations]

    def step(self, which: int, loss: Tensor) -> None:
        """One of the generator (0) or the student (1)."""
        self.check_finite(f"the loss of the {('generator', 'student')[which]}", loss)
        optimizer, trained = self.optimizers[which], (self.generator, self.student)[which]
        optimizer.zero_grad()
        loss.backward(inputs=list(trained.parameters()))
        nn.utils.clip_grad_norm_(trained.parameters(), CLIP)
        optimizer.step()

    def check_finite(self, what: str, values: Tensor) -> None:
        """Refuse to go on from values that are not finite.

        Raises:
            UnlearningError: some are not.
        """
        if not torch.isfinite(values).all():
            rate = self.optimizers[0].param_groups[0]["lr"]
            raise UnlearningError(f"{what} is not finite: lower learning_rate ({rate}).")

    def set_back(self) -> None:
        """The generator makes nothing but the forgotten classes: take it as it was 50 to 100 pseudo-batches ago.

        Raises:
            UnlearningError: it never made anything else, or not since it was set back.
        """
        if self.is_stuck:
            raise UnlearningError(
                f"of {EMPTY} batches of generated images none has {FEWEST} that the model gives the forgotten classes"
                f" ({len(self.forget_ids)} of them) less than {THRESHOLD}, so there is nothing to teach on: raise"
                " per_device_train_batch_size, or give a method that reads the forget images."
            )
        self.generator.load_state_dict(self.earlier[0])
        self.empty, self.is_stuck = 0, True


@dataclass(kw_only=True)
class GKT(Method):
    """A student with new weights learns from the original what it says of generated images, but of those that it gives
    the forgotten classes; it takes the original's place. No image is read, neither forgotten nor retained.

    Settings: 4,000 pseudo-batches (``max_steps`` for fewer) of one generator step and ten student steps, both by Adam
    at 1e-3, whatever ``optim`` says; gradients clipped to 5. A batch is drawn for ``per_device_train_batch_size`` times
    the number of processes, each of which does all the work; the published batch is 256.

    Where paper or code are silent or differ: several forgotten classes pass by the sum of their probabilities (the code
    knows one). Attention maps are those of the hidden states, by token in a transformer; the code has every
    convolution's output, as here a plain module's. The rates stay: the code lowers them by the loss on retained test
    data. The student is in train mode; the code's first evaluation leaves it in eval mode, batch norm at its initial
    statistics. At least two images have to pass. A run that was cut off begins its loop again, and once that is
    over goes on behind it.

    The filter lets probabilities up to .01 pass, and they are taught like any other: a student that learns well learns
    the forgotten classes too. On digits (a ViT, class 3, 64 images a batch) it was right on .87 of the retained and .00
    of the forgotten test images after 80 pseudo-batches, on .94 and .43 after 120.
    """

    description: ClassVar[str] = (
        "Gated knowledge transfer ([arXiv 2201.05629](https://arxiv.org/abs/2201.05629)): a new network is taught by"
        " the original on generated images, without those in which it sees the forgotten classes."
    )

    loops: ClassVar[bool] = False

    learning_rate: float | None = option(1e-3, "Of both Adams.", above=0)

    def check_model(self, run: Run) -> None:
        """Refuse a model whose first weights cannot be drawn."""
        check_renewable(run.model)

    def prepare(self, run: Run) -> Plan:
        """An edit alone: the student takes the model's place."""
        tensors, _ = run.stage("student", lambda: (self.teach(run), {}), under="training")

        def edit():
            state = state_tensors(run.model)
            for name, tensor in (tensors_from_first(tensors) or {}).items():
                state[name].copy_(tensor)

        return Plan(None, None, None, edit=torch.no_grad()(edit))

    def teach(self, run: Run) -> dict[str, Tensor]:
        """The student's parameters and buffers."""
        args, classifier = run.args, run.classifier
        device = classifier.device
        student = renewed(classifier.model, args.seed).to(device)
        batch_size = args.per_device_train_batch_size * args.world_size
        count = args.max_steps if args.max_steps > 0 else PSEUDO_BATCHES
        classifier.model.eval()
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            frozen(classifier.model),
        ):
            torch.manual_seed(args.seed)  # of the generator's weights, and of dropout
            size = run.forget.pixels.shape[1:]
            transfer = Transfer(classifier, student, run.forget_ids, size, batch_size, args.learning_rate, args.seed)
            transfer.run(count, run.quiet)
        return state_tensors(student)
