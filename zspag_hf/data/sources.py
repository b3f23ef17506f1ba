"""Where the pixels of a row come from: its own bytes, or a file on this machine; never an address.

``datasets`` decodes a row without bytes by opening its path, which may lie anywhere on this machine or on another.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, Value
from PIL import Image as PILImage

STORED = Image(decode=False)
ROW = "zspag_hf_row"  # column of a split's rows
IMAGE_FOLDER = "imagefolder"  # what ``datasets`` calls images that came as files
PARTS = {"bytes", "path"}
TEXT, BINARY = ("string", "large_string"), ("binary", "large_binary")


def replaced(dataset: Dataset, column: str, values: list | pa.ChunkedArray, feature: Any) -> Dataset:
    """The data set with other values in a column, in its place; nothing is written to a cache."""
    order, beside = dataset.column_names, f"{column} anew"
    wider = dataset.add_column(beside, values, feature=feature).remove_columns(column)
    return wider.rename_column(beside, column).select_columns(order)


def numbered(split: Dataset) -> Dataset:
    """A whole split whose images keep their row in it, for messages, whatever is selected of them."""
    return split.add_column(ROW, list(range(len(split))))


def row_of(dataset: Dataset, index: int) -> int:
    """The row of an image in its split, as :func:`numbered` noted it, or else in the data set."""
    return dataset.select_columns([ROW])[index][ROW] if ROW in dataset.column_names else index


def columns_of(dataset: Dataset) -> list[str]:
    """The columns that came with the data."""
    return [name for name in dataset.column_names if name != ROW]


def stored(dataset: Dataset, column: str) -> Dataset:
    """The data set with its images undecoded, ``{"bytes", "path"}`` each: also those that pandas wrote, as a struct of
    these or as bytes alone. A column of another kind is left as it is."""
    feature = dataset.features[column]
    by_pandas = isinstance(feature, dict) and {*feature} <= PARTS
    by_pandas |= isinstance(feature, Value) and feature.dtype in BINARY
    return dataset.cast_column(column, STORED) if isinstance(feature, Image) or by_pandas else dataset


def is_address(path: str) -> bool:
    """Whether a path would be fetched from elsewhere, or unpacked, by ``datasets``."""
    return "://" in path or "::" in path


def file_of(path: str) -> str:
    """The file that a row's path lies in: itself, or the archive of ``zip://1.png::/folder/train.zip``."""
    member, _, archive = path.partition("::")
    return archive if archive and member.startswith("zip://") else path


def why_not(path: str) -> str | None:
    """Why no image is read from a row's path; None where it may be."""
    file = file_of(path)
    if is_address(file):
        return f"it is only an address, {path!r}, and nothing is fetched for a row"
    if os.path.exists(file) and not os.path.isfile(file):
        return f"its path {path!r} is no regular file"
    return None


def fetched(dataset: Dataset) -> bool:
    """Whether the table behind a data set came from elsewhere, and is no folder of images that came with it: then no
    path in it is one of this machine."""
    addresses = any(map(is_address, dataset.info.download_checksums or {}))
    return addresses and dataset.info.builder_name != IMAGE_FOLDER


class Pictures:
    """The images of one column, decoded one by one; no other column is read, and no row that is only an address.

    Attributes:
        fetched: as :func:`fetched`. problem: what is wrong with the whole column, or None.
    """

    def __init__(self, dataset: Dataset, column: str):
        self.dataset, self.column, self.feature = dataset, column, dataset.features[column]
        self.rows = stored(dataset.select_columns([column]), column)
        self.fetched = fetched(dataset)
        self.problem = None if isinstance(self.rows.features[column], Image) else _misfit(self.feature)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PILImage.Image:
        """One image. Raises TypeError or ValueError for a row that holds none, or only an address; what Pillow raises
        for one that cannot be decoded; OSError for a file that is gone."""
        if self.problem is not None:
            raise TypeError(self.problem)
        held = self.rows[index][self.column]
        if held is None or (held["bytes"] is None and held["path"] is None):
            raise TypeError("it holds no image")
        if held["bytes"] is None and (why := self.why_not(held["path"])) is not None:
            raise ValueError(why)
        decoder = Image(mode=self.feature.mode if isinstance(self.feature, Image) else None)
        return decoder.decode_example(held)

    def refused(self) -> Iterator[tuple[int, str]]:
        """Row and reason of every image that no attempt will be made to read."""
        if self.problem is not None and len(self):
            yield 0, self.problem
        elif self.problem is None and without_bytes(self.rows, self.column):
            for index, row in enumerate(self.rows):
                held = row[self.column]
                if held and held["bytes"] is None and held["path"] is not None and (why := self.why_not(held["path"])):
                    yield index, why

    def why_not(self, path: str) -> str | None:
        """Why no image is read from a row's path; None where it may be."""
        if self.fetched and not is_address(path):
            return f"it has no bytes, and its path {path!r} is one of the machine that it was made on"
        return why_not(path)


def without_bytes(rows: Dataset, column: str) -> int:
    """How many images of the table behind a stored column bring no bytes; of that table all, whatever was selected."""
    return pc.struct_field(rows.data.column(column), "bytes").null_count


def with_own_files(dataset: Dataset, column: str, own: Callable[[int, str], str]) -> Dataset:
    """A whole split in which the path of every image without bytes is ``own`` of its row and path; ``own`` raises for
    what may not be read."""
    rows = stored(dataset.select_columns([column]), column)
    if not without_bytes(rows, column):
        return dataset
    start, changed, chunks = 0, False, list[pa.Array]()
    for chunk in rows.data.column(column).chunks:
        content, paths = pc.struct_field(chunk, "bytes"), pc.struct_field(chunk, "path").to_pylist()
        bare = [no and path is not None for path, no in zip(paths, pc.is_null(content).to_pylist(), strict=True)]
        found = [own(start + i, path) if bare[i] else path for i, path in enumerate(paths)]
        chunks.append(pa.StructArray.from_arrays([content, pa.array(found, pa.string())], [*STORED.flatten()]))
        start, changed = start + len(chunk), changed or found != paths
    if not changed:
        return dataset
    return replaced(dataset, column, pa.chunked_array(chunks), Image())


def _misfit(feature: object) -> str:
    if isinstance(feature, Value) and feature.dtype in TEXT:
        return "it is stored as str, not as an image: cast_column to datasets.Image reads a path"
    return f"it is stored as {feature.dtype if isinstance(feature, Value) else type(feature).__name__}, not as an image"
