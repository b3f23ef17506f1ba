"""What the benchmarks measure on: classifiers from configurations with random weights, and the case of the options."""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from digits import digits_dataset, digits_model, train_classifier
from measure import DEVICE, ON_GPU, RESULTS
from PIL import Image as PILImage
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    MobileNetV2Config,
    PreTrainedModel,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessorPil,
    set_seed,
)
from transformers.modeling_outputs import ImageClassifierOutput

from zspag_hf import PixelClassifier, UnlearningConfig, UnlearningTrainer
from zspag_hf.cli.info import random_pixels
from zspag_hf.cli.jobs import DataArguments, Job, load_job
from zspag_hf.data.labels import rows_of_classes
from zspag_hf.hub.adapter import ModuleClassifier, ModuleConfig
from zspag_hf.hub.models import load_classifier
from zspag_hf.methods import ZSPAG, Run
from zspag_hf.pipeline.classifier import to_pixels, to_unit
from zspag_hf.pipeline.layers import Layer, constrained_layers, head_name

DIGIT = "3"
FOLDER = Path("outputs/benchmarks/digits")  # the classifier of digits, trained once
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}

# --------------------------------------------------------------------------------------------- random classifiers


def random_model(config, labels: int) -> PreTrainedModel:
    """A classifier of that configuration with classes "0", "1", ...; the same weights every time."""
    names = [str(i) for i in range(labels)]
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(config).eval()


def processor(side: int) -> ViTImageProcessorPil:
    """Of images of ``side`` pixels."""
    return ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def vit(side: int, patch: int, settings: dict) -> ViTConfig:
    """A ViT whose random weights tell images from one another."""
    return ViTConfig(image_size=side, patch_size=patch, initializer_range=0.1, **settings)


def resnet_18(widths: list[int], depth: int = 2) -> ResNetConfig:
    """Basic blocks, so many in each of four groups."""
    return ResNetConfig(layer_type="basic", depths=[depth] * 4, hidden_sizes=widths, embedding_size=widths[0])


# name -> configuration, side of its images, classes; of real size, and as small as it gets
ARCHITECTURES = {
    "real": {
        "ViT-B/16": lambda: (ViTConfig(), 224, 1000),
        "ResNet-50": lambda: (ResNetConfig(), 224, 1000),
        "MobileNetV2": lambda: (MobileNetV2Config(), 224, 1000),
        "ViT of 32 pixels": lambda: (vit(32, 8, SMALL), 32, 10),
    },
    "small": {
        "ViT-B/16": lambda: (vit(16, 8, TINY), 16, 10),
        "ResNet-50": lambda: (ResNetConfig(depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8), 16, 10),
        "MobileNetV2": lambda: (MobileNetV2Config(image_size=32, depth_multiplier=0.1), 32, 10),
        "ViT of 32 pixels": lambda: (vit(8, 4, TINY), 8, 10),
    },
}


def architecture(name: str, size: str) -> tuple[PreTrainedModel, ViTImageProcessorPil]:
    """One of ARCHITECTURES, with random weights."""
    config, side, labels = ARCHITECTURES[size][name]()
    return random_model(config, labels), processor(side)


def with_layers(model: PreTrainedModel, processor) -> tuple[PixelClassifier, dict[str, Layer]]:
    """The model from pixels to logits on ``DEVICE``, and its layers that can be constrained."""
    classifier = PixelClassifier(model.to(DEVICE).eval(), processor).to(DEVICE)
    pixels = random_pixels(classifier, processor, 2)
    return classifier, constrained_layers(model, lambda: classifier(to_unit(pixels, classifier.device)))


# ------------------------------------------------------------------------- small networks of the paper's kinds


class VGG(nn.Module):
    """VGG-11 with batch norm (arXiv 1409.1556), an eighth as wide, for 32 pixels and more: ``(N, C)`` logits."""

    def __init__(self, classes: int):
        super().__init__()
        layers, channels = [], 3
        for width in (8, "pool", 16, "pool", 32, 32, "pool", 64, 64, "pool", 64, 64, "pool"):
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = hidden_layers(channels, 128, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.pool(self.features(pixel_values)).flatten(1))


class AlexNet(nn.Module):
    """AlexNet's five convolutions and three linear layers, a quarter as wide, with kernels of 3 for 32 pixels and more:
    ``(N, C)`` logits."""

    def __init__(self, classes: int):
        super().__init__()
        layers, channels = [], 3
        for width, stride, pooled in ((16, 2, True), (48, 1, True), (96, 1, False), (64, 1, False), (64, 1, True)):
            layers += [nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2)] if pooled else []
            channels = width
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
        self.classifier = hidden_layers(4 * channels, 256, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.pool(self.features(pixel_values)).flatten(1))


