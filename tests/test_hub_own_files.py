"""A data set reads its own files and no others: not by its card, not by its rows, and nothing is ever requested."""

import io
import os
import shutil
import socket
import urllib.request

import pandas
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, List, Value
from test_hub_card import MERGED, NEST
from tiny import NAMES, images, tiny_processor

from zspag_hf.data.images import labelled_dataset, read_forget_set, read_public_images
from zspag_hf.errors import UnlearningError
from zspag_hf.hub.datasets import load_split
from zspag_hf.hub.models import HubOptions

ADDRESSES = [
    "https://example.invalid/1.png",
    "http://127.0.0.1:9/1.png",
    "hf://datasets/user/data/1.png",
    "s3://bucket/1.png",
    "file:///etc/hostname",
    "zip://1.png::https://example.invalid/a.zip",
    "gzip://1.png::/etc/hostname",
    "simplecache::https://example.invalid/1.png",
]
FEATURES = Features({"image": Image(decode=False), "label": ClassLabel(names=NAMES)})


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Every address that something tried to reach."""
    tried = []

    def note(*arguments, **_):
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, note)
    monkeypatch.setattr(socket, "getaddrinfo", note)
    monkeypatch.setattr(urllib.request, "urlopen", note)
    yield tried
    assert tried == []


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def elsewhere(tmp_path):
    """An image on this machine that belongs to somebody."""
    images([0])[0]["image"].save(tmp_path / "private.png")
    return str(tmp_path / "private.png")


@pytest.fixture
def load(root, tmp_path):
    def load(split="train", **options):
        return load_split(root, split, hub=HubOptions(cache_dir=str(tmp_path / "cache")), **options)

    return load


def png(number=0):
    written = io.BytesIO()
    images([0, 1, 2])[number]["image"].save(written, "PNG")
    return written.getvalue()


def table(*paths):
    """Rows of which the first alone has bytes."""
    rows = [{"bytes": png(), "path": "0.png"}, *({"bytes": None, "path": path} for path in paths)]
    return Dataset.from_dict({"image": rows, "label": [2] * len(rows)}, features=FEATURES)


def write(data, path):
    """As it is: ``to_parquet`` would put the files into the table."""
    schema = Features(
        data.features | {n: Image() for n, f in data.features.items() if isinstance(f, Image)}
    ).arrow_schema
    pyarrow.parquet.write_table(data.data.table.cast(schema), path)


def refused(call, *arguments, **options):
    with pytest.raises(UnlearningError) as error:
        call(*arguments, **options)
    return str(error.value)


class TestRows:
    @pytest.mark.parametrize("address", ADDRESSES)
    @pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
    def test_an_address_is_not_asked_for(self, root, load, address, kind):
        if kind == "parquet":
            write(table(address), root / "train.parquet")
        else:
            (root / "0.png").write_bytes(png())
            getattr(paths(address), f"to_{kind}")(str(root / f"train.{kind}"))
        message = refused(load)
        assert "only an address" in message and repr(address) in message and "image 1 of column 'image'" in message

    @pytest.mark.parametrize("depth", ["{}", "/../{}", "../private.png", "/etc/hostname", "~/.bashrc"])
    def test_a_file_elsewhere_is_not_opened(self, root, load, elsewhere, depth):
        write(table(depth.format(elsewhere)), root / "train.parquet")
        assert "data set" in refused(load)

    def test_a_link_out_of_the_folder_is_elsewhere(self, root, load, elsewhere):
        os.symlink(elsewhere, root / "linked.png")
        write(table("linked.png"), root / "train.parquet")
        assert "'linked.png' leads out of the data set" in refused(load)

    def test_a_pipe_is_not_waited_for(self, root, load):
        os.mkfifo(root / "pipe.png")
        write(table(str(root / "pipe.png")), root / "train.parquet")
        assert "is no regular file" in refused(load)

    def test_a_file_that_is_gone(self, root, load):
        write(table("gone.png"), root / "train.parquet")
        assert "image 1 of column 'image'" in (message := refused(load)) and "'gone.png' is no file" in message

    def test_files_of_the_data_set_are_read_wherever_the_process_runs(self, root, load, monkeypatch, tmp_path):
        """``datasets`` would take a relative path from the working directory."""
        (root / "images").mkdir()
        (root / "images" / "1.png").write_bytes(png(1))
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "1.png").write_bytes(png(2))
        monkeypatch.chdir(tmp_path)
        write(table("images/1.png", str(root / "images" / "1.png")), root / "train.parquet")
        pixels = [image.tobytes() for image in load()["image"]]
        assert pixels == [images([0, 1, 2])[i]["image"].tobytes() for i in (0, 1, 1)]

    def test_another_column_of_images_is_held_to_the_same(self, root, load, elsewhere):
        data = table().add_column("photo", [{"bytes": None, "path": elsewhere}], feature=Image(decode=False))
        write(data, root / "train.parquet")
        assert "column 'photo'" in refused(load)

    def test_a_table_beside_images_names_no_other(self, root, load, elsewhere):
        (root / "train").mkdir()
        (root / "train" / "1.png").write_bytes(png())
        rows = {"file_name": ["1.png"], "label": [0], "photo": [{"bytes": None, "path": elsewhere}]}
        features = Features({"file_name": Value("string"), "label": Value("int64"), "photo": Image(decode=False)})
        write(Dataset.from_dict(rows, features=features), root / "train" / "metadata.parquet")
        assert load()[0]["photo"] is None, "the builder drops it"

    @pytest.mark.parametrize("name", ["../private.png", "/etc/hostname", "https://example.invalid/1.png"])
    def test_a_table_beside_images_leads_nowhere_else(self, root, load, elsewhere, name):
        (root / "train").mkdir()
        (root / "train" / "1.png").write_bytes(png())
        (root / "train" / "metadata.csv").write_text(f"file_name,label\n{name},0\n")
        assert "Invalid metadata" in refused(load)

    def test_an_archive_of_images_is_the_data_sets_own(self, root, load, tmp_path):
        (tmp_path / "held").mkdir()
        (tmp_path / "held" / "1.png").write_bytes(png())
        (tmp_path / "held" / "metadata.csv").write_text("file_name,label\n1.png,3\n")
        shutil.make_archive(str(root / "train"), "zip", tmp_path / "held")
        assert load()[0]["image"].size == (8, 8)


def paths(*given):
    return Dataset.from_dict({"image": ["0.png", *given], "label": [2] * (1 + len(given))})


class TestCards:
    @pytest.mark.parametrize("pattern", [*ADDRESSES, "/etc/*.parquet", "../*.parquet", "~/x.parquet", "a/../../b.csv"])
    @pytest.mark.parametrize("form", ["{}", "[{}]", "[{{split: train, path: {}}}]", "[{{split: a, path: [x, {}]}}]"])
    def test_data_files_elsewhere_are_not_looked_for(self, root, load, pattern, form):
        write(table(), root / "train.parquet")
        header = f"configs:\n- config_name: default\n  data_files: {form.format(repr(pattern))}\n"
        (root / "README.md").write_text(f"---\n{header}---\n")
        assert repr(pattern) in (message := refused(load)) and "outside of it" in message
        (root / "README.md").unlink()
        (root / ".huggingface.yaml").write_text(header)
        assert repr(pattern) in refused(load)

    def test_a_folder_elsewhere(self, root, load):
        (root / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_dir: ../other\n---\n")
        assert "'../other'" in refused(load)

    @pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml", "train.parquet"])
    def test_a_pipe_is_not_waited_for(self, root, load, name):
        write(table(), root / "test.parquet")
        os.mkfifo(root / name)
        (root / "named").write_text("")
        assert "no regular file" in (message := refused(load)) or "no split 'train'" in message

    @pytest.mark.parametrize("nest", [NEST, MERGED, f"x: {'[' * 3000}\n"])
    @pytest.mark.parametrize("where", ["tags: *i", "configs: *i", "configs: [{config_name: a, data_files: *i}]"])
    def test_a_nest_of_aliases_is_not_built(self, root, load, nest, where):
        write(table(), root / "train.parquet")
        (root / "README.md").write_text(f"---\n{nest}{where}\n---\n")
        assert "the header of its README.md cannot be read" in refused(load)

    def test_a_pipe_that_a_card_names(self, root, load):
        os.mkfifo(root / "pipe.parquet")
        (root / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: pipe.parquet\n---\n")
        assert "pipe.parquet" in refused(load)

    def test_files_of_its_own_are_read(self, root, load):
        write(table(), root / "held.parquet")
        (root / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: 'he*.parquet'\n---\n")
        assert len(load(config_name="a")) == 1


class TestObjects:
    """Data sets that are given as such, whose folder is not known."""

    @pytest.fixture(params=["forget", "test", "public"])
    def read(self, request):
        if request.param == "public":
            return lambda data: read_public_images(data, tiny_processor(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        if request.param == "test":
            return lambda data: labelled_dataset(data, tiny_processor(), NAMES)
        return lambda data: read_forget_set(data, tiny_processor(), [2], range(5), 5)

    @pytest.mark.parametrize("address", ADDRESSES)
    def test_an_address_is_refused_before_anything_is_decoded(self, read, address):
        data = table(address).cast_column("image", Image())
        assert "image 1 of column 'image'" in (message := refused(read, data)) and "only an address" in message

    def test_a_selection_is_counted_as_it_is(self, read):
        data = table("1.png", ADDRESSES[0]).cast_column("image", Image()).select([2, 0])
        assert "image 0 of column 'image'" in refused(read, data)

    def test_other_columns_are_not_decoded(self, read):
        data = table().add_column("photo", [{"bytes": None, "path": ADDRESSES[0]}], feature=Image())
        data = data.add_column("many", [[{"bytes": None, "path": ADDRESSES[0]}]], feature=List(Image()))
        read(data)

    def test_a_list_of_images_is_refused_unread(self, read):
        data = table().remove_columns("image")
        data = data.add_column("image", [[{"bytes": None, "path": ADDRESSES[0]}]], feature=List(Image()))
        assert "stored as List" in refused(read, data)

    def test_a_file_of_ones_own_is_read(self, read, elsewhere):
        read(table(elsewhere).cast_column("image", Image()))

    def test_a_table_from_the_hub_names_no_file_of_this_machine(self, read, elsewhere):
        info = DatasetInfo(builder_name="parquet", download_checksums={"hf://datasets/user/data/0.parquet": {}})
        rows = table(elsewhere)
        data = Dataset(rows.data, info=info).cast(FEATURES).cast_column("image", Image())
        assert "the machine that it was made on" in refused(read, data)


class TestByPandas:
    """Columns that pandas writes, which know of no images."""

    @pytest.fixture
    def given(self, root):
        def given(column, **others):
            pandas.DataFrame({"image": column, "label": [0, 1, 2]} | others).to_parquet(root / "train.parquet")

        return given

    @pytest.mark.parametrize("form", ["both", "bytes in a struct", "bytes", "paths", "paths in a struct"])
    def test_images_in_any_form(self, root, load, given, form):
        for number in range(3):
            (root / f"{number}.png").write_bytes(png(number))
        given(
            {
                "both": [{"bytes": png(i), "path": None} for i in range(3)],
                "bytes in a struct": [{"bytes": png(i)} for i in range(3)],
                "bytes": [png(i) for i in range(3)],
                "paths": [f"{i}.png" for i in range(3)],
                "paths in a struct": [{"path": f"{i}.png"} for i in range(3)],
            }[form]
        )
        assert [image.tobytes() for image in load()["image"]] == [i.tobytes() for i in images([0, 1, 2])["image"]]

    def test_a_column_of_another_name(self, root, load, given):
        given([png(i) for i in range(3)])
        assert load(image_column="label")["image"][0] == png()
        pandas.DataFrame({"photo": [png(0)], "label": [0]}).to_parquet(root / "train.parquet")
        assert load(image_column="photo")[0]["photo"].size == (8, 8)

    def test_texts_that_are_no_paths(self, load, given):
        given(["a cat", "a dog", "an elk"])
        assert "'a cat' is no file in the data set" in refused(load)
