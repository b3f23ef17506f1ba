"""zspag-hf info: what a model is made of, and what unlearning would cost on this machine."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass, field

import torch

from ..errors import UnlearningError
from ..hub.models import HubOptions, load_classifier
from .cost import STAGES, ModelFacts, describe, estimate_seconds
from .parsing import CommandParser
from .running import JsonArguments, document, options_like

HELP = {
    "prog": "zspag-hf info",
    "usage": "zspag-hf info MODEL [options]",
    "description": "Tell what an image classifier is made of, what it has forgotten already, and what unlearning\n"
    "would cost here, estimated from a few timed passes over random pixels. Needs no data.",
    "examples": ("zspag-hf info user/vit", "zspag-hf info without-cat --forget_images 48 --json"),
}
Options = options_like(
    "model_revision", "hub_token", "cache_dir", "trust_remote_code", "allow_pickled_weights", "max_proxies", "use_cpu"
)
NAMES, LAYERS = 78, 40  # shown at most: letters of the classes' names, kinds of layers


@dataclass
class InfoArguments:
    forget_images: int = field(default=1000, metadata={"help": "How many images are to be forgotten."})

    def __post_init__(self):
        if self.forget_images < 2:
            raise UnlearningError(f"forget_images={self.forget_images} must be at least 2.")


def main(argv: list[str]) -> None:
    parser = CommandParser((InfoArguments, JsonArguments, Options), **HELP)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="Hub id or folder of the classifier.")
    arguments, command, options, given = parser.parse(argv)
    if given.model is None:
        raise UnlearningError("no model was given: zspag-hf info MODEL, a Hub id or a folder.")
    hub = HubOptions(
        options.model_revision,
        options.hub_token,
        options.cache_dir,
        options.trust_remote_code,
        options.allow_pickled_weights,
    )
    with document(command.json) as found:
        model, processor = load_classifier(given.model, hub=hub)
        model.to("cuda" if torch.cuda.is_available() and not options.use_cpu else "cpu")
        facts = describe(model, processor)
        print(facts_text(given.model, facts))
        seconds = estimate_seconds(model, processor, arguments.forget_images, options.max_proxies)
        print(cost_text(seconds, arguments.forget_images, str(model.device)))
        found |= asdict(facts) | {"estimated_seconds": seconds, "forget_images": arguments.forget_images}


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
        f"  head        {facts.head or 'none: no layer has one output a class; use scope=all'}",
        f"  memory      {size(facts.gram_bytes)} for Gram matrices of {facts.distinct_inputs} distinct layer inputs",
        *ledger_text(facts.history),
        "",
        *table(facts),
    ]
    return "\n".join(lines)


def ledger_text(history: list[dict]) -> list[str]:
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


def size(count: int) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def duration(seconds: float) -> str:
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cost_text(seconds: dict[str, float], forget_images: int, device: str) -> str:
    parts = ", ".join(f"{stage.replace('_', ' ')} {duration(seconds[stage])}" for stage in STAGES)
    return (
        f"\nunlearning {forget_images} images here ({device}): about {duration(seconds['total'])}\n  {parts}\n"
        "  An estimate from timed passes over random pixels, often within a factor of two; the evaluation comes on top."
    )
