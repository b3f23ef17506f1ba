"""Options: one place for each, and those that are true of any run, on top of transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from .errors import UnlearningError, check_choice, check_range, transformers_errors
from .hub.repository import HubOptions

UNSET = -1  # of a number that the method decides, as transformers has it for max_steps
RECIPE = ("learning_rate", "num_train_epochs", "optim", "optim_args", "weight_decay")  # what a method may decide
LOOP = (  # of Trainer's steps alone
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "gradient_accumulation_steps", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "bf16"),
)

INEXACT = "makes the constraint or the evaluation inexact: leave it off."
SHARDED = "shards the weights, whose rows the constraint must see whole: leave it out, and launch without FSDP."
UNREAD = "means nothing here, where {}: leave it out."
LABELS = UNREAD.format("images are trained on distributions over classes")
COLUMNS = UNREAD.format("images are read by the names of their columns")
REFUSED = {  # the one table of options by name: of TrainingArguments, what would do harm or nothing -> why
    **dict.fromkeys(("tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"), INEXACT),
    **dict.fromkeys(("fp16", "fp16_full_eval", "bf16_full_eval"), INEXACT),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), SHARDED),
    **dict.fromkeys(("label_smoothing_factor", "label_names", "neftune_noise_alpha"), LABELS),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config", "use_cache"), UNREAD.format("models read images")),
    **dict.fromkeys(("include_num_input_tokens_seen", "length_column_name"), UNREAD.format("there are no tokens")),
    **dict.fromkeys(
        (f"{kind}_checkpointing{rest}" for kind in ("gradient", "activation") for rest in ("", "_kwargs")),
        "does nothing in eval mode, which unlearning trains in: leave it off, lower per_device_train_batch_size and"
        " raise gradient_accumulation_steps.",
    ),
    "auto_find_batch_size": "would change what the result depends on: leave it off, and give"
    " per_device_train_batch_size.",
    "batch_eval_metrics": "would give compute_metrics a batch at a time, and accuracies need all: leave it off.",
    "dataloader_drop_last": "would leave out images to forget: leave it off.",
    "eval_do_concat_batches": "would give the scores a list of batches, and they need all images at once: leave it on.",
    "hub_always_push": "would upload checkpoints that still remember: leave it off.",
    "ignore_data_skip": "would repeat batches in a resumed run, which then ends elsewhere: leave it off.",
    "optim_target_modules": UNREAD.format("the method says which weights move"),
    "prediction_loss_only": "would leave the scores without answers: leave it off.",
    "remove_unused_columns": "would drop the images before they are read: leave it off.",
    "train_sampling_strategy": UNREAD.format("every image comes once an epoch in a random order"),
}
PRIVATE = (  # beginnings of names of options that hold folders, secrets or accounts, or a terminal sets: never told
    *("output_dir", "cache_dir", "hub_token", "hub_model_id", "push_to_hub", "resume_from_checkpoint", "run_name"),
    *("dataset_name", "project", "trackio_", "accelerator_config", "local_rank", "do_", "disable_tqdm"),
)
UNRELATED = (*PRIVATE, "hub_", "log", "report_to", "save_", "dataloader_", "ddp_", "debug", "skip_", "disable_", "use_")


class Option(str):
    """The help of an option, and all else that is known of it; ``field.metadata["help"]``, which is as much as
    transformers' parser reads.

    Attributes:
        group: title that it stands under in ``--help``; None: shown by ``--help_all`` alone. metavar: its placeholder.
        choices: values that it may have, or None.
        bounds: above, least, below, most, whole: see :func:`zspag_hf.errors.check_range`; empty for no number.
        keyed: whether a result depends on it in this form, so that another value begins a run anew.
        private: whether it may tell which images, or hold a folder: never in a report.
    """

    group: str | None
    metavar: str | None
    choices: tuple[str, ...] | None
    bounds: dict[str, Any]
    keyed: bool
    private: bool


def told(
    text: str,
    *,
    group: str | None = "unlearning",
    metavar: str | None = None,
    choices: Iterable[str] | None = None,
    keyed: bool = True,
    private: bool = False,
    **bounds: Any,
) -> Option:
    """What is known of an option; see :class:`Option`."""
    names = None if choices is None else tuple(choices)
    known = Option(text if names is None else f"{text.rstrip('.')}: {', '.join(names)}.")
    known.group, known.metavar, known.choices, known.bounds = group, metavar, names, bounds
    known.keyed, known.private = keyed, private
    return known


def option(default: Any, text: str, **known: Any) -> Any:
    """A field of a dataclass of options: its type, default, range or choices and help stand in this one place.

    Args:
        known: of :func:`told`.
    """
    return field(default=default, metadata={"help": told(text, **known)})


def check_fields(options: Any) -> None:
    """Check a dataclass of options by what :func:`option` says of each.

    Raises:
        UnlearningError: a value that is not the default, outside its choices or range.
    """
    for one in fields(options):
        value, known = getattr(options, one.name), one.metadata.get("help")
        if isinstance(known, Option) and value != one.default:
            if known.choices is not None:
                check_choice(one.name, value, known.choices)
            if known.bounds:
                check_range(one.name, value, **known.bounds)


def plain(value: Any) -> Any:
    """An option as JSON holds it: enums by their values."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def default_of(one: Field) -> Any:
    """Of a dataclass's field; None where there is none."""
    if one.default_factory is not MISSING:
        return one.default_factory()
    return None if one.default is MISSING else one.default


