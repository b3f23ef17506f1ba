"""Options of a run: they round-trip, tell what was given, never tell the token, and refuse what means nothing here."""

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser, TrainingArguments

from zspag_hf import UnlearningConfig, UnlearningError
from zspag_hf.config import PRIVATE, RECIPE, REFUSED, UNSET, Option, check_fields, option, told

TOKEN = "hf_SecretThatNobodySees"
MANY: dict[str, Any] = {  # a value of every kind that an option has, and every option that is resolved on the way
    "output_dir": "some/where",
    "forget_classes": ["cat", "dog"],
    "forget_views": 7,
    "label_offset": 1,
    "max_memory_gb": 0.5,
    "learning_rate": 0.25,
    "num_train_epochs": 2.5,
    "optim": "adamw_torch",
    "optim_args": "betas=(0.8, 0.9)",
    "weight_decay": 0.0,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "adam_beta2": 0.9,
    "bf16": True,
    "eval_strategy": "steps",
    "eval_steps": 5.0,
    "save_strategy": "steps",
    "save_steps": 5.0,
    "load_best_model_at_end": True,
    "metric_for_best_model": "acc_ut",
    "greater_is_better": False,
    "report_to": ["tensorboard"],
    "accelerator_config": {"even_batches": False},
    "include_for_metrics": ["loss"],
    "debug": "underflow_overflow",
    "logging_steps": 5.0,
    "disable_tqdm": True,
    "push_to_hub": True,
    "hub_private_repo": True,
    "use_cpu": True,
    "seed": 3,
}
CASES = {"default": {}, "many": MANY, "token": MANY | {"hub_token": TOKEN}, "one class": {"forget_classes": "cat"}}
WRONG: dict[str, Any] = {  # a value that is not the default, of the type that transformers takes
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2},
    "deepspeed": "zero.json",
    "parallelism_config": "tp",
    "label_smoothing_factor": 0.1,
    "label_names": ["labels"],
    "neftune_noise_alpha": 5.0,
    "liger_kernel_config": {"rope": True},
    "include_num_input_tokens_seen": "all",
    "length_column_name": "size",
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "eval_do_concat_batches": False,
    "optim_target_modules": ["head"],
    "train_sampling_strategy": "group_by_length",
}


def through_yaml(config):
    return type(config)(**yaml.safe_load(yaml.safe_dump(config.to_dict())))


