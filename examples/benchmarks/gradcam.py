"""Figure 3 of the paper: where several models look on test images of a forgotten class, on one colour scale.

    python examples/benchmarks/gradcam.py --models original=user/model unlearned=outputs/without-cat \\
        --dataset_name user/data --label cat --output gradcam.png

The picture shows test images: do not publish it where these must stay private.
"""

from __future__ import annotations

import argparse
import sys

import torch
from datasets import load_dataset

from zspag_hf import PixelClassifier, UnlearningError
from zspag_hf.data.images import labelled_dataset
from zspag_hf.data.labels import model_labels, resolve_classes
from zspag_hf.evaluation.heatmaps import heatmap_layer, heatmaps
from zspag_hf.hub.models import load_classifier
from zspag_hf.report.figures import heatmap_panels


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="name=id or folder, of one architecture")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--label", required=True, help="the class originally labelled")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--output", default="gradcam.png")
    arguments = parser.parse_args()
    loaded = {}
    for entry in arguments.models:
        name, _, source = entry.partition("=")
        loaded[name] = load_classifier(source)
    model, processor = next(iter(loaded.values()))
    names = model_labels(model.config)
    test = labelled_dataset(load_dataset(arguments.dataset_name, split=arguments.test_split), processor, names)
    wanted = resolve_classes([arguments.label], names)[0]
    rows = (test.labels == wanted).nonzero().squeeze(1)[: arguments.images].tolist()
    items = test.__getitems__(rows)
    pixels, labels = (torch.stack([item[key] for item in items]) for key in ("pixels", "labels"))
    classifiers = {name: PixelClassifier(model.eval(), processor) for name, (model, processor) in loaded.items()}
    layer = heatmap_layer(next(iter(classifiers.values())), pixels[:1])
    if layer is None:
        raise UnlearningError("the model has no layer with a square grid of positions to look at.")
    maps = {name: heatmaps(model, layer, pixels, labels).numpy() for name, model in classifiers.items()}
    heatmap_panels(pixels.permute(0, 2, 3, 1).numpy(), maps).savefig(arguments.output)
    print(f"{arguments.output}: layer {layer}, {len(rows)} images")


if __name__ == "__main__":
    try:
        main()
    except UnlearningError as error:
        sys.exit(f"error: {error}")
