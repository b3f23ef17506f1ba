"""zspag-hf info: what a model is made of, and what it has forgotten already. No data is needed."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..data.labels import model_labels
from ..data.request import earlier_requests
from ..errors import UnlearningError
from ..hub.models import load_classifier
from ..hub.repository import HubOptions
from ..pipeline.classifier import PixelClassifier, mode, to_pixels, to_unit
from ..pipeline.grams import shared_inputs
from ..pipeline.layers import Layer, constrained_layers, head_name
from .parsing import CommandParser
from .running import JsonArguments, document, options_like

HELP: dict[str, Any] = {
    "prog": "zspag-hf info",
    "usage": "zspag-hf info MODEL [options]",
    "description": "Tell what an image classifier is made of, and what it has forgotten already. Needs no data.",
    "examples": ("zspag-hf info user/vit", "zspag-hf info without-cat --json"),
}
Options = options_like(
    *("model_revision", "hub_token", "cache_dir", "trust_remote_code", "allow_pickled_weights", "use_cpu")
)
NAMES, LAYERS = 78, 40  # shown at most: letters of the classes' names, kinds of layers


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


def describe(model: PreTrainedModel, processor: Any) -> ModelFacts:
    """What a classifier is made of, found by a few forward passes on random pixels."""
    classifier = PixelClassifier(model.eval(), processor)
    sample = random_pixels(classifier, processor, 2)
    layers = constrained_layers(model, lambda: classifier(to_unit(sample, classifier.device)))
    shared = shared_inputs(classifier, layers, sample)
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
    """Of one layer."""
    groups, outputs, d_in = layer.matrix(layer.weight).shape
    kind = type(layer.module).__name__
    return LayerFacts(layer.name, kind, d_in, groups, groups * outputs, layer.weight.numel(), shares_input)


def random_pixels(classifier: PixelClassifier, processor: Any, count: int) -> Tensor:
    """Noise in the shape that the processor makes of images, ``(count, channels, H, W)`` uint8."""
    side = getattr(classifier.model.config, "image_size", None)  # for a processor that does not resize
    side = side if isinstance(side, int) else 224
    shape = to_pixels([Image.fromarray(np.zeros((side, side, 3), np.uint8)).convert(mode(processor))], processor).shape
    return torch.randint(0, 256, (count, *shape[1:]), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = CommandParser((JsonArguments, Options), **HELP)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder of the classifier.")
    command, options, given = parser.parse(argv)
    if given.model is None:
        raise UnlearningError("no model was given: zspag-hf info MODEL, a Hub id or a folder.")
    hub = HubOptions(
        options.model_revision,
        options.hub_token,
        options.cache_dir,
        options.trust_remote_code,
        options.allow_pickled_weights,
    )
    with document(command.json) as told:
        model, processor = load_classifier(given.model, hub=hub)
        model.to("cuda" if torch.cuda.is_available() and not options.use_cpu else "cpu")
        facts = describe(model, processor)
        print(facts_text(given.model, facts))
        told |= asdict(facts)


def facts_text(name: str, facts: ModelFacts) -> str:
    """What a model is made of, as text of at most 100 columns."""
    names = ", ".join(label.split(",")[0] for label in facts.labels)
    inside = sum(layer.weights for layer in facts.layers)
    lines = [
        f"{name}: {facts.architecture} ({facts.model_type})",
        f"  parameters  {facts.parameters:,}; {inside:,} in {len(facts.layers)} layers can be changed,"
        f" {facts.frozen:,} stay frozen",
        f"  images      {' x '.join(map(str, facts.image_shape))} (channels, height, width)",
        f"  classes     {len(facts.labels)}: {textwrap.shorten(names, NAMES, placeholder=' ...')}",
        f"  head        {facts.head or 'none: no layer has one output a class; use method=zspag_paper'}",
        f"  memory      {size(facts.gram_bytes)} for Gram matrices of {facts.distinct_inputs} distinct layer inputs",
        *ledger_text(facts.history),
        "",
        *table(facts),
    ]
    return "\n".join(lines)


def ledger_text(history: list[dict]) -> list[str]:
    """What a model has forgotten, a line a request, oldest first."""
    if not history:
        return ["  forgotten   nothing yet"]
    lines = []
    for number, entry in enumerate(history, 1):
        labels = ", ".join(known["label"] for known in entry["classes"]) or "no whole class"
        title = "  forgotten   " if number == 1 else " " * 14
        lines.append(f"{title}{number}. {entry['date']}: {labels} ({entry['images']} images, {entry['method']})")
    return lines


def table(facts: ModelFacts) -> list[str]:
    """The layers, those that differ in their number alone in one line."""
    rows = Counter(
        (re.sub(r"(?<=\.)\d+(?=\.)", "*", layer.name), layer.kind, layer.d_in, layer.groups, layer.outputs)
        for layer in facts.layers
    )
    width = max(len("layer"), *(len(row[0]) for row in list(rows)[:LAYERS]))
    lines = [f"{'layer':<{width}}  {'count':>5}  {'type':<7}{'d_in':>6}{'groups':>8}{'outputs':>9}"]
    lines += [
        f"{name:<{width}}  {count:>5}  {kind:<7}{d_in:>6}{groups:>8}{outputs:>9}"
        for (name, kind, d_in, groups, outputs), count in list(rows.items())[:LAYERS]
    ]
    hidden = len(rows) - LAYERS
    return [*lines, f"... {hidden} more kinds: --json lists all"] if hidden > 0 else lines


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
