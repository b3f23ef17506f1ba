"""The options of methods: what they are by default and where published, that no copy loses one, what is refused, and
that a run decides on copies of its own."""

import copy
import json
import pickle
from dataclasses import fields, replace

import pytest
import torch
import yaml
from tiny import config, images, tiny_model, tiny_processor, trainer
from transformers import Trainer, TrainingArguments

from zspag_hf import METHODS, UnlearningError, UnlearningReport, UnlearningTrainer
from zspag_hf.config import RECIPE, Option
from zspag_hf.methods import (
    Confined,
    Proxies,
    Targets,
    badt,
    boundary_shrink,
    gkt,
    l1_sparse,
    mixunlearn,
    neggrad,
    scrub,
    ssd,
    unsc,
)

OTHER = {  # option -> a value that is no method's default
    "learning_rate": 0.3,
    "num_train_epochs": 2.5,
    "optim": "adafactor",
    "optim_args": "momentum=0.5",
    "weight_decay": 0.25,
    "attack": "cw",
    "attack_eps": 0.25,
    "attack_steps": 3,
    "proxies_per_class": 7,
    "max_proxies": 9,
    "constraint": "soft",
    "energy_threshold": 0.5,
    "subspace_merge": "random",
    "targets": "uniform",
    "tilt": "none",
    "influence_sign": "upweight",
    "with_retain": True,
    "max_retain_samples": 5,
    "sparsity": 0.25,
    "share": 0.5,
    "dispersion": 2.0,
    "holdout_share": 0.4,
    "scope": "head",
    "proxy_budget": 0.5,
    "proxy_weight": 0.0,
    "depth_weight": 2.5,
    "feature_weight": 2.5,
}


@pytest.fixture(scope="module")
def material():
    """What every trainer of this file is made of."""
    return {"model": tiny_model(), "forget_dataset": images([2] * 4), "processing_class": tiny_processor()}


def names_of(kind):
    """Names of a method's options."""
    return [one.name for one in fields(kind)]


def changed(kind, name):
    """Options with which that of a name may have another value: a choice may need another to mean anything."""
    usual = kind()
    value = OTHER[name] if name != "proxy_policy" else ("second" if usual.proxy_policy == "quota" else "quota")
    value = "influence" if name == "tilt" and usual.tilt == "none" else value
    needed = {}
    if issubclass(kind, Confined) and (
        name == "energy_threshold" or (name in names_of(Proxies) and not usual.makes_proxies)
    ):
        needed = {"constraint": "soft"}
    if name == "proxies_per_class":
        needed = {"proxy_policy": "quota"} | needed
    if name == "constraint" and usual.to_dict().get("subspace_merge") != "gram":
        needed = {"subspace_merge": "gram"}
    if name == "subspace_merge":
        needed = {"constraint": "hard"}
    if name in ("tilt", "influence_sign") and usual.tilt == "none" and usual.targets != "paper":
        needed = {"targets": "renormalised", "tilt": "influence"}
    if name in ("tilt", "influence_sign") and usual.tilt == "similarity":
        needed = {"tilt": "influence"}
    if name == "tilt" and usual.targets == "paper":
        needed = {"targets": "renormalised"}
    if name == "max_retain_samples" and "with_retain" in names_of(kind):
        needed = {"with_retain": True}
    return needed | {name: value}


@pytest.mark.parametrize("name", METHODS)
def test_no_copy_loses_an_option(name):
    kind = METHODS[name]
    every = [{}, *(changed(kind, option) for option in names_of(kind))]
    for given in every:
        method = kind(**given)
        assert method.given() == {n: v for n, v in given.items() if v != getattr(kind(), n)}, given
        assert list(method.to_dict()) == names_of(kind)
        copies = {
            "to_dict": kind(**method.to_dict()),
            "replace": replace(method),
            "replaced": replace(kind(), **given),
            "JSON": kind(**json.loads(json.dumps(method.to_dict()))),
            "YAML": kind(**yaml.safe_load(yaml.safe_dump(method.to_dict()))),
            "pickle": pickle.loads(pickle.dumps(method)),
            "deepcopy": copy.deepcopy(method),
        }
        for how, other in copies.items():
            assert other == method and type(other) is kind and repr(other) == repr(method), (given, how)
        assert (method == kind()) is (method.given() == {})


