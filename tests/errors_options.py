"""Bad options: what UnlearningConfig refuses when it is made."""

from errors_case import Case, option

FIXED = {"adaptive": False}

CHOICES = [
    option("attack='fgms'", "'pgd'", attack="fgms"),
    option("attack=['pgd']", "'pgd'", attack=["pgd"]),
    option("method='forgetful'", "'random_labels'", method="forgetful"),
    option("variant='fast'", "'adaptive'", variant="fast"),
    option("constraint='firm'", "'soft', 'hard', 'none'", constraint="firm"),
    option("scope='tail'", "'head'", scope="tail"),
    option("prior='flat'", "'uniform'", prior="flat"),
    option("tilt='left'", "'influence'", tilt="left"),
    option("influence_solver='svd'", "'kfac'", influence_solver="svd"),
    option("influence_sign='plus'", "'eq10'", influence_sign="plus"),
    option("proxy_policy='third'", "'quota'", proxy_policy="third"),
    option("pseudo_label='hard'", "'prior'", pseudo_label="hard"),
    option("subspace_merge='sum'", "'gram'", subspace_merge="sum"),
]

RANGES = [
    option("learning_rate='1e-3'", "in YAML write 1.0e-3", learning_rate="1e-3"),
    option("learning_rate=inf", "a finite number above 0", learning_rate=float("inf")),
    option("learning_rate=0.0", "above 0", learning_rate=0.0),
    option("holdout_share=1.0", "above 0 and below 1", holdout_share=1.0),
    option("energy_threshold=0", "above 0 and at most 1", energy_threshold=0),
    option("attack_eps=nan", "a finite number above 0", attack_eps=float("nan")),
    option("attack_steps=2.5", "a whole number at least 1", attack_steps=2.5),
    option("proxies_per_class=0", "at least 1", proxies_per_class=0),
    option("max_proxies=0", "at least 1", max_proxies=0),
    option("proxy_budget=0.0", "above 0", proxy_budget=0.0),
    option("proxy_weight=-1.0", "at least 0", proxy_weight=-1.0),
    option("feature_weight=True", "is not a number", feature_weight=True),
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
    option("weight_decay=-0.1", "at least 0", weight_decay=-0.1),
]

TOGETHER = [
    option("num_train_epochs=3", "give max_steps", adaptive=True, num_train_epochs=3),
    option("'hard'", "leave adaptive unset", adaptive=True, constraint="hard"),
    option("'random_labels'", "leave it unset", adaptive=True, method="random_labels", constraint="soft"),
    option("attack_steps=5", "attack='pgd'", attack="fgsm", attack_steps=5),
    option("subspace_merge='literal'", "constraint='hard'", subspace_merge="literal"),
    option("learning_rate=0.1", "Leave it unset", method="ssd", learning_rate=0.1),
    option("with_retain=True", "Leave it unset", method="boundary_shrink", with_retain=True),
    option("with_retain=False", "another method", method="finetune", with_retain=False),
    option("constraint='hard'", "Leave it unset", method="retrain", constraint="hard"),
    option("subspace_merge='random'", "constraint='hard'", subspace_merge="random"),
    option("'adamw_torch'", "adaptive=False with a learning_rate", optim="adamw_torch"),
    option("'linear'", "adaptive=False with a learning_rate", lr_scheduler_type="linear"),
    option("'fp16'", "bf16=True", fp16=True),
    option("auto_find_batch_size=True", "per_device_train_batch_size", auto_find_batch_size=True),
    option("save_strategy='best'", "'steps' or 'epoch'", save_strategy="best"),
    option("gradient_checkpointing=True", "gradient_accumulation_steps", gradient_checkpointing=True),
    option("load_best_model_at_end=True", "leave it off", load_best_model_at_end=True),
    option("hub_revision='v2'", "leave hub_revision", hub_create_pr=True, hub_revision="v2"),
]

EXACT = [
    option("tf32=True", "leave it off", tf32=True),
    option("torch_compile=True", "leave it off", torch_compile=True),
    option("fp16_full_eval=True", "leave it off", fp16_full_eval=True),
    option("fsdp='full_shard'", "leave it out", fsdp="full_shard"),
    option("deepspeed='zero.json'", "leave it out", deepspeed="zero.json"),
    option("dataloader_drop_last=True", "leave it off", dataloader_drop_last=True),
    option("optim='lomo'", "adamw_torch", optim="lomo", **FIXED),
    option("remove_unused_columns=True", "leave it False", remove_unused_columns=True),
    option("hub_strategy='every_save'", "'end'", push_to_hub=True, hub_strategy="every_save"),
]

UNREAD = [
    option("attack_eps=0.2", "where proxies are made", method="random_labels", attack_eps=0.2),
    option("max_proxies=9", "where proxies are made", method="unsc", max_proxies=9),
    option("energy_threshold=0.9", "under a constraint", method="salun", energy_threshold=0.9),
    option("prior='second_best'", "'random_labels', 'salun'", method="neggrad", prior="second_best"),
    option("prior='uniform'", "pseudo_label='prior'", pseudo_label="paper", prior="uniform"),
    option("tilt='none'", "where classes are forgotten", method="salun", tilt="none", forget_classes=None),
    option("tilt_temperature=2.0", "tilt='influence'", tilt="none", tilt_temperature=2.0),
    option("tilt_temperature=3.0", "tilt='influence'", prior="second_best", tilt_temperature=3.0),
    option("tilt='influence'", "tilt='none'", prior="second_best", tilt="influence"),
    option("attack='fgsm'", "where proxies are made", method="unsc", prior="uniform", tilt="influence", attack="fgsm"),
    option("influence_damping=0.5", "'identity'", influence_solver="identity", influence_damping=0.5),
    option("influence_solver='cg'", "by influence", method="trw", influence_solver="cg"),
    option("proxy_budget=0.1", "in adaptive runs", constraint="hard", proxy_budget=0.1),
    option("scope='head'", "by zspag", method="finetune", scope="head"),
    option("max_retain_samples=9", "with retained data", max_retain_samples=9),
    option("proxies_per_class=9", "proxy_policy='quota'", proxy_policy="second", proxies_per_class=9),
    option("weight_decay=0.1", "'fisher', 'gkt', 'ssd'", method="fisher", weight_decay=0.1),
    option("optim='adamw_torch'", "Trainer's loop", method="gkt", optim="adamw_torch"),
    option("max_steps=9", "not by 'fisher', 'ssd'", method="ssd", max_steps=9),
]

OF_TRANSFORMERS = [
    option("nope is not a valid SchedulerType", "'constant'", lr_scheduler_type="nope", **FIXED),
    option("nope is not a valid OptimizerNames", "'sgd'", optim="nope", **FIXED),
    option("sometimes is not a valid IntervalStrategy", "'epoch'", eval_strategy="sometimes"),
    option("warmup_steps = -1", "warmup_steps >= 0", warmup_steps=-1),
]

CASES: list[Case] = [*CHOICES, *RANGES, *TOGETHER, *EXACT, *UNREAD, *OF_TRANSFORMERS]
