"""A tiny model as on the Hub, and a short run that makes it forget the class that it sees in random images."""

import torch
from cases import ModelCase
from tiny import NAMES, asked, images
from tiny_configs import image_processor

from zspag_hf import PixelClassifier, UnlearningTrainer
from zspag_hf.pipeline.classifier import mode, to_pixels

FIXED = {
    "method": "zspag_paper",
    "targets": "renormalised",
    "tilt": "influence",
    "subspace_merge": "gram",
    "energy_threshold": 0.9,
    "proxy_policy": "quota",
    "optim": "adamw_torch",
    "learning_rate": 0.001,
    "max_steps": 6,
    "per_device_train_batch_size": 6,
}


def saved(case: ModelCase, folder) -> str:
    """The folder, with model and image processor of the case in it."""
    model = case.build(torch.float32)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    model.save_pretrained(folder)
    image_processor(model.config.model_type, case.image_size, case.channels).save_pretrained(folder)
    return str(folder)


def seen_class(model, processor, size: int, count: int) -> int:
    """The class that a random model gives random images, most of them."""
    pictures = [picture.convert(mode(processor)) for picture in images([0] * count, size=size)["image"]]
    return int(PixelClassifier(model, processor).predict(to_pixels(pictures, processor)).mean(0).argmax())


def module_trainer(model, processor, folder, size: int, count: int = 6, **options) -> UnlearningTrainer:
    """Over ``count`` random images of ``size`` pixels."""
    label = seen_class(model, processor, size, count)
    args, method = asked(folder, **{"forget_classes": [NAMES[label]], **options})
    pictures = images([label] * count, size=size)
    return UnlearningTrainer(model, args, pictures, method=method, processing_class=processor)


def case_trainer(case: ModelCase, folder, count: int = 6, **options) -> UnlearningTrainer:
    """From a folder, by the Auto classes, over images of another size than the model's."""
    model, size = case.build(torch.float32), case.image_size + 9
    label = seen_class(model, image_processor(model.config.model_type, case.image_size, case.channels), size, count)
    args, method = asked(folder, **{"forget_classes": [NAMES[label]], **options})
    return UnlearningTrainer(saved(case, folder / "original"), args, images([label] * count, size=size), method=method)


def leak(trainer: UnlearningTrainer) -> float:
    """Largest ||(W - W0) U|| / ||W - W0|| over layers, beyond what float32 rounds off W."""
    inside, moved, rounding = {}, {}, {}
    for layer, group, u, _, q in trainer.run.plan.constraint.parts:
        start = layer.matrix(trainer.original[f"{layer.name}.weight"])[group].double()
        change = layer.matrix(layer.weight.detach())[group].double() - start
        part = change @ u.double() if q is None else change - change @ q.double() @ q.double().T
        for total, value in ((inside, part), (moved, change), (rounding, start)):
            total[layer.name] = total.get(layer.name, 0.0) + float(value.square().sum())
    assert moved and any(moved.values())
    return max((inside[n] ** 0.5 - 2e-7 * rounding[n] ** 0.5) / moved[n] ** 0.5 for n in moved if moved[n])
