"""Every option of an unlearning run, on top of transformers' TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from transformers import TrainingArguments

from .errors import UnlearningError, check_choice, transformers_errors
from .hub.models import HubOptions
from .methods import METHODS
from .pipeline.attacks import ATTACKS
from .pipeline.influence import SOLVERS
from .trainer.option_checks import VARIANTS, check_options
from .trainer.reads import FEW_LABELS, SURE, TARGETS, unread

# The paper's literal form: what it states, and METHODS' choice where it is silent. Applied to options left unset.
PAPER = {
    "adaptive": False,
    "constraint": "hard",
    "energy_threshold": 0.99,
    "subspace_merge": "literal",
    "proxy_policy": "second",
    "pseudo_label": "paper",
    "prior": "renormalised",
    "tilt": "influence",
    "influence_solver": "cg",
    "learning_rate": 0.01,
    "num_train_epochs": 10,
}
ADAPTIVE = {
    "adaptive": True,
    "constraint": "soft",
    "subspace_merge": "gram",
    "proxy_policy": "quota",
    "pseudo_label": "prior",
    "prior": "renormalised",
    "tilt": "influence",
    "influence_solver": "kfac",
    "num_train_epochs": 1,
}


@dataclass
class UnlearningConfig(TrainingArguments):
    """Options of :class:`zspag_hf.UnlearningTrainer`.

    The defaults need no tuning: learning rate, damping, the share of the deep layers and the end of training are chosen
    within the run from the forget set and its proxies alone. An option that is given is kept; ``variant="paper"`` sets
    the literal ZS-PAG of arXiv 2507.21738 (hard projection, fixed rate, fixed epochs).

    Attributes:
        given: the options as they were given, before those left unset were filled in.

    Raises:
        UnlearningError: an option outside its range or choices.
    """

    output_dir: str = field(default="outputs/unlearned", metadata={"help": "Where the unlearned model is written."})
    forget_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes to forget: label names as in the model's config, or their ids."}
    )
    method: str = field(
        default="zspag",
        metadata={"help": f"One of {', '.join(METHODS)}."},
    )
    with_retain: bool | None = field(
        default=None, metadata={"help": "Train on retained data too, in a method that can; unset: where it must."}
    )
    max_retain_samples: int | None = field(
        default=None, metadata={"help": "Use at most so many retained images, drawn at random."}
    )
    variant: str = field(
        default="adaptive", metadata={"help": "adaptive (the default), or paper: the literal form of arXiv 2507.21738."}
    )
    adaptive: bool | None = field(
        default=None, metadata={"help": "Choose step size, damping, scope and stopping from held-out proxies."}
    )
    forget_views: int = field(
        default=0, metadata={"help": "Random crops to take of each forget image; use some tens for a few images."}
    )
    holdout_share: float = field(
        default=0.3, metadata={"help": "Share of the forget images kept to judge by, in (0, 1). Adaptive runs only."}
    )
    attack: str = field(default="pgd", metadata={"help": f"Attack that makes the proxies: {', '.join(ATTACKS)}."})
    attack_eps: float | None = field(
        default=None, metadata={"help": "Radius of the attack in [0, 1] pixel units; unset for the attack's own."}
    )
    attack_steps: int | None = field(default=None, metadata={"help": "Steps at most; unset for the attack's own."})
    proxy_policy: str | None = field(
        default=None, metadata={"help": "quota: proxies for every retained class; second: the literal eq. 2."}
    )
    proxies_per_class: int = field(
        default=100, metadata={"help": "Proxies per retained class, the paper's n_adv, with proxy_policy='quota'."}
    )
    max_proxies: int = field(default=1000, metadata={"help": "Bound on all training proxies together."})
    constraint: str | None = field(
        default=None,
        metadata={"help": "soft: damp what proxies use; hard: leave their subspace alone exactly; none."},
    )
    energy_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Share of the proxies' energy that sets rank (hard) or damping (soft), in (0, 1]. Unset: chosen."
        },
    )
    subspace_merge: str | None = field(
        default=None,
        metadata={
            "help": "gram: one Gram matrix a layer; hard form alone: literal, eq. 3-4 by stacked SVDs, or random."
        },
    )
    scope: str = field(
        default="auto",
        metadata={"help": "auto: whole network as far as proxies allow, then the head; all: whole network; head only."},
    )
    proxy_budget: float = field(
        default=0.01,
        metadata={"help": "How far outputs on held-out proxies may move: mean KL in nats, over retained classes."},
    )
    proxy_weight: float = field(
        default=3.0,
        metadata={"help": "Weight of keeping the original outputs on training proxies, in adaptive runs; 0 for none."},
    )
    feature_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of drawing forget images' last features to proxies', in adaptive runs; 0 for none."},
    )
    pseudo_label: str | None = field(
        default=None,
        metadata={"help": "Targets of the forget images: prior: prior x exp(influence / tau); paper: eq. 7-10."},
    )
    prior: str | None = field(
        default=None,
        metadata={"help": "renormalised original softmax (unset), its second_best class, or uniform."},
    )
    tilt: str | None = field(
        default=None, metadata={"help": "influence (unset); similarity of the head's rows; or none."}
    )
    tilt_temperature: float = field(default=5.0, metadata={"help": "tau, in standard deviations of the influence."})
    influence_sign: str = field(
        default="eq10", metadata={"help": "eq10: labels of small influence gain, as printed; upweight: the opposite."}
    )
    influence_solver: str | None = field(
        default=None, metadata={"help": f"Inverse-Hessian product: {', '.join(SOLVERS)}."}
    )
    influence_damping: float = field(default=0.01, metadata={"help": "Damping lambda of that product."})
    max_memory_gb: float = field(
        default=4.0,
        metadata={"help": "Bound on the Gram matrices held at once, in 1e9 bytes."},
    )
    image_column_name: str = field(default="image", metadata={"help": "Image column of the data sets."})
    label_column_name: str = field(default="label", metadata={"help": "Label column of the data sets."})
    label_offset: int | None = field(
        default=None, metadata={"help": "Added to data set label ids, for a model with a background class in front."}
    )

    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model's repository on the Hub."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where files from the Hub are kept."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that the model's repository brings along. Read it first."}
    )
    allow_pickled_weights: bool = field(
        default=False,
        metadata={"help": "Also load pytorch_model.bin, a pickle. torch unpickles tensors alone."},
    )
    hub_create_pr: bool = field(
        default=False, metadata={"help": "Push as a pull request in place of a commit to the branch."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id of the data, or a folder of parquet files or images."}
    )

    # TrainingArguments with other defaults
    learning_rate: float | None = field(default=None, metadata={"help": "Unset: chosen within the run."})
    num_train_epochs: float | None = field(default=None, metadata={"help": "Epochs of a fixed run; unset: 10."})
    max_steps: int = field(default=-1, metadata={"help": "Optimizer steps at most; adaptive runs stop by 1000."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Forget images a step and device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images a batch in evaluation."})
    optim: str | None = field(
        default=None,
        metadata={"help": "Optimizer; sgd unless the method has another."},
    )
    optim_args: str | None = field(
        default=None, metadata={"help": 'Of the optimizer, for example "momentum=0.9"; unset: as the method has them.'}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "0 unless the method has another."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Learning rate schedule."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 for none."})
    hub_strategy: str = field(default="end", metadata={"help": "Must stay end: earlier pushes still remember."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints during training."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin batches in memory, for a GPU."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: images are read by name."})

    def __post_init__(self):
        self.given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        check_choice("variant", self.variant, VARIANTS)
        check_choice("method", self.method, METHODS)
        if isinstance(self.forget_classes, (str, int, float)):
            self.forget_classes = [self.forget_classes]
        if self.adaptive and self.num_train_epochs is not None:
            raise UnlearningError(
                f"an adaptive run ends by itself, not after num_train_epochs={self.num_train_epochs!r}: give max_steps,"
                " or adaptive=False with num_train_epochs."
            )
        preset = dict(PAPER if self.variant == "paper" else ADAPTIVE)
        fixed_constraint = self.constraint in ("hard", "none")
        method = METHODS[self.method]
        if self.method != "zspag":
            preset |= {"constraint": "none"}
            if all(getattr(self, name) is None for name in TARGETS):
                preset |= dict.fromkeys(TARGETS)  # the method's own
        if self.adaptive is False or fixed_constraint or self.method != "zspag" or self.num_train_epochs is not None:
            preset |= {"adaptive": False} | self.published(FEW_LABELS)
        if self.prior == SURE:
            preset |= {"tilt": "none"}
        preset |= {"with_retain": method.needs_retain}
        preset |= {name: value for name, value in (("optim", "sgd"), ("weight_decay", 0.0)) if name not in preset}
        for name, value in preset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.adaptive and self.max_steps == -1:  # transformers' own word for no limit
            self.max_steps = 1000
        if self.energy_threshold is None and not self.adaptive:
            self.energy_threshold = 0.99 if self.constraint == "hard" else 0.999
        check_options(self)
        chosen_later, self.learning_rate = self.learning_rate is None, self.learning_rate or 0.0
        with transformers_errors():
            super().__post_init__()
        if chosen_later:
            self.learning_rate = None
        if self.mixed_precision not in ("no", "bf16"):
            raise UnlearningError(
                f"mixed precision {self.mixed_precision!r} needs its gradients scaled, or rounds too much for the"
                " constraint: give bf16=True, or leave it off."
            )
        # UnlearningTrainer applies it itself: accelerate would wrap the model, and every reading and score with it
        self.bf16, self.mixed_precision = self.mixed_precision == "bf16", "no"

    def complete(self, num_labels: int) -> None:
        """The method's published options for so many labels, where they are not given."""
        if self.method != "zspag":
            usual = self.published(FEW_LABELS)
            for name, value in self.published(num_labels).items():
                if self.given[name] is None and getattr(self, name) == usual[name]:  # else it was set afterwards
                    setattr(self, name, value)

    def published(self, num_labels: int) -> dict:
        """The method's settings for so many labels, in the form that is asked for."""
        method = METHODS[self.method]
        retained = method.needs_retain if self.with_retain is None else self.with_retain
        return method.retained_settings(num_labels) if retained else method.settings(num_labels)

    @property
    def hub(self) -> HubOptions:
        """How the model is read from the Hub."""
        return replace(self.other_hub, revision=self.model_revision)

    @property
    def other_hub(self) -> HubOptions:
        """How models to compare with are read: ``model_revision`` is the model's alone."""
        return HubOptions(None, self.hub_token, self.cache_dir, self.trust_remote_code, self.allow_pickled_weights)

    @property
    def by_influence(self) -> bool:
        """Whether targets are made by influence."""
        return self.pseudo_label == "paper" or (self.pseudo_label == "prior" and self.tilt == "influence")

    def but(self, **changes) -> UnlearningConfig:
        """The options as they were given, with some changed. Not carried over are choices of an earlier run, targets to
        another method, which has its own, and options that the changes leave unread."""
        values = self.given | changes
        check_choice("method", values["method"], METHODS)
        if values["method"] != self.method:
            values |= {name: None for name in TARGETS if name not in changes}
        dropped = unread(values) - set(changes)
        return type(self)(**{name: value for name, value in values.items() if name not in dropped})
