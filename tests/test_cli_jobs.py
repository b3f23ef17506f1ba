"""A job from names: data as other tools write them, and rows counted as in their split."""

import io

import pandas
import pytest
from tiny import NAMES, asked, images, tiny_model, tiny_processor

from zspag_hf import UnlearningError, UnlearningTrainer
from zspag_hf.cli.jobs import DataArguments, load_job

LABELS = [0, 1, 2, 2, 3, 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def job(model, tmp_path):
    def job(forget=("cat",), method="zspag", **arguments):
        config, method = asked(
            tmp_path,
            method,
            dataset_name=str(tmp_path / "data"),
            cache_dir=str(tmp_path / "cache"),
            forget_classes=None if forget is None else list(forget),
        )
        loaded = load_job(DataArguments(model_name_or_path=model, **arguments), config, method)
        trainer = UnlearningTrainer(
            loaded.model, config, loaded.forget, loaded.test, method=method, processing_class=loaded.processor
        )
        return loaded, trainer

    return job


@pytest.fixture
def write(tmp_path):
    def write(column, labels=LABELS):
        (tmp_path / "data").mkdir(exist_ok=True)
        for split in ("train", "test"):
            frame = pandas.DataFrame({"image": column, "label": labels})
            frame.to_parquet(tmp_path / "data" / f"{split}.parquet")

    return write


@pytest.fixture
def pngs():
    written = [io.BytesIO() for _ in LABELS]
    for file, picture in zip(written, images(LABELS)["image"], strict=True):
        picture.save(file, "PNG")
    return [file.getvalue() for file in written]


@pytest.mark.parametrize("form", ["structs", "bytes", "paths"])
@pytest.mark.parametrize("texts", [True, False])
def test_data_that_pandas_wrote(job, write, pngs, tmp_path, form, texts):
    column = pngs
    if form == "structs":
        column = [{"bytes": content, "path": None} for content in pngs]
    write(
        [f"{i}.png" for i in range(6)] if form == "paths" else column, [NAMES[i] for i in LABELS] if texts else LABELS
    )
    for i, content in enumerate(pngs):
        (tmp_path / "data" / f"{i}.png").write_bytes(content)
    loaded, trainer = job()
    assert trainer.request.class_ids == [2] and trainer.eval_dataset.labels.tolist() == LABELS
    kept = images(LABELS).select([2, 3])["image"]
    assert [image.tobytes() for image in loaded.forget["image"]] == [image.tobytes() for image in kept]


@pytest.mark.parametrize(
    "arguments, broken",
    [
        ({}, 3),
        ({"forget_indices": [0, 5], "method": "amun", "forget": None}, 5),
        ({"train_split": "test", "test_split": "test"}, 3),
    ],
)
def test_a_broken_image_is_counted_in_its_split(job, write, pngs, arguments, broken):
    write([content[:30] if i == broken else content for i, content in enumerate(pngs)])
    with pytest.raises(UnlearningError, match=f"image {broken} of column 'image' cannot be read"):
        job(**arguments)


def test_a_broken_test_image_is_counted_in_its_split(job, write, pngs):
    write([content[:30] if i == 5 else content for i, content in enumerate(pngs)])
    _, trainer = job(train_split="test", test_split="test")
    with pytest.raises(UnlearningError, match="image 5 of column 'image' cannot be read"):
        trainer.eval_dataset.__getitems__([0, 1, 2, 3])


def test_an_image_without_a_label_is_counted_in_its_split(job, write, pngs):
    write(pngs, ["cat", "ant", "bee", None, "cat", "dog"])
    with pytest.raises(UnlearningError, match="image 3 has no label"):
        job(train_split="test", test_split="test")


def test_the_column_of_rows_is_in_no_message(job, write, pngs, model, tmp_path):
    write(pngs)
    with pytest.raises(UnlearningError, match=r"no column 'name' among \['image', 'label'\]"):
        job(forget_column="name", forget_values=["x"])


def test_a_folder_of_that_number_is_forgotten(job, tmp_path, model):
    """Of a model without names: not the id of that number."""
    names = sorted(map(str, range(1, 13)))
    unnamed = tiny_model(names=[f"LABEL_{i}" for i in range(12)])
    assert unnamed.config.num_labels == 12
    for split in ("train", "test"):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            images([0])[0]["image"].save(tmp_path / "data" / split / name / "1.png")
    config, method = asked(
        tmp_path, dataset_name=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"), forget_classes=["10"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.cli.jobs.load_classifier", lambda *_, **__: (unnamed, tiny_processor()))
        forget = load_job(DataArguments(model_name_or_path=model), config, method).forget
    assert [names[label] for label in forget["label"]] == ["10"]