def hidden_layers(inputs: int, width: int, classes: int) -> nn.Sequential:
    """Two hidden layers with dropout and the head, as both networks end."""
    first = [nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Dropout()]
    second = [nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*first, *second, nn.Linear(width, classes))


def small_resnet(names: list[str], seed: int, side: int) -> tuple[PreTrainedModel, ViTImageProcessorPil]:
    """An untrained ResNet-18 a quarter as wide."""
    set_seed(seed)
    config = resnet_18([16, 32, 64, 128])
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    return AutoModelForImageClassification.from_config(config), halves_processor(side)


class TrainedModule(ModuleClassifier):
    """A plain module that gives its own loss, as ``Trainer`` wants it; saved and read as any ModuleClassifier."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_) -> ImageClassifierOutput:
        """Logits, and the loss where there are labels."""
        output = super().forward(pixel_values)
        output.loss = None if labels is None else F.cross_entropy(output.logits, labels)
        return output


def small_module(kind: type[nn.Module]):
    """names, seed, side -> an untrained plain module as a classifier, and its processor."""

    def build(names: list[str], seed: int, side: int) -> tuple[PreTrainedModel, ViTImageProcessorPil]:
        set_seed(seed)
        config = ModuleConfig(
            id2label=dict(enumerate(names)), image_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        return TrainedModule(config, kind(len(names))), halves_processor(side)

    return build


def halves_processor(side: int) -> ViTImageProcessorPil:
    """Pixels to [-1, 1], as :func:`digits.train_classifier` feeds them."""
    return ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


# kind -> (names, seed, side of the images) -> an untrained classifier and its processor
NETWORKS = {
    "vit": lambda names, seed, side: digits_model(names, seed, side, side // 4),
    "resnet": small_resnet,
    "vgg": small_module(VGG),
    "alexnet": small_module(AlexNet),
}

# --------------------------------------------------------------------------------------------------------- images


def random_images(count: int, side: int) -> list[PILImage.Image]:
    """A colour of its own for each image, and noise."""
    rng = np.random.default_rng(0)
    colours, noise = rng.integers(0, 256, (count, 1, 1, 3)), rng.integers(0, 256, (count, side, side, 3))
    return [PILImage.fromarray(pixels) for pixels in ((colours + noise) // 2).astype(np.uint8)]


def labelled(images: list[PILImage.Image], label: int, classes: int) -> Dataset:
    """The images as a data set, all of one class of "0", "1", ..."""
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(classes)])})
    return Dataset.from_dict({"image": images, "label": [label] * len(images)}, features=features)


def answers(model: PreTrainedModel, processor, images: list[PILImage.Image]) -> Tensor:
    """Classes by the mean of their logits on the images, the largest first."""
    classifier = PixelClassifier(model, processor)
    pixels = to_pixels([image.convert("RGB") for image in images], processor)
    return classifier.predict(pixels).mean(0).argsort().flip(0)


def with_random_head(model: PreTrainedModel, processor, classes: int) -> PreTrainedModel:
    """A copy with a random head of so many classes, whose logits spread as a trained one's."""
    model = copy.deepcopy(model)
    classifier = PixelClassifier(model, processor)
    pixels = to_pixels(random_images(2, 32), processor).float() / 255
    name = head_name(constrained_layers(model, lambda: classifier(pixels)), classifier.num_labels)
    old = model.get_submodule(name)
    head = nn.Linear(old.in_features, classes)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(head.weight, std=3 / math.sqrt(old.in_features), generator=generator)
    nn.init.zeros_(head.bias)
    model.set_submodule(name, head)
    names = [str(i) for i in range(classes)]
    model.num_labels = classes
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    return model


# ---------------------------------------------------------------------------------------------------------- cases


@dataclass
class Case:
    """A classifier with the images that it is to forget, and how.

    Attributes:
        retained: how many other training images there are.
    """

    job: Job
    config: UnlearningConfig
    method: ZSPAG
    retained: int

    def trainer(self, folder: str, kind: type[Run] = Run, **options) -> UnlearningTrainer:
        """A trainer on the model, which it changes; see :meth:`again`.

        Args:
            kind: of the runs that it makes. options: of the run, in place of the case's.
        """
        trainer = UnlearningTrainer(
            self.job.model,
            replace(self.config, output_dir=folder, **options),
            self.job.forget,
            method=self.method,
            processing_class=self.job.processor,
            label_mapping=self.job.mapping,
        )
        give_run(trainer, kind)
        return trainer

    def again(self) -> Case:
        """The same with a copy of the model."""
        return replace(self, job=replace(self.job, model=copy.deepcopy(self.job.model)))


