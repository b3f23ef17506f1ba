import pytest
from transformers import HfArgumentParser

from zspag_hf import UnlearningConfig, UnlearningError
from zspag_hf.cli.jobs import BASELINES


def test_every_option_is_a_command_line_option_with_help(capsys):
    parser = HfArgumentParser(UnlearningConfig)
    (config,) = parser.parse_args_into_dataclasses(
        ["--output_dir", "x", "--forget_classes", "cat", "dog", "--attack", "cw", "--learning_rate", "0.5"]
    )
    assert config.forget_classes == ["cat", "dog"] and config.attack == "cw" and config.learning_rate == 0.5
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    own = [name for name in UnlearningConfig.__annotations__ if name not in ("output_dir",)]
    assert all(f"--{name}" in text for name in own)


def test_the_default_is_adaptive_and_leaves_the_choices_open():
    config = UnlearningConfig(output_dir="x")
    assert config.adaptive and config.constraint == "soft"
    assert config.learning_rate is None and config.energy_threshold is None


def test_the_paper_is_one_option_away():
    config = UnlearningConfig(output_dir="x", variant="paper")
    assert not config.adaptive and config.constraint == "hard" and config.subspace_merge == "literal"
    assert config.proxy_policy == "second" and config.pseudo_label == "paper"
    assert config.learning_rate and config.num_train_epochs == 10


def test_one_class_needs_no_list():
    assert UnlearningConfig(output_dir="x", forget_classes="cat").forget_classes == ["cat"]


def test_options_changed_later_start_from_what_was_given():
    config = UnlearningConfig(output_dir="x", forget_classes=["cat"], max_proxies=7, seed=3)
    config.learning_rate, config.energy_threshold = 0.5, 0.9  # as a run writes them
    again = config.but()
    assert again.learning_rate is None and again.energy_threshold is None and again.max_proxies == 7
    paper = config.but(variant="paper")
    assert paper.constraint == "hard" and paper.seed == 3 and paper.forget_classes == ["cat"]


def test_an_option_that_the_changes_leave_unread_is_dropped():
    config = UnlearningConfig(output_dir="x", forget_classes=["cat"], scope="head", proxies_per_class=7, tilt="none")
    other = config.but(method="random_labels")
    assert other.scope == "auto" and other.proxies_per_class == 100
    assert other.tilt is None and other.pseudo_label is None, "another method has its own targets"
    assert config.but(scope="all").tilt == "none"
    assert config.but(method="neggrad", constraint="hard").proxies_per_class == 7, "read under a constraint"
    assert other.but(method="zspag").scope == "auto", "what was dropped stays so"
    with pytest.raises(UnlearningError, match="scope='all' would change nothing"):
        config.but(method="random_labels", scope="all")


def test_targets_that_are_not_named_are_the_method_s_own():
    for method, prior, tilt in [
        ("zspag", "renormalised", "influence"),
        ("trw", "renormalised", "similarity"),
        ("unsc", "second_best", "none"),
        ("salun", None, None),
        ("neggrad", None, None),
    ]:
        config = UnlearningConfig(output_dir="x", method=method, forget_classes=["cat"])
        assert (config.prior, config.tilt) == (prior, tilt)
    config = UnlearningConfig(output_dir="x", method="salun", forget_classes=["cat"], prior="uniform")
    assert (config.pseudo_label, config.tilt) == ("prior", "influence")


@pytest.mark.parametrize("kind", ["few", "all"])
@pytest.mark.parametrize("given", [{}, {"variant": "paper"}, {"pseudo_label": "paper"}, {"prior": "uniform"}])
def test_rows_to_compare_with_are_what_they_are_called_whatever_is_compared(kind, given):
    config = UnlearningConfig(output_dir="x", forget_classes=["cat"], **given)
    rows = {name: config.but(**options) for name, options in BASELINES[kind].items()}
    for name, row in rows.items():
        if name.startswith("random"):
            assert row.pseudo_label is None
        if name.startswith(("second-best", "renormalised")):
            assert row.prior == name.split(",")[0].split(" ")[0].replace("-", "_")
            assert (row.pseudo_label, row.tilt) == ("prior", "none")


def test_what_is_given_is_kept():
    config = UnlearningConfig(output_dir="x", variant="paper", learning_rate=0.3, energy_threshold=0.97)
    assert config.learning_rate == 0.3 and config.energy_threshold == 0.97


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attack": "fgms"}, "attack='fgms' is not one of 'pgd'"),
        ({"method": "forgetful"}, "method='forgetful'"),
        ({"variant": "fast"}, "variant='fast'"),
        ({"constraint": "firm"}, "constraint='firm'"),
        ({"scope": "tail"}, "scope='tail'"),
        ({"prior": "flat"}, "prior='flat'"),
        ({"tilt": "left"}, "tilt='left'"),
        ({"influence_solver": "svd"}, "influence_solver='svd'"),
        ({"influence_sign": "plus"}, "influence_sign='plus'"),
        ({"proxy_policy": "third"}, "proxy_policy='third'"),
        ({"pseudo_label": "x"}, "pseudo_label='x'"),
        ({"subspace_merge": "x"}, "subspace_merge='x'"),
        ({"holdout_share": 1.0}, "holdout_share=1.0 must be above 0 and below 1"),
        ({"energy_threshold": 1.5}, "energy_threshold=1.5"),
        ({"proxies_per_class": 0}, "proxies_per_class=0 must be at least 1"),
        ({"max_proxies": 0}, "max_proxies=0"),
        ({"proxy_budget": 0.0}, "proxy_budget=0.0"),
        ({"proxy_weight": -1.0}, "proxy_weight=-1.0"),
        ({"tilt_temperature": 0.0}, "tilt_temperature=0.0"),
        ({"influence_damping": 0.0}, "influence_damping=0.0"),
        ({"forget_views": -1}, "forget_views=-1"),
        ({"adaptive": True, "constraint": "hard"}, "adaptive=True works on the soft constraint"),
        ({"optim": "adamw_torch"}, "an adaptive run needs optim='sgd', not 'adamw_torch'"),
        ({"lr_scheduler_type": "linear"}, "needs lr_scheduler_type='constant', not 'linear'"),
        ({"fp16": True}, "mixed precision 'fp16'"),
        ({"gradient_checkpointing": True}, "does nothing in eval mode"),
        ({"load_best_model_at_end": True}, "would choose by test data"),
        ({"adaptive": True, "num_train_epochs": 3}, "give max_steps"),
        ({"adaptive": True, "method": "random_labels"}, "adaptive=True belongs to method='zspag'|soft constraint"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3' is not a number"),
        ({"attack_eps": 0.0}, "attack_eps=0.0 must be above 0"),
        ({"attack_steps": -1}, "attack_steps=-1 must be at least 1"),
        ({"attack": "fgsm", "attack_steps": 5}, "fgsm takes one step"),
        ({"tf32": True}, "tf32=True makes the constraint"),
        ({"torch_compile": True}, "torch_compile=True"),
        ({"fp16_full_eval": True}, "fp16_full_eval=True"),
        ({"optim": "lomo", "adaptive": False}, "past the constraint"),
        ({"push_to_hub": True, "hub_strategy": "every_save"}, "checkpoints that still remember"),
        ({"subspace_merge": "literal"}, "use constraint='hard'"),
        ({"remove_unused_columns": True}, "leave it False"),
    ],
)
def test_an_option_out_of_range_is_named_with_the_mend(options, message):
    with pytest.raises(UnlearningError, match=message):
        UnlearningConfig(output_dir="x", **options)
