"""Bad options: what UnlearningConfig refuses, what a method refuses, and what the two refuse of one another."""

import os
from pathlib import Path
from unittest import mock

import test_config
from errors_case import Case, of_method, option, unheard
from tiny import config

from zspag_hf.config import REFUSED
from zspag_hf.methods import as_method, find_method

OF_A_RUN = [
    option("learning_rate='1e-3'", "in YAML write 1.0e-3", learning_rate="1e-3"),
    option("learning_rate=inf", "a finite number above 0", learning_rate=float("inf")),
    option("learning_rate=0.0", "above 0", learning_rate=0.0),
    option("forget_views=-1", "at least 0", forget_views=-1),
    option("forget_views=1000000000", "at most 1000", forget_views=10**9),
    option("seed=-1", "at least 0", seed=-1),
    option("seed=4294967296", "at most 4294967295", seed=2**32),
    option("seed=None", "is not a whole number", seed=None),
    option("num_train_epochs=0", "above 0", num_train_epochs=0),
    option("max_steps=0", "at least 1", max_steps=0),
    option("max_steps='many'", "is not a whole number", max_steps="many"),
    option("per_device_train_batch_size=0", "at least 1", per_device_train_batch_size=0),
    option("per_device_eval_batch_size=0", "at least 1", per_device_eval_batch_size=0),
    option("gradient_accumulation_steps=0", "at least 1", gradient_accumulation_steps=0),
    option("dataloader_num_workers=-1", "at least 0", dataloader_num_workers=-1),
    option("weight_decay=-0.1", "at least 0", weight_decay=-0.1),
    option("max_grad_norm=-1.0", "at least 0", max_grad_norm=-1.0),
    option("max_memory_gb=0", "above 0", max_memory_gb=0),
]

HARMFUL = [
    *(
        option(f"{name}=", why.rsplit(": ", 1)[-1], **{name: test_config.WRONG.get(name, True)})
        for name, why in REFUSED.items()
    ),
    option("optim='lomo'", "adamw_torch", optim="lomo"),
    option("optim='galore_adamw_layerwise'", "adamw_torch", optim="galore_adamw_layerwise"),
    option("hub_revision='v2'", "leave hub_revision", hub_create_pr=True, hub_revision="v2"),
    option("hub_strategy='every_save'", "'end'", push_to_hub=True, hub_strategy="every_save"),
]


def in_half_precision(folder: Path):
    with mock.patch.dict(os.environ, {"ACCELERATE_MIXED_PRECISION": "fp16"}):
        return config(folder)


OF_TRANSFORMERS = [
    Case("accelerate's own fp16", in_half_precision, "'fp16'", "give bf16=True"),
    option("nope is not a valid SchedulerType", "'constant'", lr_scheduler_type="nope"),
    option("nope is not a valid OptimizerNames", "'sgd'", optim="nope"),
    option("sometimes is not a valid IntervalStrategy", "'epoch'", eval_strategy="sometimes"),
    option("warmup_steps = -1", "warmup_steps >= 0", warmup_steps=-1),
]

