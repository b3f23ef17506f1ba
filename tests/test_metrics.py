import os

import evaluate
import numpy as np
import pytest

import zspag_hf
from zspag_hf.metrics.unlearning_accuracy.unlearning_accuracy import UnlearningAccuracy

PREDICTIONS = [0, 0, 1, 2, 2, 0]
REFERENCES = [0, 0, 0, 1, 2, 2]


def test_accuracies_are_means_over_classes_and_over_images():
    scores = UnlearningAccuracy(keep_in_memory=True).compute(
        predictions=PREDICTIONS, references=REFERENCES, forget_ids=[2]
    )
    assert scores["per_class"] == {0: pytest.approx(2 / 3), 1: 0.0, 2: 0.5}
    assert scores["acc_rt"] == pytest.approx(1 / 3) and scores["acc_ut"] == 0.5
    assert scores["acc_rt_micro"] == 0.5 and scores["acc_ut_micro"] == 0.5


def test_a_mean_over_no_images_is_none():
    scores = UnlearningAccuracy(keep_in_memory=True).compute(predictions=[0], references=[0], forget_ids=[2])
    assert scores["acc_ut"] is None and scores["acc_ut_micro"] is None


def test_the_metric_loads_from_its_folder_without_a_network(tmp_path):
    folder = os.path.join(os.path.dirname(zspag_hf.__file__), "metrics", "unlearning_accuracy")
    metric = evaluate.load(folder, cache_dir=str(tmp_path))
    scores = metric.compute(predictions=np.array(PREDICTIONS), references=np.array(REFERENCES), forget_ids=[2])
    assert scores["acc_ut"] == 0.5
