"""scikit-learn's digits as a data set, and a small ViT trained on them: real images that ship with a dependency."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

from zspag_hf.data.images import EvalDataset


def digits_dataset() -> tuple[Dataset, Dataset]:
    """1,347 training and 450 test images of 8x8 pixels, labels "0" to "9"; the split is fixed."""
    digits = load_digits()
    pixels = (digits.images / 16 * 255).round().astype(np.uint8)
    images = [PILImage.fromarray(image).convert("RGB") for image in pixels]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    parts = train_test_split(range(len(images)), test_size=450, random_state=0, stratify=digits.target)
    return tuple(
        Dataset.from_dict(
            {"image": [images[i] for i in rows], "label": digits.target[rows].tolist()}, features=features
        )
        for rows in parts
    )


def digits_model(
    names: list[str], seed: int, size: int = 8, patch: int = 2
) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """An untrained ViT of two layers for images of ``size`` x ``size`` pixels, and its processor."""
    set_seed(seed)
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    processor = ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return ViTForImageClassification(config), processor


def halves(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] as the digits' processor normalises them."""
    return pixels * 2 - 1


def plain(batch: list[dict], normalize=halves) -> dict[str, torch.Tensor]:
    """Collate the images as they are, which a network can learn by heart."""
    return inputs(batch, normalize(torch.stack([item["pixels"] for item in batch]).float() / 255))


def jitter(batch: list[dict], normalize=halves) -> dict[str, torch.Tensor]:
    """Collate, with small random rotations, scalings and shifts."""
    pixels = torch.stack([item["pixels"] for item in batch]).float() / 255
    n = len(pixels)
    angle, scale = (torch.rand(n) - 0.5) * 0.4, 1 + (torch.rand(n) - 0.5) * 0.2
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos(), -angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), scale * angle.cos()
    theta[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.25
    grid = F.affine_grid(theta, pixels.shape, align_corners=False)
    return inputs(batch, normalize(F.grid_sample(pixels, grid, align_corners=False)))


def inputs(batch: list[dict], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels, "labels": torch.stack([item["labels"] for item in batch])}


def train_classifier(
    model,
    processor,
    dataset: Dataset,
    without: list[int],
    config,
    epochs: int = 50,
    augment: bool = True,
    normalize=halves,
) -> ViTForImageClassification:
    """Train on every class but ``without``; on digits in about 14 s on two cores. Unless ``augment`` is False, images
    are moved a little each time. ``normalize`` does what the processor does to pixels in [0, 1]."""
    labels = torch.tensor(dataset["label"][:])
    rows = (~torch.isin(labels, torch.tensor(without, dtype=torch.long))).nonzero().squeeze(1).tolist()
    items = EvalDataset(dataset.select(rows), processor, labels[rows])
    items = items.__getitems__(range(len(rows)))
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=epochs,
        learning_rate=1.5e-3,
        weight_decay=0.05,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=64,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=config.disable_tqdm,
        use_cpu=config.use_cpu,
        seed=config.seed,
    )
    Trainer(
        model, arguments, train_dataset=items, data_collator=partial(jitter if augment else plain, normalize=normalize)
    ).train()
    return model.eval()
