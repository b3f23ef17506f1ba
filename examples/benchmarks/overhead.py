"""The constraint's share of an optimizer step, by architecture: steps as an adaptive run makes them (forget images,
then as many proxies, a backward pass each), on random weights and images, with the constraint's hooks and without.

    python examples/benchmarks/overhead.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from measure import DEVICE, add_results, interleaved, row, seconds
from models import ARCHITECTURES, architecture, benchmark_parser, with_layers
from torch import Tensor

from zspag_hf.cli.info import random_pixels
from zspag_hf.methods import ZSPAG
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.constraint import HardConstraint, SoftConstraint, attach, freeze_unconstrained
from zspag_hf.pipeline.grams import shared_inputs
from zspag_hf.pipeline.layers import Layer, head_name
from zspag_hf.pipeline.subspaces import Basis, Spectrum

ASKED = {"ViT-B/16": "at most 0.08"}
BLOCK = 2.0  # seconds that are timed at a time, of steps that take less
HALF, QUARTER = "hard constraint, rank d/2", "hard constraint, rank d/4"


class Steps:
    """Optimizer steps on one batch of random images, with the losses of :class:`zspag_hf.methods.ZSPAG`."""

    def __init__(self, classifier: PixelClassifier, layers: dict[str, Layer], pixels: Tensor):
        head, count, classes = head_name(layers, classifier.num_labels), len(pixels), classifier.num_labels
        args = SimpleNamespace(per_device_train_batch_size=count)
        # what the losses read of a run
        self.seen = SimpleNamespace(layers=layers, head=head, classifier=classifier, forget_ids=[0], args=args)
        self.method = ZSPAG()
        self.method.goal = -1.0  # never reached
        features, answers = F.normalize(torch.randn(count, layers[head].d_in), dim=1), torch.randn(count, classes)
        inputs = {
            "pixels": pixels,
            "targets": torch.cat([answers.softmax(1), torch.eye(classes)[:1].expand(count, classes)], 1),
            "feature_targets": torch.cat([features, answers.softmax(1)], 1),
            "weights": torch.full((count,), 1 / count),
            "proxy_pixels": pixels.float() / 255,
            "proxy_targets": answers.softmax(1),
        }
        self.parts = self.method.parts({name: tensor.to(DEVICE) for name, tensor in inputs.items()})
        self.model, self.layers = classifier.model, layers

    def optimizer(self, constraint: SoftConstraint | HardConstraint | None) -> torch.optim.SGD:
        """With the constraint's hooks around its steps."""
        optimizer = torch.optim.SGD([layer.weight for layer in self.layers.values()], lr=1e-3)
        if constraint is not None:
            attach(constraint, optimizer)
        return optimizer

    def run(self, optimizer: torch.optim.SGD, parts: int = 2) -> None:
        """One step, of the first part alone or of both."""
        for inputs in self.parts[:parts]:
            self.method.compute_loss(self.seen, self.model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()


def random_dampings(layers: dict[str, Layer], shared: dict[str, str]) -> dict[str, Tensor]:
    """Of Gram matrices of random rows with a falling spectrum; one tensor for layers that read the same input."""
    widths: dict[tuple, Tensor] = {}
    dampings: dict[str, Tensor] = {}
    for name, layer in layers.items():
        key = (layer.groups, layer.d_in)
        if key not in widths:
            rows = torch.randn(*key, layer.d_in, dtype=torch.float64) * torch.linspace(1, 0.01, layer.d_in).double()
            widths[key] = Spectrum({name: rows.mT @ rows}, DEVICE).dampings(0.999)[name]
        leader = shared.get(name, name)
        dampings[name] = dampings[leader] if leader in dampings else widths[key].clone()
    return dampings


def random_bases(layers: dict[str, Layer], share: float) -> dict[str, Basis]:
    """Random subspaces of a share of each layer's width, one for all groups."""
    widths: dict[int, Tensor] = {}
    for layer in layers.values():
        if layer.d_in not in widths:
            rank = max(1, int(share * layer.d_in))
            widths[layer.d_in] = torch.linalg.qr(torch.randn(layer.d_in, rank, device=DEVICE)).Q
    return {name: Basis((widths[layer.d_in].clone(),) * layer.groups) for name, layer in layers.items()}


def steps_a_block(run: Callable[[], None]) -> int:
    """How many steps take ``BLOCK`` seconds, one at least; where it is a short one, by the second of two."""
    once = seconds(run)
    return max(1, round(BLOCK / (seconds(run) if once < BLOCK else once)))


def repeated(run: Callable[[], None], count: int) -> Callable[[], None]:
    """The same so many times."""

    def block():
        for _ in range(count):
            run()

    return block


def measure_one(name: str, size: str, batch: int, repeats: int) -> list[dict]:
    """Rows of one architecture."""
    model, processor = architecture(name, size)
    classifier, layers = with_layers(model, processor)
    freeze_unconstrained(model, set(layers))
    pixels = random_pixels(classifier, processor, batch)
    soft = SoftConstraint(layers, random_dampings(layers, shared_inputs(classifier, layers, pixels[:2])))
    constraints = {
        "without": None,
        "soft constraint": soft,
        HALF: HardConstraint(layers, random_bases(layers, 1 / 2)),
        QUARTER: HardConstraint(layers, random_bases(layers, 1 / 4)),
    }
    steps = Steps(classifier, layers, pixels)
    optimizers = {kind: steps.optimizer(constraint) for kind, constraint in constraints.items()}

    def hooks_alone():
        soft.before_step()
        soft.after_step()

    timed = {kind: partial(steps.run, optimizer) for kind, optimizer in optimizers.items()}
    timed |= {
        "forget, without": partial(steps.run, optimizers["without"], 1),
        "forget, soft": partial(steps.run, optimizers["soft constraint"], 1),
        "hooks alone": hooks_alone,
    }
    count = 1 if size == "small" else steps_a_block(timed["without"])
    took = interleaved({kind: partial(repeated, run, count) for kind, run in timed.items()}, repeats)

    def share(kind: str, without: str) -> float:
        return (took[kind] - took[without]) / took[kind]

    what = f"{name}, batch {batch}, {classifier.num_labels:,} classes"
    rows = [row(f"{what}: soft constraint, share of a step", share("soft constraint", "without"), ASKED.get(name))]
    rows += [row(f"{what}: {kind}, share of a step", share(kind, "without")) for kind in (HALF, QUARTER)]
    return [
        *rows,
        row(
            f"{what}: soft constraint, share of a step without proxies ({batch} forget images alone)",
            share("forget, soft", "forget, without"),
        ),
        row(f"{what}: the soft constraint's hooks alone over a step", took["hooks alone"] / took["soft constraint"]),
    ]


def main() -> None:
    """Run the command line."""
    parser = benchmark_parser(__doc__, repeats=5)
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES["real"], default=list(ARCHITECTURES["real"]))
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for name in arguments.models:
        rows = measure_one(name, arguments.size, arguments.batch, arguments.repeats)
        add_results(arguments.output, name, rows)


if __name__ == "__main__":
    main()