OF_A_METHOD = [
    of_method("attack='fgms'", "'pgd'", attack="fgms"),
    of_method("attack=['pgd']", "'pgd'", attack=["pgd"]),
    of_method("scope='tail'", "'head'", scope="tail"),
    of_method("targets='flat'", "'uniform'", "zspag_paper", targets="flat"),
    of_method("tilt='left'", "'influence'", "zspag_paper", tilt="left"),
    of_method("influence_sign='plus'", "'eq10'", "zspag_paper", influence_sign="plus"),
    of_method("proxy_policy='third'", "'quota'", proxy_policy="third"),
    of_method("constraint='firm'", "'soft', 'hard'", "zspag_paper", constraint="firm"),
    of_method("subspace_merge='sum'", "'gram'", "zspag_paper", subspace_merge="sum"),
    of_method("learning_rate=0.0", "above 0", learning_rate=0.0),
    of_method("learning_rate='fast'", "is not a number", "finetune", learning_rate="fast"),
    of_method("num_train_epochs=0", "above 0", "finetune", num_train_epochs=0),
    of_method("weight_decay=-1", "at least 0", "finetune", weight_decay=-1),
    of_method("holdout_share=1.0", "above 0 and below 1", holdout_share=1.0),
    of_method("energy_threshold=0", "above 0 and at most 1", energy_threshold=0),
    of_method("energy_threshold=1.5", "above 0 and at most 1", "zspag_paper", energy_threshold=1.5),
    of_method("attack_eps=nan", "a finite number above 0", attack_eps=float("nan")),
    of_method("attack_steps=2.5", "a whole number at least 1", attack_steps=2.5),
    of_method("proxies_per_class=0", "at least 1", proxies_per_class=0),
    of_method("max_proxies=0", "at least 1", max_proxies=0),
    of_method("proxy_budget=0.0", "above 0", proxy_budget=0.0),
    of_method("proxy_weight=True", "is not a number", proxy_weight=True),
    of_method("depth_weight=-1.0", "at least 0", depth_weight=-1.0),
    of_method("share=1.5", "at least 0 and at most 1", "spotter", share=1.5),
    of_method("dispersion=-1", "at least 0", "spotter", dispersion=-1),
    of_method("max_retain_samples=0", "at least 1", "scrub", max_retain_samples=0),
]

TOGETHER = [
    of_method("attack_steps=5", "attack='pgd'", attack="fgsm", attack_steps=5),
    of_method("proxies_per_class=9", "proxy_policy='quota'", proxy_policy="second", proxies_per_class=9),
    of_method("subspace_merge='gpm'", "constraint='hard'", "salun", constraint="soft", subspace_merge="gpm"),
    of_method("attack_eps=0.2", "give constraint='soft' or 'hard'", "neggrad", attack_eps=0.2),
    of_method("energy_threshold=0.9", "give constraint='soft' or 'hard'", "salun", energy_threshold=0.9),
    of_method("tilt='similarity'", "Give tilt='none'", "trw", targets="second_best"),
    of_method("tilt='similarity'", "targets='renormalised'", "zspag_paper", tilt="similarity"),
    of_method("influence_sign='eq10'", "tilt='influence'", "salun", influence_sign="eq10"),
    of_method("proxy_weight=3.0", "scope='auto'", scope="head", proxy_weight=3.0),
    of_method("max_retain_samples=9", "with_retain=True", "random_labels", max_retain_samples=9),
]

BY_NAME = [
    Case("no such method", lambda _: find_method("forgetful"), "'forgetful'", "'random_labels'"),
    Case("no module of a method", lambda _: find_method("no_such_module:Mine"), "no_such_module", "Python finds"),
    Case("no class in the module", lambda _: find_method("zspag_hf.methods:Mine"), "'zspag_hf.methods:Mine'", "give"),
    Case("a class of another kind", lambda _: find_method("builtins:int"), "'builtins:int'", "derive it from that"),
    Case("a class for a method", lambda _: as_method(find_method("ssd")), "SSD", "an instance"),
]

OF_BOTH = [
    unheard("num_train_epochs=3", "Give max_steps", "zspag", {"num_train_epochs": 3}),
    unheard("lr_scheduler_type='linear'", "method='zspag_paper'", "zspag", {"lr_scheduler_type": "linear"}),
    unheard("save_strategy='best'", "'steps' or 'epoch'", "zspag", {"save_strategy": "best"}),
    unheard("learning_rate=0.1", "leave it out", "ssd", {"learning_rate": 0.1}),
    unheard("weight_decay=0.1", "leave it out", "fisher", {"weight_decay": 0.1}),
    unheard("max_steps=9", "leave it out", "ssd", {"max_steps": 9}),
    unheard("learning_rate is 0.5", "give one", "salun", {"learning_rate": 0.1}, learning_rate=0.5),
]

CASES: list[Case] = [*OF_A_RUN, *HARMFUL, *OF_TRANSFORMERS, *OF_A_METHOD, *TOGETHER, *BY_NAME, *OF_BOTH]
