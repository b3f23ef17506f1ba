"""Accuracy on retained and on forgotten classes (ZS-PAG, section 4.1)."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """acc_rt and acc_ut: unweighted means over classes of the test accuracy on retained and on forgotten
classes,
as the paper reports them, in [0, 1]. acc_rt: higher is better. acc_ut: lower is better, 0 for a retrained model."""

_CITATION = """@inproceedings{chen2025zspag, title={Zero-Shot Machine Unlearning with Proxy Adversarial Data
Generation}, author={Chen, Huiqiang and Zhu, Tianqing and Yu, Xin and Zhou, Wanlei}, booktitle={IJCAI}, year={2025}}"""

_INPUTS = """predictions: label ids, one an image. references: true label ids. forget_ids: the forgotten label ids.
Returns acc_rt, acc_ut (mean over classes), acc_rt_micro, acc_ut_micro (mean over images) and per_class, a dict from
label id to accuracy; a mean over no images is None."""


class UnlearningAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, forget_ids):
        predictions, references = np.asarray(predictions), np.asarray(references)
        right = predictions == references
        per_class = {int(k): float(right[references == k].mean()) for k in np.unique(references)}
        gone = np.isin(references, list(forget_ids))
        mean = lambda values: float(np.mean(values)) if len(values) else None  # noqa: E731
        return {
            "acc_rt": mean([a for k, a in per_class.items() if k not in set(forget_ids)]),
            "acc_ut": mean([a for k, a in per_class.items() if k in set(forget_ids)]),
            "acc_rt_micro": mean(right[~gone]),
            "acc_ut_micro": mean(right[gone]),
            "per_class": per_class,
        }