def out_of_range(usual, known):
    """Values that an option's choices and bounds leave out; True is 1, which may be the default."""
    if known.choices is not None:
        return ["nope"]
    if not known.bounds:
        return []
    beyond = {"above": 0, "least": -1, "below": 0, "most": 1}
    values = [bound + beyond[side] for side, bound in known.bounds.items() if side != "whole"]
    values += ["many", True, float("nan"), *([1.5] if known.bounds.get("whole") else [])]
    return [value for value in values if value != usual]


@pytest.mark.parametrize("name", METHODS)
def test_what_is_outside_of_choices_and_bounds_is_named(name):
    kind, checked = METHODS[name], 0
    for one in fields(kind):
        known = one.metadata["help"]
        assert isinstance(known, Option) and known.endswith("."), "every option has its help"
        for value in out_of_range(one.default, known):
            with pytest.raises(UnlearningError) as caught:
                kind(**changed(kind, one.name) | {one.name: value})
            message = str(caught.value)
            assert message.startswith(f"{one.name}={value!r} "), message
            mends = known.choices or [str(bound) for side, bound in known.bounds.items() if side != "whole"]
            assert "is not a" in message or all(mend in message for mend in mends), message
            checked += 1
    assert checked or name == "gkt"


@pytest.mark.parametrize("optim", ["nope", "lomo", "galore_adamw_layerwise"])
def test_an_optimizer_is_refused_in_a_method_as_in_the_config(tmp_path, material, optim):
    with pytest.raises(UnlearningError, match=f"{optim}.*(Mend that option|use sgd or adamw_torch)") as in_config:
        config(tmp_path, optim=optim)
    with pytest.raises(UnlearningError) as in_method:
        UnlearningTrainer(args=config(tmp_path), method=METHODS["salun"](optim=optim), **material)
    assert str(in_method.value) == str(in_config.value)


COMBINATIONS = [  # options of one method that say nothing, or contradict each other -> what the error says of the mend
    ("zspag", {"attack": "fgsm", "attack_steps": 5}, "attack_steps=5: fgsm takes one step; use attack='pgd'"),
    ("zspag", {"proxy_policy": "second", "proxies_per_class": 9}, "proxies_per_class=9.*give proxy_policy='quota'"),
    ("trw", {"targets": "second_best"}, "tilt='similarity' would change nothing.*Give tilt='none'"),
    ("zspag", {"scope": "head", "depth_weight": 1.0}, "depth_weight=1.0 would change nothing.*scope='auto'"),
    ("trw", {"targets": "paper"}, "tilt='similarity' would change nothing.*targets='renormalised'"),
    ("zspag_paper", {"constraint": "soft"}, "subspace_merge='truncated' yields bases.*give subspace_merge='gram'"),
    ("salun", {"subspace_merge": "random"}, "subspace_merge='random'.*or constraint='hard'"),
    ("salun", {"attack_eps": 0.5}, "attack_eps=0.5 would change nothing, as SalUn.*constraint='soft'"),
    ("finetune", {"energy_threshold": 0.5}, "energy_threshold=0.5 would change nothing.*or leave it out"),
    (
        "zspag_paper",
        {"constraint": "none", "subspace_merge": "gram", "energy_threshold": 0.5},
        "energy_threshold=0.5 would",
    ),
    ("salun", {"influence_sign": "eq10"}, "influence_sign='eq10' would change nothing.*tilt='influence'"),
    ("salun", {"max_retain_samples": 5}, "max_retain_samples=5 would change nothing.*with_retain=True"),
]


@pytest.mark.parametrize(("name", "given", "message"), COMBINATIONS)
def test_an_option_that_would_change_nothing_is_refused_with_the_mend(name, given, message):
    with pytest.raises(UnlearningError, match=message):
        METHODS[name](**given)


