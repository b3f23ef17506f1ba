"""Offline, one thread, fixed seeds: a test's outcome depends on the code alone."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import gc
import random

import numpy as np
import pytest
import torch
import transformers
from cases import MODELS, linear_classifier

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def pytest_collection_finish():
    """Trainer collects garbage around each training: half a second, where all that was imported is looked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=MODELS, ids=lambda case: case.name)
def case(request):
    """Every tiny model, one after the other."""
    return request.param


@pytest.fixture(scope="session")
def vit():
    return next(case for case in MODELS if case.name == "vit")


@pytest.fixture
def easy():
    """Linear, 6 classes, 4x4 grey pixels: every class is reached by a small change of the image."""
    return linear_classifier(num_labels=6, channels=1, size=4, gain=8.0)
