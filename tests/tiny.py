"""A tiny classifier with its processor, generated images with labels, and a trainer over them."""

import numpy as np
import transformers as hf
from cases import from_config, randomised
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from zspag_hf import UnlearningConfig, UnlearningTrainer

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


def config(tmp_path, **options):
    defaults = {"output_dir": str(tmp_path / "out"), "forget_classes": ["cat"], "disable_tqdm": True, "use_cpu": True}
    return UnlearningConfig(**defaults, proxies_per_class=4, attack_eps=0.5).but(**options)


def trainer(
    tmp_path,
    family="vit",
    forget=None,
    model=None,
    optimizers=(None, None),
    retain=None,
    test=None,
    callbacks=None,
    **options,
):
    return UnlearningTrainer(
        tiny_model(family) if model is None else model,
        config(tmp_path, **options),
        images([2] * 12) if forget is None else forget,
        test,
        retain_dataset=retain,
        processing_class=tiny_processor(),
        optimizers=optimizers,
        callbacks=callbacks,
    )