class TestConfig:
    """Options of a run that a method may have decided."""

    GIVEN = {name: OTHER[name] for name in RECIPE} | {"max_steps": 5}

    @pytest.mark.parametrize("name", METHODS)
    def test_what_a_method_cannot_honour_is_refused_in_the_constructor(self, tmp_path, material, name):
        kind = METHODS[name]
        for option, value in self.GIVEN.items():
            args = config(tmp_path, **{option: value})
            if option in names_of(kind):
                own, run_args = kind().completed(args, 5)
                assert getattr(own, option) == value
                assert TrainingArguments("x", **{option: getattr(run_args, option)}).to_dict()[option] == value
            elif option == "max_steps" and kind.trains:
                assert kind().completed(args, 5)[1].max_steps == value
            else:
                refusal = f"{option}={value!r} means nothing to {kind.__name__}: .*([Gg]ive|leave)"
                with pytest.raises(UnlearningError, match=refusal):
                    UnlearningTrainer(args=args, method=name, **material)

    def test_epochs_of_the_default_method_are_refused_with_both_ways_out(self, tmp_path, material):
        message = "num_train_epochs=3 means nothing to ZSPAG: .* Give max_steps, or method='zspag_paper'"
        with pytest.raises(UnlearningError, match=message):
            UnlearningTrainer(args=config(tmp_path, num_train_epochs=3), **material)

    def test_an_optimizers_arguments_stay_with_it_and_go_with_another(self, tmp_path):
        tuned = METHODS["finetune"](optim_args="momentum=0.5")
        assert tuned.completed(config(tmp_path, optim="sgd"), 5)[1].optim_args == "momentum=0.5"
        own, args = tuned.completed(config(tmp_path, optim="adamw_torch"), 5)
        assert own.optim_args is None and args.optim_args is None

    def test_a_schedule_without_its_optimizer_is_refused(self, tmp_path, material):
        schedule = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([torch.zeros(1)], 0.1))
        with pytest.raises(UnlearningError, match="ConstantLR comes without its optimizer: give both"):
            UnlearningTrainer(args=config(tmp_path), method="zspag_paper", optimizers=(None, schedule), **material)

    def test_gkt_takes_no_optimizer(self, tmp_path, material):
        given = torch.optim.SGD([torch.zeros(1)], 0.1)
        with pytest.raises(UnlearningError, match="GKT steps by itself and cannot take SGD"):
            UnlearningTrainer(args=config(tmp_path), method="gkt", optimizers=(given, None), **material)

    @pytest.mark.parametrize("name", ["fisher", "ssd", "gkt"])
    def test_options_of_trainers_loop_are_refused_where_there_is_none(self, tmp_path, name):
        given = {"lr_scheduler_type": "linear", "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "bf16": True}
        given |= {"warmup_steps": 5, "adam_beta1": 0.8}
        for option, value in given.items():
            with pytest.raises(UnlearningError, match=f"{option}={value!r} means nothing to {METHODS[name].__name__}"):
                METHODS[name]().check(config(tmp_path, **{option: value}))
            METHODS["finetune"]().check(config(tmp_path, **{option: value}))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"lr_scheduler_type": "linear"}, "lr_scheduler_type='linear' means nothing to ZSPAG.*zspag_paper"),
            ({"save_strategy": "best"}, "would choose by test data"),
        ],
    )
    def test_what_the_default_cannot_roll_back_is_refused(self, tmp_path, material, given, message):
        with pytest.raises(UnlearningError, match=message):
            UnlearningTrainer(args=config(tmp_path, **given), **material)

    @pytest.mark.parametrize("name", METHODS)
    def test_two_values_of_one_option_are_refused_and_one_given_twice_is_taken(self, tmp_path, material, name):
        kind, tried = METHODS[name], set(names_of(METHODS[name])) & set(RECIPE)
        for option in tried:
            value = OTHER[option]
            another = {"optim": "adagrad", "optim_args": "momentum=0.25"}.get(option, 0.125)
            method, args = kind(**{option: value}), config(tmp_path, **{option: another})
            message = f"{option} is {value!r} in the method and {another!r} in the config: give one"
            with pytest.raises(UnlearningError, match=message):
                UnlearningTrainer(args=args, method=method, **material)
            method.check(config(tmp_path, **{option: value}))
        assert tried or name in ("fisher", "ssd")

    def test_arguments_of_one_optimizer_are_not_handed_to_another(self, tmp_path):
        own, args = METHODS["salun"](with_retain=True).completed(config(tmp_path, optim="adamw_torch"), 5)
        assert own.optim == "adamw_torch" and own.optim_args is None and args.optim_args is None
        own, args = METHODS["salun"](with_retain=True).completed(config(tmp_path), 5)
        assert own.optim_args == args.optim_args == "momentum=0.9"


@pytest.mark.parametrize("labels", [5, 100])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_s_options_are_transformers_own_to_read(tmp_path, name, labels):
    own, args = METHODS[name]().completed(config(tmp_path), labels)
    assert type(args.learning_rate) is float and args.learning_rate >= 0
    read = {option: getattr(args, option) for option in (*RECIPE, "max_steps")}
    theirs = TrainingArguments(str(tmp_path), use_cpu=True, **read)
    assert {option: getattr(theirs, option) for option in read} == read
    kind, options = Trainer.get_optimizer_cls_and_kwargs(theirs)
    assert kind([torch.zeros(1, requires_grad=True)], **options).param_groups[0]["lr"] == args.learning_rate
    for option, value in own.to_dict().items():
        if option in RECIPE and (name, option) not in (("zspag", "learning_rate"), ("zspag_paper", "num_train_epochs")):
            assert value == getattr(args, option), option