COPIES = {
    "to_dict": lambda config: type(config)(**config.to_dict()),
    "replace": dataclasses.replace,
    "JSON": lambda config: type(config)(**json.loads(config.to_json_string())),
    "YAML": through_yaml,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


class TestRoundTrip:
    @pytest.mark.parametrize("options", CASES.values(), ids=CASES)
    def test_every_copy_equals_the_original_and_its_own_copy(self, options):
        config = UnlearningConfig(**options)
        for name, made in COPIES.items():
            again = made(config)
            assert again == config and again is not config, name
            assert again.to_dict() == config.to_dict() and again.given() == config.given(), name
            assert made(again) == again, f"{name}, twice"

    def test_the_values_are_those_that_were_given(self):
        config = UnlearningConfig(**MANY)
        resolved = {"accelerator_config", "debug"}  # filled up by transformers, made a list
        held = config.to_dict()
        assert {name: held[name] for name in MANY if name not in resolved} == {
            name: value for name, value in MANY.items() if name not in resolved
        }

    def test_replace_changes_what_it_names_and_nothing_else(self):
        config = UnlearningConfig(**MANY)
        other = dataclasses.replace(config, seed=4, optim=None)
        differing = {name for name, value in config.to_dict().items() if other.to_dict()[name] != value}
        assert differing == {"seed", "optim"} and config.seed == 3
        with pytest.raises(UnlearningError, match="seed=-1"):
            dataclasses.replace(config, seed=-1)

    def test_what_is_unset_stays_unset_of_the_types_that_transformers_has(self):
        """A run writes what it decides into its own copy."""
        config = UnlearningConfig()
        assert {name: getattr(config, name) for name in RECIPE} == {
            **dict.fromkeys(("learning_rate", "num_train_epochs", "weight_decay"), UNSET),
            **dict.fromkeys(("optim", "optim_args")),
        }

    def test_configs_of_other_options_differ(self):
        assert UnlearningConfig() != UnlearningConfig(seed=1) != UnlearningConfig(seed=1, adam_beta1=0.8)

    def test_one_class_needs_no_list(self):
        assert UnlearningConfig(forget_classes="cat").forget_classes == ["cat"]
        assert UnlearningConfig(forget_classes=3).forget_classes == [3]


class TestToken:
    def test_it_is_read_and_never_told(self):
        config = UnlearningConfig(hub_token=TOKEN, forget_classes=["cat"])
        assert config.hub_token == config.hub.token == config.other_hub.token == TOKEN
        texts = [repr(config), str(config), config.to_json_string(), str(config.to_sanitized_dict())]
        texts += [str(made()) for made in (config.to_dict, config.given, config.public, config.keyed)]
        assert not any(TOKEN in text for text in texts)
        assert "hub_token" not in config.to_dict()

    def test_a_copy_in_python_keeps_it_and_a_copy_on_paper_has_none(self):
        config = UnlearningConfig(hub_token=TOKEN)
        for name in ("replace", "deepcopy", "copy"):
            assert COPIES[name](config).hub_token == TOKEN, name
        for name in ("to_dict", "JSON", "YAML"):
            assert COPIES[name](config).hub_token is None, name


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_by_name_with_the_reason(self, name):
        with pytest.raises(UnlearningError) as error:
            UnlearningConfig(**{name: WRONG.get(name, True)})
        assert str(error.value).startswith(f"{name}=") and str(error.value).endswith(REFUSED[name])

    def test_the_defaults_of_all_are_taken_when_they_are_given(self):
        """As a YAML file of every option has them."""
        held = UnlearningConfig().to_dict()
        assert UnlearningConfig(**{name: held[name] for name in REFUSED}) == UnlearningConfig()

    def test_the_table_names_options_of_transformers_and_the_values_here_are_of_no_other(self):
        assert REFUSED.keys() <= {one.name for one in dataclasses.fields(TrainingArguments)}
        assert WRONG.keys() <= REFUSED.keys()

    @pytest.mark.parametrize("name", ["fp16", "no such precision"])
    def test_a_precision_of_accelerate_that_rounds_too_much(self, monkeypatch, name):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", name)
        with pytest.raises(UnlearningError, match=f"mixed precision '{name}'.*give bf16=True"):
            UnlearningConfig(use_cpu=True)

    def test_accelerate_s_own_setting_of_bf16_is_bf16(self, monkeypatch):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        config = UnlearningConfig(use_cpu=True)
        assert config.bf16 and config.mixed_precision == "no", "UnlearningTrainer applies it itself"


class TestGiven:
    def test_nothing_by_default(self):
        assert UnlearningConfig().given() == {}

    def test_options_of_transformers_too_and_nothing_private(self):
        """What the report and the card's command repeat."""
        given = UnlearningConfig(**MANY).given()
        untold = {name for name in MANY if name.startswith(PRIVATE)}
        assert untold == {"output_dir", "push_to_hub", "accelerator_config", "disable_tqdm"}
        assert given.keys() == MANY.keys() - untold
        assert given["adam_beta2"] == 0.9 and given["weight_decay"] == 0.0 and given["bf16"] is True

    def test_whatever_is_false_and_would_not_be_by_default(self):
        options = {
            "greater_is_better": False,
            "hub_private_repo": False,
            "ddp_find_unused_parameters": False,
            "average_tokens_across_devices": False,
            "logging_nan_inf_filter": False,
        }
        given = UnlearningConfig(metric_for_best_model="acc_ut", **options).given()
        assert given == options | {"metric_for_best_model": "acc_ut"}

    def test_they_make_the_same_run_again(self):
        config = UnlearningConfig(**MANY)
        again = UnlearningConfig(**config.given())
        assert again.keyed() == config.keyed()

    def test_the_report_has_this_class_s_own_options_and_those(self):
        public = UnlearningConfig(adam_beta2=0.9, cache_dir="/home/me", dataset_name="/data/me").public()
        assert public["adam_beta2"] == 0.9 and public["forget_views"] == 0 and public["learning_rate"] == UNSET
        assert not any(name.startswith(PRIVATE) for name in public) and "adam_beta1" not in public


class TestKeyed:
    """What a result depends on: the key of stages and checkpoints."""

    KEYED = {
        "forget_views": 2,
        "max_memory_gb": 1.0,
        "learning_rate": 0.1,
        "num_train_epochs": 3,
        "max_steps": 7,
        "optim": "adamw_torch",
        "optim_args": "momentum=0.9",
        "weight_decay": 0.1,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "max_grad_norm": 1.0,
        "adam_beta1": 0.5,
        "gradient_accumulation_steps": 2,
        "bf16": True,
        "seed": 1,
        "data_seed": 1,
    }
    LOOSE = {
        "output_dir": "elsewhere",
        "logging_steps": 1,
        "report_to": ["tensorboard"],
        "log_level": "debug",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "push_to_hub": True,
        "hub_model_id": "user/name",
        "hub_private_repo": True,
        "hub_revision": "v2",
        "hub_token": TOKEN,
        "dataloader_num_workers": 2,
        "per_device_eval_batch_size": 3,
        "disable_tqdm": True,
        "use_cpu": True,
        "cache_dir": "elsewhere",
        "run_name": "mine",
        "resume_from_checkpoint": "true",
    }

    def test_another_value_of_one_is_another_run(self):
        before = UnlearningConfig(use_cpu=True).keyed()
        for name, value in self.KEYED.items():
            after = UnlearningConfig(use_cpu=True, **{name: value}).keyed()
            assert {n for n in after if after[n] != before[n]} == {name}

    def test_another_value_of_the_others_is_not(self):
        before = UnlearningConfig().keyed()
        for name, value in self.LOOSE.items():
            assert UnlearningConfig(**{name: value}).keyed() == before, name

    def test_what_stands_in_the_key_otherwise_is_not_in_it_twice(self):
        """The classes as ids, the images as a checksum, the batch as the global one."""
        options = {"forget_classes": ["dog"], "per_device_train_batch_size": 5, "label_column_name": "fine"}
        assert UnlearningConfig(**options).keyed() == UnlearningConfig().keyed()


class TestOption:
    """One place for an option: type, default, range or choices, help."""

    @dataclasses.dataclass
    class Options:
        speed: float = option(1.0, "How fast.", above=0, most=2)
        count: int | None = option(None, "How many.", least=1, whole=True)
        colour: str = option("red", "Of it", choices=("red", "green"), keyed=False)
        plain: int = 3

        def __post_init__(self):
            check_fields(self)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"speed": 0}, "speed=0 must be above 0 and at most 2"),
            ({"speed": float("nan")}, "speed=nan must be a finite number above 0"),
            ({"speed": "1e-3"}, "speed='1e-3' is not a number (in YAML write 1.0e-3"),
            ({"count": True}, "count=True is not a whole number"),
            ({"count": 2.5}, "count=2.5 must be a whole number at least 1"),
            ({"count": "many"}, "count='many' is not a whole number"),
            ({"colour": "blue"}, "colour='blue' is not one of 'red', 'green'"),
        ],
    )
    def test_a_value_out_of_its_range_or_choices_is_refused(self, options, message):
        with pytest.raises(UnlearningError) as error:
            self.Options(**options)
        assert message in str(error.value)

    def test_the_default_passes_unseen(self):
        assert self.Options().count is None and self.Options(count=1).count == 1

    def test_transformers_parser_shows_the_help_and_reads_the_type(self, capsys):
        parser = HfArgumentParser(self.Options)
        (read,) = parser.parse_args_into_dataclasses(["--speed", "1.5", "--count", "2"])
        assert read == self.Options(speed=1.5, count=2)
        with pytest.raises(SystemExit):
            parser.parse_args(["--help"])
        assert "Of it: red, green." in capsys.readouterr().out

    def test_every_option_of_a_run_says_what_it_is(self):
        own = {one.name: one.metadata.get("help") for one in dataclasses.fields(UnlearningConfig)}
        for name in UnlearningConfig.__annotations__:
            assert own[name], name
            if isinstance(own[name], Option):
                assert own[name][0].isupper() or own[name].startswith("-1"), name
                assert own[name].endswith((".", '".')), name
        assert own["hub_token"].group == "hub" and told("x", private=True).private

    def test_every_option_of_a_run_is_a_command_line_option_with_help(self, capsys):
        parser = HfArgumentParser(UnlearningConfig)
        (config,) = parser.parse_args_into_dataclasses(
            ["--output_dir", "x", "--forget_classes", "cat", "dog", "--learning_rate", "0.5", "--seed", "1"]
        )
        assert config == UnlearningConfig("x", forget_classes=["cat", "dog"], learning_rate=0.5, seed=1)
        with pytest.raises(SystemExit):
            parser.parse_args(["--help"])
        text = capsys.readouterr().out
        assert all(f"--{name}" in text for name in UnlearningConfig.__annotations__)
