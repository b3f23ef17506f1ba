"""Drawn faces of people who never lived as a data set: a deletion request can be tried without anyone's pictures."""

from __future__ import annotations

import random

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageDraw

PEOPLE = ["Ada", "Alan", "Barbara", "Donald", "Edsger", "Frances", "Grace", "John"]
SKIN = [(241, 205, 177), (224, 172, 138), (198, 134, 95), (141, 85, 54), (92, 58, 38)]
HAIR = [(30, 24, 20), (86, 54, 30), (160, 110, 60), (212, 178, 110), (150, 150, 150), (140, 50, 30)]
SIZE, DRAWN = 32, 128  # pixels of an image, and of the drawing that it is scaled down from


def person(name: str) -> dict:
    """What stays the same from picture to picture."""
    rng = random.Random(name)
    return {
        "skin": rng.choice(SKIN),
        "hair": rng.choice(HAIR),
        "width": rng.uniform(0.5, 0.7),
        "height": rng.uniform(0.7, 0.85),
        "eyes": rng.uniform(0.11, 0.17),
        "eye_size": rng.uniform(0.03, 0.055),
        "fringe": rng.uniform(0.1, 0.4),
        "mouth": rng.uniform(0.08, 0.16),
        "glasses": rng.random() < 0.4,
        "beard": rng.random() < 0.4,
    }


def draw(face: dict, rng: random.Random) -> PILImage.Image:
    """One picture: another place, size, turn of the head, mood, light and grain."""
    light, size = rng.uniform(0.7, 1.15), DRAWN * rng.uniform(0.85, 1.0)
    cx, cy = (DRAWN / 2 + rng.uniform(-6, 6) for _ in range(2))
    turn, mood = rng.uniform(-0.04, 0.04), rng.uniform(-0.05, 0.08)

    def lit(colour):
        return tuple(min(255, int(c * light)) for c in colour)

    def at(x, y):
        return cx + x * size, cy + y * size

    def box(x, y, rx, ry):
        return [*at(x - rx, y - ry), *at(x + rx, y + ry)]

    image = PILImage.new("RGB", (DRAWN, DRAWN), lit([rng.randint(60, 200)] * 3))
    pen = ImageDraw.Draw(image)
    rx, ry = face["width"] / 2, face["height"] / 2
    pen.ellipse(box(0, -0.04, rx + 0.04, ry + 0.03), fill=lit(face["hair"]))
    pen.ellipse(box(0, 0.03, rx, ry - 0.02), fill=lit(face["skin"]))
    pen.chord(box(0, 0.03, rx, ry - 0.02), 200 - 60 * face["fringe"], 340 + 60 * face["fringe"], fill=lit(face["hair"]))
    if face["beard"]:
        pen.chord(box(0, 0.03, rx, ry - 0.02), 35, 145, fill=lit(face["hair"]))
    for side in (-1, 1):
        eye = (turn + side * face["eyes"], 0.0)
        pen.ellipse(box(*eye, face["eye_size"] * 1.5, face["eye_size"]), fill=lit((250, 250, 250)))
        pen.ellipse(box(*eye, face["eye_size"] * 0.7, face["eye_size"] * 0.7), fill=(20, 20, 20))
        if face["glasses"]:
            pen.ellipse(box(*eye, 0.09, 0.08), outline=(15, 15, 15), width=4)
    pen.line([at(turn, 0.02), at(turn * 1.5, 0.13)], fill=lit([c // 2 for c in face["skin"]]), width=4)
    mouth = [at(turn - face["mouth"], 0.22), at(turn, 0.22 + mood), at(turn + face["mouth"], 0.22)]
    pen.line(mouth, fill=lit((150, 40, 50)), width=6, joint="curve")
    small = image.resize((SIZE, SIZE), PILImage.Resampling.BOX)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 8), (SIZE, SIZE, 1))
    return PILImage.fromarray((np.asarray(small) + grain).clip(0, 255).astype(np.uint8))


def faces_dataset(per_person: int = 60, seed: int = 0) -> Dataset:
    """``per_person`` pictures of each of eight people: columns image, label (whose face it is) and taken (a year)."""
    rng = random.Random(seed)
    rows = [(draw(person(name), rng), name, rng.randint(2015, 2026)) for name in PEOPLE for _ in range(per_person)]
    rng.shuffle(rows)
    features = Features({"image": Image(), "label": ClassLabel(names=PEOPLE), "taken": Value("int32")})
    return Dataset.from_dict(dict(zip(features, map(list, zip(*rows, strict=True)), strict=True)), features=features)