SGD = {"optim": "sgd", "optim_args": None, "weight_decay": 0.0}
MOMENTUM = SGD | {"optim_args": "momentum=0.9"}
DECAYED = MOMENTUM | {"weight_decay": 5e-4}
PUBLISHED = [  # method, form, labels -> options; of CIFAR-10 or of CIFAR-100 where there are two
    ("zspag_paper", {}, (5, 100), SGD | {"learning_rate": 0.12, "energy_threshold": 0.98}),
    ("unsc", {}, (5, 20), SGD | {"learning_rate": 0.04, "num_train_epochs": 25, "energy_threshold": 0.99}),
    ("unsc", {}, (21, 100), SGD | {"learning_rate": 0.04, "num_train_epochs": 20, "constraint": "hard"}),
    ("random_labels", {}, (5, 100), SGD | {"learning_rate": 0.01, "num_train_epochs": 10}),
    ("neggrad", {}, (5, 20), SGD | {"learning_rate": 5e-5, "num_train_epochs": 30}),
    ("neggrad", {}, (21, 100), SGD | {"learning_rate": 8e-5, "num_train_epochs": 30}),
    ("neggrad", {"with_retain": True}, (5, 100), SGD | {"learning_rate": 0.01, "num_train_epochs": 10}),
    ("badt", {}, (5, 100), {"optim": "adamw_torch", "learning_rate": 1e-4, "num_train_epochs": 1, "weight_decay": 0.0}),
    ("salun", {}, (5, 20), SGD | {"learning_rate": 1e-4, "num_train_epochs": 8, "sparsity": 0.5}),
    ("salun", {}, (21, 100), SGD | {"learning_rate": 5e-4, "num_train_epochs": 5, "sparsity": 0.5}),
    ("salun", {"with_retain": True}, (5, 100), DECAYED | {"learning_rate": 0.013, "num_train_epochs": 10}),
    ("boundary_shrink", {}, (5, 20), MOMENTUM | {"learning_rate": 1e-3, "num_train_epochs": 15}),
    ("boundary_shrink", {}, (21, 100), MOMENTUM | {"learning_rate": 1e-4, "num_train_epochs": 35}),
    ("boundary_expand", {}, (5, 100), MOMENTUM | {"learning_rate": 1e-5, "num_train_epochs": 10}),
    ("delete", {}, (5, 100), MOMENTUM | {"learning_rate": 1e-4, "num_train_epochs": 20}),
    (
        "spotter",
        {},
        (5, 100),
        DECAYED | {"learning_rate": 1e-4, "num_train_epochs": 10, "share": 0.7},
    ),
    ("gkt", {}, (5, 100), {"learning_rate": 1e-3}),
    ("scrub", {}, (5, 100), DECAYED | {"learning_rate": 5e-4, "num_train_epochs": 3}),
    ("finetune", {}, (5, 100), DECAYED | {"learning_rate": 0.01, "num_train_epochs": 10}),
    ("l1_sparse", {}, (5, 100), DECAYED | {"learning_rate": 0.01, "num_train_epochs": 10}),
    ("amun", {}, (5, 100), DECAYED | {"learning_rate": 0.01, "num_train_epochs": 10}),
    ("amun_advonly", {}, (5, 100), DECAYED | {"learning_rate": 0.01, "num_train_epochs": 10}),
    ("trw", {}, (5, 100), SGD | {"learning_rate": 0.01, "num_train_epochs": 10}),
    ("mixunlearn", {}, (5, 100), SGD | {"learning_rate": 1e-3, "num_train_epochs": 10}),
    ("mixup_unlearn", {}, (5, 100), SGD | {"learning_rate": 1e-3, "num_train_epochs": 10}),
    ("retrain", {}, (5, 20), {"optim": "adamw_torch", "learning_rate": 1e-3, "num_train_epochs": 100}),
    ("random_labels", {"constraint": "hard"}, (5,), {"energy_threshold": 0.99}),
    ("random_labels", {"constraint": "soft"}, (5,), {"energy_threshold": 0.999}),
    ("retrain", {}, (21, 100), {"optim": "adamw_torch", "weight_decay": 0.05, "num_train_epochs": 200}),
]


