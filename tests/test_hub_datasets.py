"""Data from folders: what loads, and what each refusal says. By Hub id: test_hub_loading."""

import pytest
from tiny import NAMES, images

from zspag_hf.errors import UnlearningError
from zspag_hf.hub.datasets import load_split
from zspag_hf.hub.models import HubOptions


@pytest.fixture
def load(tmp_path):
    def load(folder, split="train", config_name=None, **options):
        hub = HubOptions(cache_dir=str(tmp_path / "cache"), **options)
        return load_split(tmp_path / folder, split, config_name=config_name, hub=hub)

    return load


@pytest.fixture
def folder(tmp_path):
    """A folder of parquet files, a split each."""
    (tmp_path / "data").mkdir()
    for split, labels in (("train", [0, 1, 2]), ("test", [3, 4])):
        images(labels).to_parquet(tmp_path / "data" / f"{split}.parquet")
    return tmp_path / "data"


def refused(load, *arguments, **options):
    with pytest.raises(UnlearningError) as error:
        load(*arguments, **options)
    return str(error.value)


def test_parquet_files_are_splits_with_their_label_names(folder, load):
    train, test = load("data"), load("data", "test")
    assert (train["label"][:], test["label"][:]) == ([0, 1, 2], [3, 4])
    assert train.features["label"].names == NAMES and train[0]["image"].size == (8, 8)


def test_a_folder_of_images(tmp_path, load):
    """Ids follow the label's names, in every split the same."""
    for split, names in (("train", ("cat", "dog")), ("test", ("dog",))):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            images([0])[0]["image"].save(tmp_path / "data" / split / name / "1.png")
    assert load("data").features["label"].names == ["cat", "dog"] and load("data")["label"][:] == [0, 1]
    assert load("data", "test")["label"][:] == [1]


def test_changed_files_are_read_anew(folder, load):
    assert len(load("data")) == 3
    images([0]).to_parquet(folder / "train.parquet")
    assert len(load("data")) == 1


def test_a_folder_wins_over_a_format_of_that_name(folder, load, monkeypatch, tmp_path):
    folder.rename(tmp_path / "csv")
    monkeypatch.chdir(tmp_path)
    assert len(load_split("csv", "train", hub=HubOptions(cache_dir=str(tmp_path / "cache")))) == 3


class TestRefusals:
    def test_a_place_that_is_no_folder(self, folder, load):
        assert "no such folder" in refused(load, "nowhere")
        assert "it is a file. Give the folder" in refused(load, "data/train.parquet")

    def test_an_unknown_split_lists_those_there_are_and_reads_nothing(self, folder, load, tmp_path):
        assert "no split 'validation', only 'train', 'test'" in refused(load, "data", "validation")
        assert not list(tmp_path.glob("cache/**/*.arrow"))

    def test_a_revision_of_a_folder(self, folder, load):
        assert "has no revision 'v1'" in refused(load, "data", revision="v1")

    @pytest.mark.parametrize("files", [{}, {"notes.weird": b"x"}, {"README.md": b"# Data"}])
    def test_no_data(self, tmp_path, load, files):
        (tmp_path / "data").mkdir()
        for name, content in files.items():
            (tmp_path / "data" / name).write_bytes(content)
        assert "Give whole parquet files" in refused(load, "data")

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_a_damaged_file(self, folder, load, share):
        content = (folder / "train.parquet").read_bytes()
        (folder / "train.parquet").write_bytes(content[: int(share * len(content))])
        assert "Parquet" in refused(load, "data")

    def test_files_with_other_columns(self, folder, load):
        (folder / "test.parquet").unlink()
        (folder / "train.parquet").rename(folder / "train-0.parquet")
        images([0]).rename_column("image", "picture").to_parquet(folder / "train-1.parquet")
        assert "do not all have the same columns" in refused(load, "data")

    def test_a_script_is_not_run(self, folder, load, tmp_path):
        (folder / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        assert "made by a script (data.py)" in refused(load, "data")
        assert not (tmp_path / "ran").exists()

    def test_save_to_disk(self, tmp_path, load):
        images([0]).save_to_disk(tmp_path / "data")
        assert "to_parquet" in refused(load, "data")

    def test_a_broken_header(self, folder, load):
        (folder / "README.md").write_text("---\nconfigs: [\n---\n")
        assert "README.md is no valid YAML" in refused(load, "data")


class TestConfigurations:
    @pytest.fixture(autouse=True)
    def several(self, tmp_path):
        for name, labels in (("small", [0]), ("large", [0, 1])):
            (tmp_path / "data" / name).mkdir(parents=True)
            images(labels).to_parquet(tmp_path / "data" / name / "all.parquet")
        entries = [f"- config_name: {n}\n  data_files: {n}/*.parquet\n" for n in ("small", "large")]
        (tmp_path / "data" / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")

    def test_the_one_that_was_named(self, load):
        assert len(load("data", config_name="small")) == 1 and len(load("data", config_name="large")) == 2

    def test_none_named(self, load):
        assert "has 2 configurations, 'small', 'large'. Give config_name" in refused(load, "data")

    def test_an_unknown_one(self, load):
        assert "no configuration 'huge', only 'small', 'large'" in refused(load, "data", config_name="huge")

    def test_an_unknown_split_of_one(self, load):
        assert "no split 'test', only 'train'" in refused(load, "data", "test", config_name="small")
