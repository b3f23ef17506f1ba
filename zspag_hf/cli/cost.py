"""What a model is made of, and what an unlearning run on it would cost on this machine. No data is needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import UnlearningConfig
from ..data.images import mode
from ..data.labels import model_labels
from ..data.request import earlier_requests, forgotten_ids
from ..methods.stages import INFLUENCE_IMAGES
from ..pipeline.attacks import ATTACKS
from ..pipeline.classifier import PixelClassifier, to_pixels, to_unit
from ..pipeline.grams import collect_grams, shared_inputs
from ..pipeline.influence import label_influence, mean_gradient, weights_of
from ..pipeline.layers import Layer, constrained_layers, head_name

# What the forget images decide is taken from two measured runs, a ViT on CIFAR-10 and a MobileNet on ImageNet:
ATTACK_STEPS = 3  # gradient steps an attack takes on average: 1.5 and 4.3
TRAINING_STEPS = 110  # optimizer steps of an adaptive run: 50 and 190
TRIED_STEPS = 2  # looks at the held-out proxies for each threshold of the damping: 2 and 2

STAGES = ("proxies", "subspaces", "pseudo_labels", "adaptation", "training")
BATCH_SECONDS, BATCH_LIMIT = 1.0, 64  # a timed pass has as many images as take so long one by one, at most so many
EIGH_WIDTH = 512  # wider decompositions are not run but scaled by the cube of the width


@dataclass(frozen=True)
class LayerFacts:
    """One layer that can be constrained: kind of module, row width, groups, outputs over all groups, weights, and
    whether an earlier layer reads the same input, so that they share one Gram matrix."""

    name: str
    kind: str
    d_in: int
    groups: int
    outputs: int
    weights: int
    shares_input: bool


@dataclass(frozen=True)
class ModelFacts:
    """What a model is made of.

    Attributes:
        parameters: how many numbers; frozen: those that no run changes, all outside ``layers``.
        image_shape: channels, height, width, as the processor makes them.
        history: the ledger of what it has forgotten, oldest request first.
        layers: in the order in which a forward pass reaches them. head: name of the last one, or None.
        gram_bytes: of the float64 Gram matrices of all distinct layer inputs.
    """

    model_type: str
    architecture: str
    parameters: int
    frozen: int
    image_shape: tuple[int, ...]
    labels: list[str]
    history: list[dict]
    layers: list[LayerFacts]
    head: str | None
    gram_bytes: int
    distinct_inputs: int


def describe(model, processor) -> ModelFacts:
    """What a classifier is made of, found by one forward pass on random pixels."""
    classifier, layers = prepare(model, processor)
    sample = random_pixels(classifier, processor, 2)
    shared = sharing(classifier, layers, sample)
    facts = [layer_facts(layer, layer.name in shared) for layer in layers.values()]
    distinct = [layer for layer in facts if not layer.shares_input]
    parameters = sum(p.numel() for p in model.parameters())
    return ModelFacts(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        parameters=parameters,
        frozen=parameters - sum(layer.weights for layer in facts),
        image_shape=tuple(sample.shape[1:]),
        labels=model_labels(model.config),
        history=earlier_requests(model.config),
        layers=facts,
        head=head_name(layers, classifier.num_labels),
        gram_bytes=sum(8 * layer.groups * layer.d_in**2 for layer in distinct),
        distinct_inputs=len(distinct),
    )


def layer_facts(layer: Layer, shares_input: bool) -> LayerFacts:
    groups, outputs, d_in = layer.matrix(layer.weight).shape
    kind = type(layer.module).__name__
    return LayerFacts(layer.name, kind, d_in, groups, groups * outputs, layer.weight.numel(), shares_input)


def prepare(model, processor) -> tuple[PixelClassifier, dict[str, Layer]]:
    """The model in eval mode as a classifier of pixels, and the layers that unlearning may change."""
    classifier = PixelClassifier(model.eval(), processor)
    sample = to_unit(random_pixels(classifier, processor, 2), classifier.device)
    return classifier, constrained_layers(model, lambda: classifier(sample))


@torch.no_grad()
def sharing(classifier: PixelClassifier, layers: dict[str, Layer], pixels: Tensor) -> set[str]:
    """Names of the layers that read the same input as an earlier one."""
    return set(shared_inputs(classifier, layers, pixels))


def random_pixels(classifier: PixelClassifier, processor, count: int) -> Tensor:
    """Noise in the shape that the processor makes of images, ``(count, channels, H, W)`` uint8."""
    side = getattr(classifier.model.config, "image_size", None)  # for a processor that does not resize
    side = side if isinstance(side, int) else 224
    shape = to_pixels([Image.fromarray(np.zeros((side, side, 3), np.uint8)).convert(mode(processor))], processor).shape
    return torch.randint(0, 256, (count, *shape[1:]), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def estimate_seconds(model, processor, forget_images: int = 1000, max_proxies: int = 1000) -> dict[str, float]:
    """Seconds that a default (adaptive) run would take, by stage of the report's ``timings_s``, and their total.

    The library's own passes are timed on a few random pixels and multiplied by how often a run makes them. How many
    steps the attacks and the training take depends on the images and is taken from measured runs, so the estimate can
    be off by a factor of two. The model's weights are left as they are.

    Args:
        forget_images: as many images as are trained on: with ``forget_views``, images times views.
        max_proxies: as the option.
    """
    classifier, layers = prepare(model, processor)
    trainable = {id(weight): weight.requires_grad for weight in model.parameters()}
    model.requires_grad_(False)
    try:
        each = time_passes(classifier, layers, processor)
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(trainable[id(parameter)])
    seconds = scaled(each, counts(classifier, forget_images, max_proxies))
    return seconds | {"total": sum(seconds.values())}


def counts(classifier: PixelClassifier, forget_images: int, max_proxies: int) -> dict[str, float]:
    """How many images of each kind a default run has; see :func:`zspag_hf.pipeline.proxies.quota_pairs`."""
    options = {name: field.default for name, field in UnlearningConfig.__dataclass_fields__.items()}
    held = options["holdout_share"]
    retained = classifier.num_labels - 1 - len(forgotten_ids(earlier_requests(classifier.model.config)))
    train, judge = (1 - held) * forget_images, held * forget_images

    def proxies(share: float, images: float) -> float:
        most = max_proxies * share
        classes = min(retained, most)
        return classes * min(options["proxies_per_class"] * share, max(1, most / classes), images)

    return {
        "train": train,
        "judge": judge,
        "forget": forget_images,
        "proxies": proxies(1, train),
        "judge_proxies": proxies(held / (1 - held), judge),
        "batch": train / math.ceil(train / options["per_device_train_batch_size"]),
    }


def scaled(each: dict[str, float], n: dict[str, float]) -> dict[str, float]:
    """Stage -> seconds: passes as :class:`zspag_hf.methods.zspag.ZSPAG` makes them, times seconds of each."""
    probe = min(256, n["train"])  # images that the first step is chosen on
    rounds = TRAINING_STEPS / 10 + 2
    return {
        "proxies": (n["proxies"] + n["judge_proxies"]) * (ATTACK_STEPS * each["attack"] + each["forward"]),
        "subspaces": (n["proxies"] + n["train"]) * each["gram"] + each["decompositions"],
        "pseudo_labels": n["forget"] * (each["influence"] + each["forward"])
        + 2 * min(INFLUENCE_IMAGES, n["proxies"]) * each["gradient"],
        "adaptation": probe * each["gradient"]
        + 4 * (TRIED_STEPS * n["judge_proxies"] + 2 * probe) * each["forward"]
        + n["proxies"] * each["forward"],
        "training": TRAINING_STEPS * (2 * n["batch"] * each["gradient"] + each["constraint"])
        + rounds * (n["judge"] + n["judge_proxies"]) * each["forward"]
        + 2 * (n["train"] + n["proxies"]) * each["forward"],
    }


def time_passes(classifier: PixelClassifier, layers: dict[str, Layer], processor) -> dict[str, float]:
    """Seconds an image of each kind of pass, and of the constraint and the decompositions, once each."""
    pixels = random_pixels(classifier, processor, BATCH_LIMIT)
    one = timed(lambda: classifier.predict(pixels[:1]))
    pixels = pixels[: max(2, min(BATCH_LIMIT, int(BATCH_SECONDS / one)))]
    labels = classifier.predict(pixels).argmax(1)
    attack, leaders = ATTACKS["pgd"](), dict(layers)
    for name in sharing(classifier, layers, pixels[:2]):
        del leaders[name]

    def attacked():
        x = to_unit(pixels, classifier.device).requires_grad_()
        with torch.enable_grad():
            logits = classifier(x)
            attack.gradient(logits, labels.to(logits.device), x, x).cpu()

    def differentiated():
        for gradient in mean_gradient(classifier, pixels, labels, layers).values():
            gradient[0, 0].sum().item()  # waits for a GPU

    passes = {
        "forward": lambda: classifier.predict(pixels),
        "attack": attacked,
        "gradient": differentiated,
        "influence": lambda: label_influence(classifier, pixels, weights_of(layers), layers),
        "gram": lambda: collect_grams(classifier, pixels, labels, layers),
    }
    each = {name: timed(run) / len(pixels) for name, run in passes.items()}
    return each | {"constraint": constraint_seconds(layers), "decompositions": decomposition_seconds(leaders)}


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call; where it is a short one, of the second of two, as the first warms up."""
    for _ in range(2):
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        if seconds > BATCH_SECONDS:
            break
    return seconds


def constraint_seconds(layers: dict[str, Layer]) -> float:
    """Damping every layer's update once: one product (out, d_in) x (d_in, d_in) a group."""

    def damp():
        for layer in layers.values():
            matrix = layer.matrix(layer.weight.detach())
            (matrix @ matrix.new_zeros(layer.groups, layer.d_in, layer.d_in)).sum().item()

    return timed(damp)


def decomposition_seconds(layers: dict[str, Layer]) -> float:
    """One eigendecomposition and five dampings, each a product as wide, for every layer, in float64."""
    widths, total = {}, 0.0
    for layer in layers.values():
        width = min(layer.d_in, EIGH_WIDTH)
        if width not in widths:
            gram = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            gram = gram @ gram.T
            widths[width] = timed(lambda gram=gram: torch.linalg.eigh(gram)) + 5 * timed(lambda gram=gram: gram @ gram)
        total += layer.groups * widths[width] * (layer.d_in / width) ** 3
    return total
