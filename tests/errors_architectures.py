"""Architectures that cannot be unlearned, image processors that cannot be read, modules that were not saved."""

import torch
import transformers as hf
from errors_case import Case, a_model, edit, load, run
from tiny import NAMES, config, images, tiny_model
from torch import nn

from zspag_hf import UnlearningTrainer
from zspag_hf.hub.adapter import ModuleClassifier, ModuleConfig


def network(outputs: int = 5) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))


def adapted(module: nn.Module) -> ModuleClassifier:
    return ModuleClassifier(ModuleConfig(id2label=dict(enumerate(NAMES)), image_size=8), module).eval()


def saved_module(folder) -> str:
    adapted(network()).save_pretrained(folder / "model")
    return str(folder / "model")


def with_processor(processor):
    return lambda folder: UnlearningTrainer(tiny_model(), config(folder), images([2]), processing_class=processor)


class Swapping(hf.ViTImageProcessorPil):
    """Swaps red and blue after it has normalised them."""

    def _preprocess(self, *args, **kwargs):
        batch = super()._preprocess(*args, **kwargs)
        batch["pixel_values"] = batch["pixel_values"][:, [2, 1, 0]]
        return batch


class WithoutLayers(hf.ViTForImageClassification):
    def forward(self, pixel_values, **_):
        return hf.modeling_outputs.ImageClassifierOutput(logits=pixel_values.flatten(1)[:, :5] * torch.ones(5))


SWAPPING = Swapping(size={"height": 8, "width": 8}, image_mean=[0.4, 0.5, 0.6])
CASES = [
    Case(
        "a type that is refused", load(), "'siglip2'", "Give a SigLIP 2 of fixed", a_model(edit(model_type="siglip2"))
    ),
    Case(
        "several labels an image", load(), "multi", "single", a_model(edit(problem_type="multi_label_classification"))
    ),
    Case("a folder of a plain module", load(), "plain module", "ModuleClassifier.from_pretrained", saved_module),
    Case("a processor of patches", with_processor(hf.Siglip2ImageProcessorPil()), "(1, ", "processing_class"),
    Case("a processor that swaps afterwards", with_processor(SWAPPING), "grey levels", "processing_class"),
    Case(
        "a processor of colour clusters",
        with_processor(hf.ImageGPTImageProcessorPil(clusters=[[0, 0, 0], [1, 1, 1]])),
        "ImageGPTImageProcessorPil",
        "processing_class",
    ),
    Case("no layers", run(model=WithoutLayers(tiny_model().config).eval()), "no linear layer", "nn.Conv2d"),
    Case("no module", lambda folder: adapted("alexnet"), "str", "build the network"),
    Case(
        "a module with other outputs",
        lambda _: adapted(network(4))(pixel_values=torch.zeros(1, 3, 8, 8)),
        "returns (1, 4)",
        "give id2label a name for each",
    ),
    Case(
        "another module than was saved",
        lambda folder: ModuleClassifier.from_pretrained(folder, module=network(4)),
        "mismatched keys ['module.1.bias', 'module.1.weight']",
        "Build it as it was",
        saved_module,
    ),
]