def is_given(value: Any, default: Any) -> bool:
    """Whether a refused option has another value than the default, where transformers writes False, [], "no" and None
    for one another."""
    return plain(value) != plain(default) and bool(value or default not in (None, "no", "none", "", []))


@dataclass
class UnlearningConfig(TrainingArguments):
    """Options that are true of any run of :class:`zspag_hf.UnlearningTrainer`; those of a method are the method's
    fields (:mod:`zspag_hf.methods`).

    Of learning rate, epochs, optimizer and weight decay each method has its own, published or chosen within the run:
    they are used where these are left at -1 or None. A run writes what it decides into its own copy and the report.

    Raises:
        UnlearningError: an option outside its range or choices, or one of TrainingArguments that means nothing here.
    """

    output_dir: str = option(
        "outputs/unlearned", "Where the results are written.", metavar="FOLDER", group="running", keyed=False
    )
    forget_classes: list[str] | None = option(
        None,
        "Classes to forget: label names as in the model's config, or their ids.",
        metavar="CLASS",
        group="request",
        keyed=False,
    )
    forget_views: int = option(
        0,
        "Random crops to take of each forget image; use some tens for a few images.",
        group="request",
        **{"least": 0, "most": 1000, "whole": True},
    )
    image_column_name: str = option("image", "Image column of the data sets.", group="model and data", keyed=False)
    label_column_name: str = option("label", "Label column of the data sets.", group="model and data", keyed=False)
    trained_label_column: str | None = option(
        None,
        "Column with the label that a forget image was trained under, where that was not its class, as with a backdoor;"
        " unset: what the model's sure answers give away.",
        metavar="COLUMN",
        group="request",
        keyed=False,
    )
    label_offset: int | None = option(
        None,
        "Added to data set label ids, for a model with a background class in front.",
        group="model and data",
        keyed=False,
    )
    dataset_name: str | None = option(
        None,
        "Hub id of the data, or a folder of parquet files or images.",
        metavar="DATA",
        group="model and data",
        keyed=False,
    )
    model_revision: str | None = option(
        None,
        "Branch, tag or commit of the model's repository on the Hub.",
        metavar="REVISION",
        group="model and data",
        keyed=False,
    )
    cache_dir: str | None = option(
        None, "Where files from the Hub are kept.", metavar="FOLDER", group="model and data", keyed=False
    )
    trust_remote_code: bool = option(
        False, "Run code that the model's repository brings along. Read it first.", group="model and data", keyed=False
    )
    allow_pickled_weights: bool = option(
        False,
        "Also load pytorch_model.bin, a pickle. torch unpickles tensors alone.",
        group="model and data",
        keyed=False,
    )
    max_memory_gb: float = option(
        4.0, "Bound on the Gram matrices held at once, in 1e9 bytes.", group="training", above=0
    )
    hub_create_pr: bool = option(False, "Push as a pull request in place of a commit to the branch.", group="hub")
    hub_replace: bool = option(False, "Replace another model that stands in the repository.", group="hub")

    # TrainingArguments with other defaults, or another text
    learning_rate: float = option(UNSET, "-1: the method's own.", group="training", above=0)
    num_train_epochs: float = option(UNSET, "-1: the method's own.", group="training", above=0)
    max_steps: int = option(-1, "Optimizer steps at most; -1 for no limit.", group="training", least=1, whole=True)
    optim: str | None = option(None, "Optimizer; unset: the method's own.", group="training")
    optim_args: str | None = option(
        None, 'Of the optimizer, for example "momentum=0.9"; unset: the method\'s own.', group="training"
    )
    weight_decay: float = option(UNSET, "-1: the method's own.", group="training", least=0)
    lr_scheduler_type: str = option("constant", "Learning rate schedule.", group="training")
    max_grad_norm: float = option(0.0, "Gradient clipping; 0 for none.", group="training", least=0)
    per_device_train_batch_size: int = option(
        32, "Forget images a step and device.", group="training", keyed=False, least=1, whole=True
    )
    gradient_accumulation_steps: int = option(
        1, "Batches whose gradients make one step.", group="training", least=1, whole=True
    )
    dataloader_num_workers: int = option(0, "Processes that prepare batches.", group=None, least=0, whole=True)
    dataloader_pin_memory: bool = option(False, "Pin batches in memory, for a GPU.", group="training")
    save_strategy: str = option("no", "Checkpoints during training.", group="training")
    logging_steps: float = option(50, "Log every so many steps.", group="training")
    per_device_eval_batch_size: int = option(
        128, "Images a batch in evaluation.", group="evaluation", keyed=False, least=1, whole=True
    )
    push_to_hub: bool = option(False, "Publish the result at the end of the run.", group="hub")
    hub_model_id: str | None = option(
        None, "Repository to publish in, made where there is none.", metavar="USER/NAME", group="hub"
    )
    hub_private_repo: bool | None = option(
        None, "Make that repository private. Unset: as the account's default is.", group="hub"
    )
    hub_revision: str | None = option(
        None, "Branch to publish on; unset: the main branch.", metavar="REVISION", group="hub"
    )
    hub_strategy: str = option("end", "Must stay end: earlier pushes still remember.", group=None)
    hub_token: str | None = field(  # neither compared nor shown nor written: a copy by to_dict has none
        default=None,
        repr=False,
        compare=False,
        metadata={
            "help": told(
                "Token for private models, gated data and publishing; unset: the one of `hf auth login`.",
                group="hub",
                metavar="TOKEN",
            )
        },
    )
    seed: int = option(
        42,
        "Draws batches, random views and the held-out images.",
        group="running",
        **{"least": 0, "most": 2**32 - 1, "whole": True},
    )
    use_cpu: bool = option(False, "Compute on the CPU, even where there is a GPU.", group="running")
    disable_tqdm: bool | None = option(None, "No progress bars.", group="running")
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})

    def __post_init__(self):
        if isinstance(self.forget_classes, (str, int, float)):
            self.forget_classes = [self.forget_classes]
        check_fields(self)
        self.check_inherited()
        optim, self.optim = self.optim, self.optim or "sgd"
        with transformers_errors():
            super().__post_init__()
        self.optim = plain(optim)
        precision = vars(self)["mixed_precision"]
        if precision not in ("no", "bf16"):
            raise UnlearningError(
                f"mixed precision {precision!r} needs its gradients scaled, or rounds too much for the"
                " constraint: give bf16=True, or leave it off."
            )
        # UnlearningTrainer applies it itself: accelerate would wrap the model, and every reading and score with it
        self.bf16, self.mixed_precision = precision == "bf16", "no"

    def check_inherited(self) -> None:
        """Refuse options of TrainingArguments that would do harm, or nothing.

        Raises:
            UnlearningError: it names the option and the mend.
        """
        usual = {one.name: default_of(one) for one in fields(type(self))}
        for name, why in REFUSED.items():
            if is_given(getattr(self, name), usual[name]):
                raise UnlearningError(f"{name}={getattr(self, name)!r} {why}")
        if any(part in str(plain(self.optim)) for part in ("lomo", "layerwise")):
            raise UnlearningError(
                f"optim={plain(self.optim)!r} updates weights during the backward pass, past the constraint: use sgd or"
                " adamw_torch."
            )
        if self.hub_create_pr and self.hub_revision is not None:
            raise UnlearningError(
                "hub_create_pr=True opens a pull request on the main branch: leave"
                f" hub_revision={self.hub_revision!r} out."
            )
        if self.push_to_hub and plain(self.hub_strategy) != "end":
            raise UnlearningError(
                f"hub_strategy={plain(self.hub_strategy)!r} would upload checkpoints that still remember: use 'end'."
            )

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, without the token: ``UnlearningConfig(**config.to_dict()) == config``."""
        return {name: value for name, value in super().to_dict().items() if name != "hub_token"}

    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults, but for those that hold folders, secrets or accounts."""
        usual, held = {one.name: plain(default_of(one)) for one in fields(self)}, self.to_dict()
        told = {n: v for n, v in held.items() if n not in REFUSED and not n.startswith(PRIVATE)}
        return {n: v for n, v in told.items() if v not in (usual[n], [])}

    def public(self) -> dict[str, Any]:
        """This class's own options and those that were given, but for folders, secrets and accounts: for the report."""
        return {
            n: v
            for n, v in self.to_dict().items()
            if n in UnlearningConfig.__annotations__ and not n.startswith(PRIVATE)
        } | self.given()

    def keyed(self) -> dict[str, Any]:
        """The options that a result depends on: where one differs, stages and checkpoints are another run's."""
        texts = {one.name: one.metadata.get("help") for one in fields(self)}
        loose = {name for name, text in texts.items() if isinstance(text, Option) and not text.keyed}
        return {n: v for n, v in self.to_dict().items() if n not in loose and not n.startswith(UNRELATED)}

    @property
    def hub(self) -> HubOptions:
        """How the model is read from the Hub."""
        return HubOptions(
            self.model_revision, self.hub_token, self.cache_dir, self.trust_remote_code, self.allow_pickled_weights
        )

    @property
    def other_hub(self) -> HubOptions:
        """How models to compare with are read: ``model_revision`` is the model's alone."""
        return HubOptions(None, self.hub_token, self.cache_dir, self.trust_remote_code, self.allow_pickled_weights)
