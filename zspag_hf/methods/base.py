"""What a method is: a dataclass whose fields are its options, with two hooks. Data, loop, report and saving are shared.

Writing one is docs/writing-a-method.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.training_args import OptimizerNames

from ..config import LOOP, RECIPE, UNSET, UnlearningConfig, check_fields, default_of, plain
from ..errors import UnlearningError, transformers_errors
from ..pipeline.classifier import exact_batch_norms, to_unit
from .plan import Plan
from .run import Run

PAIRED = ("proxy_pixels", "proxy_targets")
PLAIN_SGD = {"learning_rate": 0.0, "num_train_epochs": 1.0, "optim": "sgd", "optim_args": None, "weight_decay": 0.0}


@dataclass(kw_only=True)
class Method:
    """Base of every method. A run works on its own copy, so ``prepare`` may keep things on ``self`` for the loss.

    Attributes:
        description: what it does, for the card of a model, whatever its options: Markdown, with a link to its paper.
        forgets: "classes", "images" (whose classes stay), or both: by whether ``forget_classes`` is given.
        needs_retain: whether the method cannot work without retained data. A method that neither needs them nor has an
            option ``with_retain`` that is on never sees any.
        reads_public: whether it can use unlabelled images, where ``public_dataset`` is given.
        trains: whether it takes steps, for ``max_steps`` to bound. loops: whether Trainer's loop takes them.
        refusals: option of :class:`zspag_hf.UnlearningConfig` that it cannot honour -> what to do instead.

    Raises:
        UnlearningError: an option outside its choices or range.
    """

    description: ClassVar[str]
    forgets: ClassVar[tuple[str, ...]] = ("classes",)
    needs_retain: ClassVar[bool] = False
    reads_public: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    loops: ClassVar[bool] = True
    refusals: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self):
        check_fields(self)

    @property
    def reads_retained(self) -> bool:
        """Whether a run reads retained data: it needs them, or is asked to by ``with_retain``."""
        return self.needs_retain

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values: ``type(method)(**method.to_dict()) == method``."""
        return asdict(self)

    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults, but for private ones."""
        told = {one: getattr(one.metadata.get("help"), "private", False) for one in fields(self)}
        held = {one: getattr(self, one.name) for one, private in told.items() if not private}
        return {one.name: value for one, value in held.items() if value != default_of(one)}

    def published(self, num_labels: int) -> dict[str, Any]:
        """Options that are left at None, by the number of labels; their source stands in the method's docstring."""
        return {}

    def described(self) -> list[str]:
        """What the method does with these options, in sentences for the card."""
        return [self.description]

    def check(self, args: UnlearningConfig) -> None:
        """Refuse options of a run that the method cannot honour.

        Raises:
            UnlearningError: it names the option and the mend.
        """
        mine = {one.name: one.default for one in fields(self)}
        asked = {name: plain(getattr(args, name)) for name in (*RECIPE, "max_steps")}
        loose = {} if self.loops else {name: value for name, value in args.given().items() if name in LOOP}
        for name, value in (asked | loose).items():
            if value in (UNSET, None) or name in mine or (name == "max_steps" and self.trains):
                continue
            mend = self.refusals.get(name, "leave it out, or give a method that it means something to")
            raise UnlearningError(f"{name}={value!r} means nothing to {type(self).__name__}: {mend}.")
        for name in RECIPE:
            both = asked[name] not in (UNSET, None) and getattr(self, name, None) not in (None, mine.get(name))
            if both and asked[name] != getattr(self, name):
                raise UnlearningError(
                    f"{name} is {getattr(self, name)!r} in the method and {asked[name]!r} in the config: give one."
                )

    def check_model(self, run: Run) -> None:
        """Refuse a model or images that the method cannot work on, before any expensive work.

        Raises:
            UnlearningError: it says why, and the mend.
        """

    def completed(self, args: UnlearningConfig, num_labels: int) -> tuple[Self, UnlearningConfig]:
        """A run's own copies of method and options: the recipe that is given, or else the method's, in both."""
        published = {n: v for n, v in self.published(num_labels).items() if getattr(self, n) is None}
        own, args = replace(self, **published), copy.copy(args)
        mine = {one.name for one in fields(self)}
        other = plain(args.optim) not in (None, getattr(own, "optim", None))
        if other and args.optim_args is None and "optim_args" in mine:
            setattr(own, "optim_args", None)  # noqa: B010  of another optimizer; not every method has one
        for name in RECIPE:
            asked = getattr(args, name)
            if asked not in (UNSET, None):
                setattr(own, name, asked)
            else:
                value = getattr(own, name, None)
                setattr(args, name, PLAIN_SGD[name] if value is None else value)
        with transformers_errors():
            args.optim = OptimizerNames(args.optim)
        args.check_inherited()  # the method's optimizer as the config's own
        return own, args

    def prepare(self, run: Run) -> Plan:
        """What to train on, and how; called once, before the first step."""
        raise NotImplementedError

    def parts(self, inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The batch as parts whose losses are added up, each with a backward pass of its own: the images and those
        beside them, which one after the other take half the memory of both at once."""
        if "proxy_pixels" not in inputs:
            return [inputs]
        return [
            {name: value for name, value in inputs.items() if name not in PAIRED},
            {name: inputs[name] for name in (*PAIRED, "weights")},
        ]

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Soft cross-entropy between the model's outputs and the targets, weighted by row
        (:class:`zspag_hf.parallel.batches.SharedBatches`)."""
        logits = self.logits(run, model, inputs["pixels"])
        return (inputs["weights"] * F.cross_entropy(logits, inputs["targets"], reduction="none")).sum()

    def logits(self, run: Run, model: torch.nn.Module, pixels: Tensor) -> Tensor:
        """``(n, C)`` through ``model``, the wrapped one that gradients are averaged by; uint8 pixels, or floats in
        [0, 1]."""
        pixels = to_unit(pixels, run.classifier.device)
        with exact_batch_norms(model, len(pixels)):
            return model(pixel_values=run.classifier.normalize(pixels)).logits.float()
