"""Every option of an unlearning run, on top of transformers' TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from transformers import TrainingArguments

from .attacks import ATTACKS
from .checks import check_choice, check_range, transformers_errors
from .errors import UnlearningError
from .influence import SOLVERS
from .loading import HubOptions
from .methods import METHODS
from .proxies import POLICIES
from .pseudo_labels import PRIORS, SIGNS, TILTS
from .reads import FEW_LABELS, SURE, TARGETS, WHERE, unread

VARIANTS = ("adaptive", "paper")
CONSTRAINTS = ("soft", "hard", "none")
SCOPES = ("auto", "all", "head")
MERGES = ("gram", "literal", "random")

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

POSITIVE, COUNT, WEIGHT = {"above": 0}, {"least": 1, "whole": True}, {"least": 0}
RANGES = {
    "holdout_share": {"above": 0, "below": 1},
    "max_memory_gb": POSITIVE,
    "energy_threshold": {"above": 0, "most": 1},
    "attack_eps": POSITIVE,
    "attack_steps": COUNT,
    "proxies_per_class": COUNT,
    "max_proxies": COUNT,
    "proxy_budget": POSITIVE,
    "proxy_weight": WEIGHT,
    "feature_weight": WEIGHT,
    "tilt_temperature": POSITIVE,
    "influence_damping": POSITIVE,
    "max_retain_samples": COUNT,
    "forget_views": {"least": 0, "most": 1000, "whole": True},
    "learning_rate": POSITIVE,
    "num_train_epochs": POSITIVE,
    "max_steps": COUNT,
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "dataloader_num_workers": {"least": 0, "whole": True},
    "weight_decay": WEIGHT,
    "seed": {"least": 0, "most": 2**32 - 1, "whole": True},
}


@dataclass
class UnlearningConfig(TrainingArguments):
    """Options of :class:`zspag_hf.UnlearningTrainer`.

    The defaults need no tuning: learning rate, damping, the share of the deep layers and the end of training are chosen
    within the run from the forget set and its proxies alone. An option that is given is kept; ``variant="paper"`` sets
    the literal ZS-PAG of arXiv 2507.21738 (hard projection, fixed rate, fixed epochs).

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
    proxies_per_class: int = field(default=100, metadata={"help": "Proxies per retained class; the paper's n_adv."})
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
        self._given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
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
        self.check_options()
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
                if self._given[name] is None and getattr(self, name) == usual[name]:  # else it was set afterwards
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
        values = self._given | changes
        check_choice("method", values["method"], METHODS)
        if values["method"] != self.method:
            values |= {name: None for name in TARGETS if name not in changes}
        dropped = unread(values) - set(changes)
        return type(self)(**{name: value for name, value in values.items() if name not in dropped})

    def check_options(self) -> None:
        """Raise an UnlearningError for any option outside its choices or range."""
        check_choice("attack", self.attack, ATTACKS)
        check_choice("proxy_policy", self.proxy_policy, POLICIES)
        check_choice("constraint", self.constraint, CONSTRAINTS)
        check_choice("subspace_merge", self.subspace_merge, MERGES)
        check_choice("scope", self.scope, SCOPES)
        if self.pseudo_label is not None:  # else the method has its own
            check_choice("pseudo_label", self.pseudo_label, ("prior", "paper"))
            check_choice("prior", self.prior, PRIORS)
            check_choice("tilt", self.tilt, TILTS)
            if (self.prior, self.pseudo_label) == (SURE, "prior") and self.tilt != "none":
                raise UnlearningError(
                    f"tilt={self.tilt!r}: prior={SURE!r} is one class, which no tilt changes. Give tilt='none', or"
                    " another prior."
                )
        check_choice("influence_sign", self.influence_sign, SIGNS)
        check_choice("influence_solver", self.influence_solver, SOLVERS)
        self.check_numbers()
        if self.adaptive and self.constraint != "soft":
            raise UnlearningError(
                f"adaptive=True works on the soft constraint, not on {self.constraint!r}: leave adaptive unset."
            )
        if self.attack == "fgsm" and self.attack_steps not in (None, 1):
            raise UnlearningError(f"attack_steps={self.attack_steps}: fgsm takes one step; use attack='pgd' for more.")
        self.check_adaptive()
        self.check_method()
        self.check_read()
        self.check_exact()
        if self.constraint == "soft" and self.subspace_merge in ("literal", "random"):
            raise UnlearningError(
                f"subspace_merge={self.subspace_merge!r} yields bases, and constraint='soft' is made of none: use"
                " constraint='hard'."
            )
        if self.remove_unused_columns:
            raise UnlearningError(
                "remove_unused_columns=True would drop the images before they are read: leave it False."
            )

    def check_numbers(self) -> None:
        """Refuse numbers out of range, also those of transformers that would fail, or do nothing, much later."""
        may_be_unset = {f.name for f in fields(self) if f.default is None}
        for name, bounds in RANGES.items():
            value = getattr(self, name)
            if not (value is None and name in may_be_unset) and not (name == "max_steps" and value == -1):
                check_range(name, value, **bounds)

    def check_adaptive(self) -> None:
        """Refuse what an adaptive run cannot judge by or roll back."""
        if not self.adaptive:
            return
        if self.method != "zspag":
            raise UnlearningError(f"adaptive=True belongs to method='zspag', not to {self.method!r}: leave it unset.")
        given = {"optim": self.optim, "lr_scheduler_type": self.lr_scheduler_type, "optim_args": self.optim_args}
        for (name, value), needed in zip(given.items(), ("sgd", "constant", None), strict=True):
            if value != needed:
                raise UnlearningError(
                    f"an adaptive run needs {name}={needed!r}, not {value!r}: rollback and step size assume plain SGD"
                    " at a constant rate. Give adaptive=False with a learning_rate to use another."
                )
        if str(self.save_strategy) in ("best", "SaveStrategy.BEST"):
            raise UnlearningError(
                "save_strategy='best' would save in the middle of a round, before it is judged: give 'steps' or 'epoch'"
                " in an adaptive run."
            )
        if self.load_best_model_at_end:
            raise UnlearningError(
                "load_best_model_at_end=True would choose by test data: leave it off in an adaptive run."
            )

    def check_method(self) -> None:
        """Refuse data that the method must not see or cannot do without, and a constraint that means nothing to it."""
        method = METHODS[self.method]
        if self.with_retain and not (method.needs_retain or method.takes_retain):
            raise UnlearningError(
                f"with_retain=True: method={self.method!r} has no form that reads retained data. Leave it unset."
            )
        if method.needs_retain and not self.with_retain:
            raise UnlearningError(
                f"with_retain=False: method={self.method!r} cannot work without retained data. Leave it unset, or give"
                " another method."
            )
        if self.constraint != "none" and not method.constrainable:
            raise UnlearningError(
                f"constraint={self.constraint!r}: method={self.method!r} begins with new weights, which no constraint"
                " can keep near the old ones. Leave it unset."
            )

    def check_read(self) -> None:
        """Refuse an option that would change nothing."""
        usual = {f.name: f.default for f in fields(self)}
        for name in sorted(unread(self._given)):
            if self._given[name] != usual[name]:
                raise UnlearningError(
                    f"{name}={self._given[name]!r} would change nothing in this run of method={self.method!r}: it is"
                    f" read {WHERE[name]}. Leave it unset."
                )

    def check_exact(self) -> None:
        """Refuse what would bypass the constraint or make it inexact, leave images out, and pushes that would leak."""
        for name in ("tf32", "torch_compile", "fp16_full_eval", "bf16_full_eval"):
            if getattr(self, name):
                raise UnlearningError(f"{name}=True makes the constraint or the evaluation inexact: leave it off.")
        for name in ("fsdp", "deepspeed"):
            if getattr(self, name):
                raise UnlearningError(
                    f"{name}={getattr(self, name)!r} shards the weights that the constraint must see whole: leave it"
                    " out. For FSDP version 2 launch with 'accelerate_configs/fsdp2.yaml'."
                )
        if self.auto_find_batch_size:
            raise UnlearningError(
                "auto_find_batch_size=True would change what the result depends on: leave it off, and give"
                " per_device_train_batch_size."
            )
        if self.gradient_checkpointing:
            raise UnlearningError(
                "gradient_checkpointing=True does nothing in eval mode, which unlearning trains in: leave it off, lower"
                " per_device_train_batch_size and raise gradient_accumulation_steps."
            )
        if self.dataloader_drop_last:
            raise UnlearningError("dataloader_drop_last=True would leave out images to forget: leave it off.")
        if any(part in str(self.optim) for part in ("lomo", "layerwise")):
            raise UnlearningError(
                f"optim={str(self.optim)!r} updates weights during the backward pass, past the constraint: use sgd or"
                " adamw_torch."
            )
        if self.hub_create_pr and self.hub_revision is not None:
            raise UnlearningError(
                "hub_create_pr=True opens a pull request on the main branch: leave"
                f" hub_revision={self.hub_revision!r} out."
            )
        if self.push_to_hub and str(self.hub_strategy) not in ("end", "HubStrategy.END"):
            raise UnlearningError(
                f"hub_strategy={str(self.hub_strategy)!r} would upload checkpoints that still remember: use 'end'."
            )
