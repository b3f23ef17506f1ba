"""Bad data: kinds of data set, images, labels, and the rows that a request means."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import PIL.Image
from cases import processor
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from errors_case import Case, a_file, constant, evaluated, pictures, read, run, some_data, writing
from test_hub_card import NEST
from tiny import NAMES, config, images, tiny_model, tiny_processor, trainer
from transformers import ViTConfig

from zspag_hf import UnlearningTrainer
from zspag_hf.data.labels import model_labels, reconcile_labels
from zspag_hf.data.request import select_rows
from zspag_hf.metrics.backdoor import Trigger, poison

GOOD = images([0])[0]["image"]
LARGE = images([0], size=9)[0]["image"]
DEEP = PIL.Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16))
PLAIN = images([2] * 12).cast_column("label", Value("int64"))
OTHER = images([2] * 12, names=[*"abcde"])
MAPPING = dict(zip("abcde", NAMES, strict=True))
PEOPLE = Dataset.from_dict({"label": [0, 1, 2], "person": ["ann", "bob", "cy"]})


def forget(dataset, **options):
    return run(forget=dataset, **options)


def public(dataset, **options):
    """A feed: a trainer that is given unlabelled images."""
    return run(method="zspag", public=dataset, **options)


def mapped(mapping, dataset=OTHER, **options):
    """A feed: the trainer with a label mapping."""
    return lambda folder: UnlearningTrainer(
        tiny_model(), config(folder, **options), dataset, processing_class=tiny_processor(), label_mapping=mapping
    )


def unresized(dataset, test=None):
    """A feed: the trainer with a processor that leaves images at their size."""

    def feed(folder: Path):
        made = UnlearningTrainer(tiny_model(), config(folder), dataset, test, processing_class=processor())
        return made.evaluate()

    return feed


def too_large(folder: Path):
    with mock.patch.object(PIL.Image, "MAX_IMAGE_PIXELS", 8):
        return trainer(folder)


def rows(dataset=PEOPLE, **options):
    return lambda _: select_rows(dataset, **({"class_ids": [1], "mapping": range(5)} | options))


def script(folder: Path) -> None:
    (folder / f"{folder.name}.py").write_text("1/0")


def two_configurations(folder: Path) -> None:
    entries = [f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("train", "test")]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")


def in_two_splits(folder: Path) -> None:
    (folder / "train.parquet").rename(folder / "train-test.parquet")


def two_colons(folder: Path) -> None:
    (folder / "train.parquet").unlink()
    for name in ("a::b", "c"):
        (folder / "train" / name).mkdir(parents=True)
        GOOD.save(folder / "train" / name / "1.png")
    (folder / "test.parquet").unlink()


def splits_in_classes(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / f"{split}.parquet").unlink()
        for name in ("cat", "dog"):
            (folder / name / split).mkdir(parents=True)
            GOOD.save(folder / name / split / "1.png")


def bare(path: str):
    """A change: a row of the training split names a file in place of bytes."""

    def change(folder: Path) -> None:
        rows = [{"image": {"bytes": None, "path": path}, "label": 2}]
        (folder / "train.parquet").unlink()
        (folder / "train.json").write_text(json.dumps(rows[0]))
        (folder / "test.parquet").unlink()

    return change


def a_folder(folder: Path) -> None:
    (folder / "README.md").mkdir()


def reading(pattern: str):
    return writing("README.md", f"---\nconfigs:\n- config_name: a\n  data_files: {pattern!r}\n---\n")


def damaged(folder: Path) -> None:
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:100])


KINDS = [
    Case("no forget set", lambda folder: mapped(None, None)(folder), "NoneType", "pass one split"),
    Case("a list", forget([GOOD]), "not list", "pass one split"),
    Case("all splits", forget(DatasetDict(train=images([2]))), "DatasetDict", "pass one split"),
    Case("a stream", forget(images([2]).to_iterable_dataset()), "IterableDataset", "without streaming"),
    Case("a format", forget(images([2] * 12).with_format("torch")), "'torch'", "with_format(None)"),
    Case("a transform", forget(images([2] * 12).with_transform(dict)), "'custom'", "with_format(None)"),
    Case("an empty forget set", forget(images([])), "empty", "forget_dataset"),
    Case("eval data of another kind", run(test=[images([0])]), "eval_dataset must", "pass one split"),
    Case("one of several eval data", run(test={"a": images([0]), "b": 5}), "eval_dataset b must", "pass one split"),
    Case("an empty test set", run(test=images([])), "empty", "give labelled images"),
    Case("a stream to evaluate", evaluated(forget_dataset=images([2]).to_iterable_dataset()), "Iterable", "streaming"),
    Case(
        "nothing but forget images to test on",
        evaluated(test_dataset=images([0, 0])),
        "2 that are images to forget",
        "give test images",
        works=True,
    ),
    Case("no test set", evaluated(test_dataset=None), "test_dataset must", "pass one split"),
    Case("retain data of another kind", evaluated(retain="somewhere"), "not str", "pass one split"),
]

IMAGES = [
    Case(
        "no image column",
        forget(images([2]).rename_column("image", "photo")),
        "['photo', 'label']",
        "image_column_name",
    ),
    Case("no image", forget(pictures(*[GOOD] * 11, None)), "image 11", "remove or replace"),
    Case("corrupt bytes", forget(pictures(GOOD, {"bytes": b"\x89PNG", "path": None})), "image 1 ", "remove or replace"),
    Case("a file that is gone", forget(pictures({"bytes": None, "path": "gone.png"})), "No such file", "replace"),
    Case("16 bits a channel", forget(pictures(DEEP)), "'I;16'", "to be scaled to 'L' or 'RGB'"),
    Case("a decompression bomb", too_large, "decompression bomb", "remove or replace"),
    Case("paths in place of images", forget(Dataset.from_dict({"image": ["a"], "label": [2]})), "as str", "replace"),
    Case(
        "retained images of another size",
        lambda folder: UnlearningTrainer(
            tiny_model(),
            config(folder),
            images([2] * 12),
            method="finetune",
            retain_dataset=images([0, 1], size=9),
            processing_class=processor(),
        ),
        "9 x 9",
        "do_resize=True",
    ),
    Case("public images of another kind", public([GOOD]), "not list", "pass one split"),
    Case("no public image", public(images([])), "public_dataset is empty", "leave it out"),
    Case("public images without their column", public(PEOPLE), "['label', 'person']", "image_column_name"),
    Case(
        "public images of another size",
        lambda folder: UnlearningTrainer(
            tiny_model(),
            config(folder),
            images([2] * 12),
            method="zspag",
            public_dataset=images([0, 1], size=9),
            processing_class=processor(),
        ),
        "9 x 9",
        "do_resize=True",
    ),
    Case("forget images among the public", public(images([2] * 12)), "12 of the images to forget", "leave them out"),
    Case(
        "public images of forgotten classes alone",
        public(images([0] * 3, seed=4), model=constant()),
        "all 3 images of public_dataset",
        "give images of other classes",
    ),
    Case(
        "an image that is an address",
        forget(pictures(GOOD, {"bytes": None, "path": "https://a/b.png"})),
        "image 1 ",
        "remove or replace",
    ),
    Case("sizes that differ", unresized(pictures(GOOD, LARGE)), "9 x 9", "do_resize=True"),
    Case(
        "test images that differ in size", unresized(images([2] * 12), pictures(GOOD, LARGE)), "9 x 9", "do_resize=True"
    ),
    Case("too small for a trigger", lambda _: Trigger(size=9, margin=0)(GOOD), "8 x 8", "smaller Trigger"),
    Case("a trigger on nothing", lambda _: poison(images([0]), 1, 2), "0 images of class 1", "images of the first"),
]

LABELS = [
    Case("no label column", forget(images([2]).remove_columns("label")), "['image']", "label_column_name"),
    Case("labels as text", forget(PLAIN.cast_column("label", Value("string"))), "string", "class_encode_column"),
    Case("labels as floats", forget(PLAIN.cast_column("label", Value("float32"))), "float32", "class_encode_column"),
    Case(
        "several labels an image",
        forget(
            Dataset.from_dict(
                {"image": [GOOD], "label": [[2]]}, Features({"image": Image(), "label": List(Value("int64"))})
            )
        ),
        "List",
        "label_column_name",
    ),
    Case("no column of trained labels", forget(PLAIN, trained_label_column="under"), "'under'", "trained_label_column"),
    Case(
        "trained labels of another model",
        forget(PLAIN.add_column("under", [7] * 12), trained_label_column="under"),
        "label id 7",
        "remove its images",
    ),
    Case(
        "trained labels where images are forgotten",
        run(method="amun", forget=PLAIN, forget_classes=None, trained_label_column="label"),
        "'label' would change nothing",
        "give forget_classes",
    ),
    Case("an image without a label", forget(pictures(GOOD, GOOD, labels=[2, None])), "image 1 ", "label it"),
    Case("an id below 0", forget(pictures(GOOD, GOOD, labels=[2, -1])), "label id -1", "label_offset"),
    Case("an id that is moved too far", forget(PLAIN, label_offset=9), "becomes 11", "label_offset"),
    Case(
        "a class with two readings",
        forget(images([2] * 12, names=["bee", "ant", *"cde"]), label_offset=0, forget_classes=["ant"]),
        "'bee' by the data's",
        "give the model's own label",
    ),
    Case(
        "labels that are numbers out of order",
        lambda _: reconcile_labels(sorted(map(str, range(11))), [f"LABEL_{i}" for i in range(11)]),
        "'10'",
        "label_offset=0",
    ),
    Case("a retained class", forget(images([2, 3])), "first image 1 of class 3", "keep only images of the classes [2]"),
    Case("a label of another model", forget(images([0], names=["lynx"])), "'lynx'", "label_offset"),
    Case(
        "a label of two of the model's classes",
        lambda _: reconcile_labels(["CAT"], ["cat", "Cat", "dog"]),
        "'CAT' names several",
        "a label mapping",
    ),
    Case(
        "a model without label names",
        lambda _: model_labels(ViTConfig(id2label={})),
        "id2label is empty",
        "a name for each",
    ),
    Case("a label that stands twice", forget(images([0], names=["Cat", "cat "])), "stands twice", "label mapping"),
    Case("an offset too far", forget(OTHER, label_offset=7), "label_offset 7", "leave label_offset unset"),
    Case("an offset that is text", forget(OTHER, label_offset="1"), "label_offset='1'", "for example 1"),
    Case("offset and mapping", mapped(MAPPING, label_offset=1), "label_offset 1", "give one"),
    Case("a mapping that is no dict", mapped("names.json"), "type str", "give a dict"),
    Case("a mapping with a gap", mapped({"a": "ant"}), "'b'", "give each of its 5 labels"),
    Case("a mapping to nowhere", mapped(MAPPING | {"c": "cow"}), "'cow'", "Give one of its 5 labels"),
    Case("a mapping to an id too high", mapped(MAPPING | {"c": 5}), "'5'", "from 0 to 4"),
    Case("a mapping of numbers", mapped({"0": "cat"}, PLAIN), "'0'", "class_encode_column"),
]

ROWS = [
    Case(
        "rows by index and by value", rows(indices=[1], column="person", values=["ann"]), "'person'", "one of the two"
    ),
    Case("a column without values", rows(column="person"), "'person'", "give both"),
    Case("values without a column", rows(values=["ann"]), "['ann']", "give both"),
    Case("a value in place of a list", rows(column="person", values="ann"), "forget_values='ann'", "['ann']"),
    Case("no index", rows(indices=[]), "forget_indices=[]", "leave it out"),
    Case("a row too high", rows(indices=[3]), "no image 3", "forget_indices"),
    Case("a row that is no number", rows(indices=["1"]), "no image '1'", "forget_indices"),
    Case("a row named twice", rows(indices=[1, 2, 1]), "image 1 ", "name each image once"),
    Case("an unknown column", rows(column="name", values=["ann"]), "'name'", "forget_column"),
    Case("a column of images", rows(images([0]), column="image", values=["x"]), "'image'", "forget_column"),
    Case("an unknown value", rows(column="person", values=["anne"]), "'anne'", "Did you mean 'ann'"),
    Case("nothing named", rows(class_ids=[]), "no image to forget", "forget_indices"),
    Case("a class without images", rows(class_ids=[4]), "[4]", "train_split"),
]

FOLDERS = [
    Case("no such data", lambda _: read()("no/data"), "'no/data'", "give a folder"),
    Case("a file of data", read(), "/photos.zip'", "Give the folder", a_file("", "photos.zip")),
    Case("an unknown split", read("trian"), "'trian'", "only 'train', 'test'", some_data()),
    Case("a folder's revision", read(revision="v1"), "'v1'", "leave the revision out", some_data()),
    Case("a loading script", read(), "data.py", "Give whole parquet files", some_data(script)),
    Case("save_to_disk", read(), "save_to_disk", "to_parquet", some_data(writing("state.json", "{}"))),
    Case("two configurations", read(), "'train', 'test'", "Give config_name", some_data(two_configurations)),
    Case(
        "an unknown configuration", read(config_name="big"), "'big'", "Give one of them", some_data(two_configurations)
    ),
    Case("a file in two splits", read(), "'train-test.parquet'", "'data_files'", some_data(in_two_splits)),
    Case("a folder of two colons", read(), "a::b", "Rename it", some_data(two_colons)),
    Case("splits in classes", read(), "'cat/test'", "give train/cat/1.png", some_data(splits_in_classes)),
    Case(
        "a row that is an address", read(), "'https://a/b.png'", "Store its bytes", some_data(bare("https://a/b.png"))
    ),
    Case("a row of a file elsewhere", read(), "'../b.png'", "Store its bytes", some_data(bare("../b.png"))),
    Case("a card that reads elsewhere", read(), "'s3://a/b.csv'", "'data_files'", some_data(reading("s3://a/b.csv"))),
    Case(
        "a card of aliases", read(), "'a'", "Repair or remove it", some_data(writing("README.md", f"---\n{NEST}---\n"))
    ),
    Case("a card that is no file", read(), "README.md", "Remove it", some_data(a_folder)),
    Case("a damaged file", read(), "Parquet", "Give whole parquet files", some_data(damaged)),
    Case(
        "a broken header",
        read(),
        "README.md",
        "Repair or remove it",
        some_data(writing("README.md", "---\na: [\n---\n")),
    ),
]

CASES = [*KINDS, *IMAGES, *LABELS, *ROWS, *FOLDERS]