def give_run(trainer: UnlearningTrainer, kind: type[Run], **more) -> None:
    """Let a trainer's runs be of a subclass of :class:`zspag_hf.methods.Run`, which sees their stages and times.

    Args:
        more: fields of the subclass.
    """
    held = {one.name: getattr(trainer.run, one.name) for one in fields(Run) if one.init}
    trainer.run = kind(**held, **more)


def described(case: Case) -> str:
    """The model in words."""
    model = case.job.model
    size = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__}, {size:,} parameters, {model.config.num_labels:,} classes"


def random_case(
    model: PreTrainedModel,
    processor,
    images: list[PILImage.Image],
    place: int = 0,
    method: ZSPAG | None = None,
    **options,
) -> Case:
    """Images all of one class, the one that the model gives them most; ``place`` 1: second most, and so on.

    Args:
        method: the default one where it is left out. options: of the run.
    """
    label = int(answers(model, processor, images)[place])
    forget = labelled(images, label, model.config.num_labels)
    config = quiet_config(forget_classes=[str(label)], **options)
    return Case(Job(model, processor, forget, forget), config, method or ZSPAG(), 64)


def quiet_config(**options) -> UnlearningConfig:
    """Options of a run that prints and logs nothing."""
    return UnlearningConfig(disable_tqdm=True, report_to="none", logging_strategy="no", use_cpu=not ON_GPU, **options)


def benchmark_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    help_text = "small: only to see that it runs; give another --output with it"
    parser.add_argument("--size", choices=["small", "real"], default="real", help=help_text)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds, after one that warms up")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file that the results are put into")
    return parser


def case_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """With the options that name the case: digits unless a model is given."""
    parser = benchmark_parser(description, repeats)
    parser.add_argument("--model_name_or_path", help="Hub id or folder; unset: a small ViT that reads digits")
    parser.add_argument("--dataset_name", help="Hub id or folder of the images that the model was trained on")
    parser.add_argument("--forget_classes", nargs="+", default=[DIGIT])
    parser.add_argument("--max_forget_samples", type=int, default=1000)
    return parser


def load_case(arguments: argparse.Namespace) -> Case:
    """What the options of :func:`case_parser` name."""
    if arguments.size == "small":
        model = random_model(vit(8, 4, TINY), 6)
        images = random_images(24, 8)
        return random_case(model, processor(8), images, method=ZSPAG(proxies_per_class=4, attack_eps=0.5), max_steps=10)
    config = quiet_config(forget_classes=arguments.forget_classes, dataset_name=arguments.dataset_name)
    if arguments.model_name_or_path is None:
        return digits_case(config)
    data = DataArguments(
        arguments.model_name_or_path, max_forget_samples=arguments.max_forget_samples, retain_in_evaluation=True
    )
    job = load_job(data, config, ZSPAG())
    return Case(job, config, ZSPAG(), len(job.retain))


def digits_case(config: UnlearningConfig) -> Case:
    """A small ViT that reads digits, trained where it is not in ``FOLDER`` yet."""
    train, test = digits_dataset()
    names = train.features["label"].names
    if not FOLDER.exists():
        model, processor = digits_model(names, 0)
        train_classifier(model, processor, train, [], replace(config, output_dir=str(FOLDER.parent)))
        model.save_pretrained(FOLDER)
        processor.save_pretrained(FOLDER)
    model, processor = load_classifier(str(FOLDER))
    rows = rows_of_classes(train, "label", range(len(names)), [names.index(c) for c in config.forget_classes])
    return Case(Job(model, processor, train.select(rows), test), config, ZSPAG(), len(train) - len(rows))


def fine_tune(classifier: PixelClassifier, pixels: Tensor, labels: Tensor, epochs: int, batch: int) -> None:
    """Plain SGD on all parameters."""
    model = classifier.model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(batch):
            logits = classifier(to_unit(pixels[rows], classifier.device))
            F.cross_entropy(logits, labels[rows].to(logits.device)).backward()
            optimizer.step()
            optimizer.zero_grad()


@contextmanager
def silence() -> Iterator[str]:
    """Nothing is printed inside; gives a folder that is deleted afterwards."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        yield folder
