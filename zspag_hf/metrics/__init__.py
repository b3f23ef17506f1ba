"""Metrics as ``evaluate.Metric`` modules, loadable offline: ``evaluate.load("<this folder>/unlearning_accuracy")``."""
