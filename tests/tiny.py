"""A tiny classifier with its processor, generated images with labels, and a trainer over them."""

import gc
from dataclasses import replace

import numpy as np
import torch
import transformers as hf
from cases import from_config, randomised
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from zspag_hf import PixelClassifier, UnlearningConfig, UnlearningTrainer
from zspag_hf.methods import Method, Proxies, find_method
from zspag_hf.pipeline.classifier import to_pixels

gc.freeze()  # Trainer collects garbage after every training, and need not look through all that is imported

NAMES = ["ant", "bee", "cat", "dog", "elk"]
FAMILIES = {
    "vit": lambda: from_config(
        "ViT",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        hidden_dropout_prob=0.5,
    ),
    "resnet": lambda: from_config("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
}


def tiny_model(family="vit", names=NAMES):
    model = randomised(FAMILIES[family]()()).float().eval()
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def tiny_processor():
    return hf.ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def images(labels, names=NAMES, seed=0, size=8):
    """A data set of random images; the label is the position in ``names``."""
    rng = np.random.default_rng(seed)
    pictures = [PILImage.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": pictures, "label": list(labels)}, features=features)


def patterns(labels, seed):
    """Images of five patterns under noise, which can be learned."""
    shapes = np.random.default_rng(9).integers(0, 256, (5, 8, 8, 3))
    noise = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3))
    mixed = ((shapes[list(labels)] + noise) // 2).astype(np.uint8)
    pictures = [PILImage.fromarray(picture) for picture in mixed]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": pictures, "label": list(labels)}, features=features)


def learned_model(family="vit", steps=8):
    """One that has learned the patterns, not to the last."""
    labels, classifier = [0, 1, 2, 3, 4] * 40, PixelClassifier(tiny_model(family), tiny_processor())
    pixels = to_pixels(patterns(labels, 0)["image"], classifier.processor).float() / 255
    optimizer = torch.optim.Adam(classifier.model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(pixels), torch.tensor(labels)).backward()
        optimizer.step()
    classifier.model.zero_grad()
    return classifier.model


def config(tmp_path, **options):
    """Options of a run."""
    defaults = {"output_dir": str(tmp_path / "out"), "forget_classes": ["cat"], "disable_tqdm": True, "use_cpu": True}
    return UnlearningConfig(**{**defaults, **options})


def made(method="zspag", **options):
    """A method, by name or an instance, with options of its own; by name it makes few proxies, and far ones."""
    if isinstance(method, Method):
        return replace(method, **options)
    plain = find_method(method)(**options)
    if not (isinstance(plain, Proxies) and getattr(plain, "makes_proxies", True)):
        return plain
    few = {"attack_eps": 0.5} | ({"proxies_per_class": 4} if plain.proxy_policy == "quota" else {})
    return replace(plain, **(few | options))


def asked(folder, method="zspag", **options):
    """Config and method: options of a run go to the one, all others to the other."""
    of_run = {name: options.pop(name) for name in list(options) if name in UnlearningConfig.__dataclass_fields__}
    return config(folder, **of_run), made(method, **options)


def trainer(
    tmp_path,
    family="vit",
    forget=None,
    method="zspag",
    model=None,
    optimizers=(None, None),
    retain=None,
    test=None,
    callbacks=None,
    public=None,
    **options,
):
    """Options of a run go to the config, all others to the method."""
    args, method = asked(tmp_path, method, **options)
    return UnlearningTrainer(
        tiny_model(family) if model is None else model,
        args,
        images([2] * 12) if forget is None else forget,
        test,
        method=method,
        retain_dataset=retain,
        public_dataset=public,
        processing_class=tiny_processor(),
        optimizers=optimizers,
        callbacks=callbacks,
    )
