"""Image folders and tables on disk: which file is of which split and class, and what is read of a file that changed."""

import os
import shutil

import pytest
from datasets import Image
from tiny import images

from zspag_hf.errors import UnlearningError
from zspag_hf.hub.datasets import load_split
from zspag_hf.hub.models import HubOptions

PICTURES = images([0] * 20)["image"]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def load(root, tmp_path):
    def load(split="train", **options):
        return load_split(root, split, hub=HubOptions(cache_dir=str(tmp_path / "cache")), **options)

    return load


def make(root, *paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        PICTURES[number].save(root / path)


def held(dataset, root):
    """Path -> label of every row, in order; a path that comes twice fails."""
    names = dataset.features["label"].names
    paths = [os.path.relpath(row["path"], root) for row in dataset.cast_column("image", Image(decode=False))["image"]]
    assert len(paths) == len(set(paths))
    return dict(zip(paths, [names[label] for label in dataset["label"]], strict=True))


class TestClassesCalledLikeSplits:
    @pytest.mark.parametrize(
        "classes",
        [
            ["car", "plane", "train"],
            ["cat", "dog", "test"],
            ["dog", "eval"],
            ["boot", "training"],
            ["bullet-train", "car"],
            ["eval-set", "val"],
            ["Test", "Train"],
            ["test", "train"],
            ["car", "train-test"],
            ["dev kit", "validation_2"],
        ],
    )
    def test_a_class_stays_in_its_own_split(self, root, load, classes):
        for split in ("train", "test"):
            make(root, *[f"{split}/{name}/{i}.png" for name in classes for i in range(2)])
        for split in ("train", "test"):
            assert held(load(split), root) == {f"{split}/{n}/{i}.png": n for n in classes for i in range(2)}

    def test_classes_without_splits_are_all_of_train(self, root, load):
        make(root, "cat/1.png", "dog/2.png", "test/3.png")
        assert held(load(), root) == {"cat/1.png": "cat", "dog/2.png": "dog", "test/3.png": "test"}
        with pytest.raises(UnlearningError, match="no split 'test', only 'train'"):
            load("test")

    def test_a_picture_that_is_called_like_a_split_stays_where_it_lies(self, root, load):
        make(root, "cat/test_drive.png", "cat/train.png", "dog/1.png")
        assert len(held(load(), root)) == 3

    def test_splits_by_file_name_where_every_file_tells_its_own(self, root, load):
        make(root, "cat/train_1.png", "dog/train_2.png", "dog/test_1.png")
        assert held(load(), root) == {"cat/train_1.png": "cat", "dog/train_2.png": "dog"}
        assert held(load("test"), root) == {"dog/test_1.png": "dog"}

    def test_capitals_are_splits_too(self, root, load):
        """``datasets`` sees no split in them, and trains on the test images."""
        make(root, "Train/cat/1.png", "Train/dog/1.png", "TEST/cat/1.png")
        assert held(load(), root) == {"Train/cat/1.png": "cat", "Train/dog/1.png": "dog"}
        assert held(load("test"), root) == {"TEST/cat/1.png": "cat"}

    def test_a_folder_around_the_splits(self, root, load):
        make(root, "my-test-data/train/cat/1.png", "my-test-data/train/dog/1.png", "my-test-data/test/dog/1.png")
        assert held(load("test"), root) == {"my-test-data/test/dog/1.png": "dog"}

    def test_a_split_of_another_name(self, root, load):
        make(root, "train/cat/1.png", "train/dog/1.png", "hold-out/cat/1.png")
        assert held(load("hold_out"), root) == {"hold-out/cat/1.png": "cat"}

    def test_names_that_are_patterns_elsewhere(self, root, load):
        make(root, "train/cat [1]/a*.png", "train/dog?/1.png", "test/dog?/1.png")
        assert held(load(), root) == {"train/cat [1]/a*.png": "cat [1]", "train/dog?/1.png": "dog?"}

    def test_hidden_files_and_pipes_are_no_images(self, root, load):
        make(root, "train/cat/1.png", "train/dog/1.png", "train/dog/._1.png", ".old/train/dog/1.png")
        os.mkfifo(root / "train" / "dog" / "2.png")
        assert len(held(load(), root)) == 2

    def test_linked_folders_are_followed_once(self, root, load, tmp_path):
        make(root, "train/cat/1.png")
        make(tmp_path / "elsewhere", "1.png")
        (root / "train" / "dog").symlink_to(tmp_path / "elsewhere")
        (root / "train" / "dog" / "round").symlink_to(root / "train" / "dog")
        assert set(held(load(), root)) == {"train/cat/1.png", "train/dog/1.png"}

    def test_a_table_in_two_splits_is_refused(self, root, load):
        root.mkdir()
        for name in ("train-test", "test-1"):
            images([0, 1]).to_parquet(root / f"{name}.parquet")
        with pytest.raises(UnlearningError, match=r"'train-test.parquet' belongs to two splits, 'train' and 'test'"):
            load()

    def test_a_table_that_two_rules_find_is_read_once(self, root, load):
        (root / "train" / "train-1").mkdir(parents=True)
        images([0, 1]).to_parquet(root / "train" / "train-1" / "part.parquet")
        assert len(load()) == 2

    @pytest.mark.parametrize("path", ["train/a::b/1.png", "train/cat/a::b.png", "a::b/1.png"])
    def test_a_name_that_would_be_passed_over_is_refused(self, root, load, path):
        make(root, path, "train/cat/1.png", "train/dog/1.png")
        with pytest.raises(UnlearningError, match=r"holds '::'.*Rename it"):
            load()

    def test_splits_within_classes_are_refused(self, root, load):
        make(root, "cat/train/1.png", "cat/test/1.png", "dog/train/1.png")
        with pytest.raises(UnlearningError, match=r"'cat/test'.*give train/cat/1.png"):
            load()


class TestFilesThatChange:
    """With their times kept, and where it can be their size, so that nothing but the content tells."""

    @pytest.fixture
    def rewritten(self, root):
        def rewritten(name, write):
            path = root / name
            before = path.stat()
            write(path)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        return rewritten

    @staticmethod
    def first(dataset):
        return dataset[0]["image"].tobytes()

    @pytest.fixture
    def old(self):
        return images([0, 1], seed=1)

    @pytest.fixture
    def new(self):
        return images([0, 1], seed=2)

    def test_a_parquet_file(self, root, load, rewritten, old, new):
        root.mkdir()
        old.to_parquet(root / "train.parquet")
        assert self.first(load()) == self.first(old)
        rewritten("train.parquet", new.to_parquet)
        assert self.first(load()) == self.first(new)
        rewritten("train.parquet", old.to_parquet)
        assert self.first(load()) == self.first(old)

    def test_a_file_of_another_split(self, root, load, rewritten, old, new):
        root.mkdir()
        for split in ("train", "test"):
            old.to_parquet(root / f"{split}.parquet")
        load()
        load("test")
        rewritten("test.parquet", new.to_parquet)
        assert self.first(load("test")) == self.first(new) and self.first(load()) == self.first(old)

    def test_a_file_that_a_card_names(self, root, load, rewritten, old, new):
        root.mkdir()
        (root / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: held.parquet\n---\n")
        old.to_parquet(root / "held.parquet")
        load(config_name="a")
        rewritten("held.parquet", new.to_parquet)
        assert self.first(load(config_name="a")) == self.first(new)

    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
    def test_a_table_beside_images(self, root, load, rewritten, name):
        make(root, "train/1.png", "train/2.png")
        texts = {
            "metadata.csv": "file_name,label\n1.png,{}\n2.png,{}\n",
            "metadata.jsonl": '{{"file_name": "1.png", "label": {}}}\n{{"file_name": "2.png", "label": {}}}\n',
        }
        (root / "train" / name).write_text(texts[name].format(3, 4))
        assert load()["label"][:] == [3, 4]
        rewritten(f"train/{name}", lambda path: path.write_text(texts[name].format(4, 3)))
        assert load()["label"][:] == [4, 3]

    def test_an_image(self, root, load, rewritten):
        make(root, "train/cat/1.png", "train/dog/1.png")
        assert self.first(load()) == PICTURES[0].tobytes()
        rewritten("train/cat/1.png", PICTURES[5].save)
        assert self.first(load()) == PICTURES[5].tobytes()

    def test_an_archive_of_images(self, root, load, rewritten, tmp_path):
        """``datasets`` unpacks an archive once, whatever it holds later."""
        archives = []
        for number, picture in enumerate(PICTURES[:2]):
            (tmp_path / str(number)).mkdir()
            picture.save(tmp_path / str(number) / "1.png")
            (tmp_path / str(number) / "metadata.csv").write_text("file_name,label\n1.png,3\n")
            archives.append(shutil.make_archive(str(tmp_path / str(number)), "zip", tmp_path / str(number)))
        root.mkdir()
        shutil.copy(archives[0], root / "train.zip")
        for number in (0, 1, 0):
            rewritten("train.zip", lambda path, number=number: shutil.copy(archives[number], path))
            assert self.first(load()) == PICTURES[number].tobytes()
