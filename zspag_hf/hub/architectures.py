"""Which model types of ``AutoModelForImageClassification`` cannot be unlearned here, why, and what to do instead. Every
other one can; tests/cases.py has a tiny model of each."""

from ..errors import UnlearningError

REFUSED_TYPES: dict[str, tuple[str, str]] = {  # model type -> why, and the mend
    "dinat": (
        "transformers computes its attention by functions that the package natten dropped in version 0.20",
        "Give a Swin or FocalNet fine-tuned on the same data.",
    ),
    "imagegpt": (
        "it reads indices of colour clusters, from which no gradient passes to the pixels, so there are no proxies",
        "Give a ViT fine-tuned on the same data.",
    ),
    "pp_lcnet": (
        "its output holds no logits, and its image processor swaps red and blue after it has normalised them",
        "Wrap a module that swaps them first and returns the logits: zspag_hf.hub.adapter.ModuleClassifier.",
    ),
    "shieldgemma2": (
        "it is a language model that answers whether an image breaks a policy, and has no classes to forget",
        "Give an image classifier with a label for each class.",
    ),
    "siglip2": (
        "it reads patches with a mask and a grid of each image's own shape, not pixels",
        "Give a SigLIP 2 of fixed resolution (such as siglip2-base-patch16-224): its model type is 'siglip'.",
    ),
    "timm_wrapper": (
        "its image processor is a timm transform, which does not tell how it normalises",
        "Wrap the network that timm builds: zspag_hf.hub.adapter.ModuleClassifier.",
    ),
}
OTHER_PROBLEMS = ("regression", "multi_label_classification")


def check_architecture(model_type: str | None, problem_type: str | None = None) -> None:
    """Refuse a type in ``REFUSED_TYPES``, and outputs that are no distribution over classes, by what a config says."""
    if model_type in REFUSED_TYPES:
        why, mend = REFUSED_TYPES[model_type]
        raise UnlearningError(f"a model of the type {model_type!r} cannot be unlearned: {why}. {mend}")
    if problem_type in OTHER_PROBLEMS:
        raise UnlearningError(
            f"a model for {problem_type!r}, as its config says, gives no distribution over classes, which pseudo-labels"
            " are. Give one for 'single_label_classification'."
        )
