"""Test images that are images to forget, pixel by pixel: no test score may stand on what the request itself holds."""

import warnings

import numpy as np
import torch
from torch import Tensor

from ..errors import UnlearningError
from ..metrics import NEEDS
from ..metrics.rows import FORGET, TEST_FORGOTTEN, TEST_RETAINED
from .table import Table


def without_forget_images(table: Table, aloud: bool) -> tuple[Table, Tensor]:
    """The table without test images that are forget images, and which test images stay, ``(T,)`` bool in their order;
    how many go is told, if ``aloud``.

    Raises:
        UnlearningError: no test image of a retained class would stay.
    """
    tests = table.rows(TEST_FORGOTTEN, TEST_RETAINED)
    same = np.isin(table.digests[tests], table.digests[table.rows(FORGET)])
    if not same.any():
        return table, torch.from_numpy(~same)
    kept = np.setdiff1d(np.arange(len(table.references)), tests[same])
    table = table.only(kept)
    if not len(table.rows(TEST_RETAINED)):
        raise UnlearningError(
            f"all test images of retained classes are among the {same.sum()} that are images to forget: give test"
            " images that nobody trained on."
        )
    if aloud:
        left = len(table.rows(TEST_FORGOTTEN))
        warnings.warn(
            f"{same.sum()} of {len(same)} test images are images to forget, pixel by pixel: they are left out, and"
            f" {left or 'no'} test images of forgotten classes remain.",
            stacklevel=2,
        )
    return table, torch.from_numpy(~same)


def reasons_told(reasons: dict[str, str], left_out: int) -> dict[str, str]:
    """The reasons of missing scores, with what became of the test images that they need."""
    needed = NEEDS["forgotten"], NEEDS["watched"]
    told = f", and the {left_out} that were given are images to forget"
    return {score: why + told * bool(left_out and why.startswith(needed)) for score, why in reasons.items()}