class TestPublished:
    """Where a paper or its code has numbers, they are the ones of a run that is given none."""

    def test_recipes_by_form_and_number_of_labels(self, tmp_path):
        for name, form, counts, expected in PUBLISHED:
            for labels in counts:
                own, args = METHODS[name](**form).completed(config(tmp_path), labels)
                assert {option: getattr(own, option) for option in expected} == expected, (name, form, labels)
                recipe = {option: getattr(args, option) for option in expected if option in RECIPE}
                assert recipe == {option: expected[option] for option in recipe}, (name, form, labels)
        assert {name for name, *_ in PUBLISHED} == METHODS.keys() - {"zspag", "fisher", "ssd"}

    def test_constants(self):
        expected = {
            badt: {"RETAIN_SHARE": 0.3},
            boundary_shrink: {"BOUND": 0.1},
            gkt: {"PSEUDO_BATCHES": 4000, "STUDENT_STEPS": 10, "THRESHOLD": 0.01, "ATTENTION": 250, "CLIP": 5},
            l1_sparse: {"WEIGHT": 5e-4},
            mixunlearn: {"MIX_ALPHA": 0.75, "SHARPNESS": 0.3, "INTERVAL": 4, "MOMENTUM": 0.999},
            neggrad: {"RETAIN_WEIGHT": 0.95},
            scrub: {"GAMMA": 0.99, "KL_WEIGHT": 0.001, "TEMPERATURE": 4, "MAX_EPOCHS": 2},
            ssd: {"ALPHA": 10, "LAMBDA": 1},
            unsc: {"IMAGES_PER_CLASS": 100},
        }
        for module, constants in expected.items():
            assert {name: getattr(module, name) for name in constants} == constants, module.__name__

    def test_targets_that_are_not_named_are_the_method_s_own(self):
        own = {name: (m.targets, m.tilt) for name, kind in METHODS.items() if isinstance(m := kind(), Targets)}
        assert own == {
            "zspag_paper": ("paper", "none"),
            "random_labels": ("random", "none"),
            "salun": ("random", "none"),
            "trw": ("renormalised", "similarity"),
            "unsc": ("second_best", "none"),
        }

    def test_the_paper_s_form_is_as_printed_but_for_the_sign(self):
        paper = METHODS["zspag_paper"]()
        assert (paper.constraint, paper.subspace_merge, paper.proxy_policy) == ("hard", "truncated", "quota")
        assert (paper.targets, paper.influence_sign, paper.proxies_per_class) == ("paper", "upweight", 100)


class TestRun:
    """A run decides on copies of its own."""

    @pytest.mark.parametrize("name", ["zspag", "salun"])
    def test_what_the_user_gave_is_left_as_it_was_and_the_report_has_what_was_chosen(self, tmp_path, name):
        few = {"proxies_per_class": 4, "attack_eps": 0.5} if name == "zspag" else {}
        method, args = METHODS[name](**few), config(tmp_path, max_steps=2)
        before = copy.deepcopy((vars(method), args.to_dict(), method, args))
        job = UnlearningTrainer(tiny_model(), args, images([2] * 12), method=method, processing_class=tiny_processor())
        job.train()
        after = (vars(method), args.to_dict(), method, args)
        assert all(mine == theirs for mine, theirs in zip(after, before, strict=True))
        assert args.learning_rate == args.num_train_epochs == args.weight_decay == -1 and args.optim is None
        chosen = job.report.method_options
        assert chosen == job.method.to_dict() and job.method is not method
        assert chosen["learning_rate"] == job.args.learning_rate > 0
        if name == "zspag":
            assert 0 < chosen["energy_threshold"] <= 1
        else:
            assert (chosen["learning_rate"], chosen["num_train_epochs"], chosen["weight_decay"]) == (1e-4, 8, 0.0)
        given = job.report.given
        assert given == given | {"max_steps": 2, "forget_classes": ["cat"], **few} and given.keys().isdisjoint(RECIPE)
        job.report.save(str(tmp_path))
        assert UnlearningReport.load(str(tmp_path)).method_options == chosen

    def test_a_training_leaves_the_trainer_s_own_method_as_it_was(self, tmp_path):
        job = trainer(tmp_path, max_steps=2)
        completed = job.completed_method.to_dict()
        job.train()
        assert job.completed_method.to_dict() == completed and job.method is not job.completed_method
