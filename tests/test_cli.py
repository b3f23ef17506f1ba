"""The command line: what a user types, sees and gets back. In process where the process is not what is tested."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import NAMES, images, tiny_model, tiny_processor
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification, TrainingArguments

from zspag_hf import METHODS, UnlearningConfig, UnlearningError, UnlearningReport
from zspag_hf.cli import COMMANDS, compare, evaluate, info, main, push, running, unlearn
from zspag_hf.cli.exit_status import status
from zspag_hf.cli.info import describe
from zspag_hf.cli.jobs import DataArguments, Setting
from zspag_hf.cli.parsing import CommandParser, parse_run
from zspag_hf.cli.running import CommandArguments, MethodArguments
from zspag_hf.config import LOOP, RECIPE, Option
from zspag_hf.methods.fisher import Fisher
from zspag_hf.methods.salun import SalUn
from zspag_hf.methods.zspag import ZSPAG
from zspag_hf.report.command import command

REPOSITORY = Path(__file__).parent.parent
FAST = ["--proxies_per_class", "4", "--attack_eps", "0.5", "--max_steps", "10", "--disable_tqdm", "--use_cpu"]
OWN_METHOD = """
from dataclasses import dataclass, field
from zspag_hf.methods import Method

@dataclass(kw_only=True)
class Mine(Method):
    description = "It has options that tell nothing of themselves."
    strength: float = 1.0
    names: list[str] = field(default_factory=list)
    loud: bool = False
    must: int
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, another that was trained otherwise, and data, as a user has them."""
    folder = tmp_path_factory.mktemp("place")
    for name, seed in (("model", 0), ("other", 1)):
        torch.manual_seed(seed)
        tiny_model().save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    (folder / "data").mkdir()
    for split, labels, seed in (("train", [0, 1, 2, 3, 4] * 12, 1), ("test", [0, 1, 2, 3, 4] * 4, 2)):
        images(labels, seed=seed).to_parquet(folder / "data" / f"{split}.parquet")
    return folder


@pytest.fixture
def options(place):
    return [
        *("--model_name_or_path", str(place / "model"), "--dataset_name", str(place / "data")),
        *("--forget_classes", "cat", *FAST),
    ]


@pytest.fixture(scope="module")
def result(place):
    """Folder, stdout and stderr of one run with --json, most of whose options stand in a file."""
    out, printed, told = place / "without-cat", io.StringIO(), io.StringIO()
    (place / "run.yaml").write_text(
        f"model_name_or_path: {place / 'model'}\ndataset_name: {place / 'data'}\nforget_classes: [bee, dog]\n"
        "proxies_per_class: 4\nattack_eps: 0.5\nmax_steps: 10\ndisable_tqdm: true\nuse_cpu: true\nseed: 7\n"
        "max_forget_samples: 12\ngradient_accumulation_steps: 2\nretain_in_evaluation: true\n"
    )
    argv = ["--config", place / "run.yaml", "--forget_classes", "cat", "--retrained_models", place / "other", "--json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told), pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.report.figures.png", lambda figure: b"picture")  # half of the time
        assert main(["unlearn", *map(str, argv), "--output_dir", str(out)]) == 0
    return out, printed.getvalue(), told.getvalue()


def refused(capsys, *argv, code=2):
    """The one line on stderr of a command that ends with a status, without its end."""
    capsys.readouterr()
    assert main([str(text) for text in argv]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    return lines[0]


# ---------------------------------------------------------------------- the top


def test_the_top_level_explains_itself(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and capsys.readouterr().out == text
    assert main(["--version"]) == 0
    assert re.fullmatch(r"zspag-hf \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_an_unknown_command_is_named_with_the_nearest(capsys):
    assert refused(capsys, "nonsense").startswith(
        "zspag-hf: error: there is no command 'nonsense'. Give one of unlearn,"
    )
    assert refused(capsys, "unlern").endswith("Did you mean 'unlearn'?")
    assert refused(capsys, "--nonsense").startswith("zspag-hf: error: unrecognized arguments: --nonsense")


def test_what_needs_no_torch_does_not_wait_for_it():
    """Nor for transformers, numpy or the Hub's client: the help of the top and of push, versions, and typing errors."""
    code = """
import sys
import zspag_hf
from zspag_hf.cli import main

heavy = {"torch", "transformers", "numpy", "huggingface_hub", "datasets"}
assert not heavy & set(sys.modules), "import zspag_hf"
for argv in (["--help"], [], ["--version"], ["nonsense"], ["push", "--help"], ["push", "--nonsense"], ["push"]):
    try:
        main(argv)
    except SystemExit as end:
        assert end.code == 0
    assert not heavy & set(sys.modules), argv
assert zspag_hf.UnlearningError is sys.modules["zspag_hf.errors"].UnlearningError and "METRICS" in dir(zspag_hf)
assert not heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_the_entry_point_is_this_function():
    assert "zspag-hf = zspag_hf.cli:main" in (REPOSITORY / "setup.cfg").read_text()


def test_statuses(capsys, monkeypatch):
    """0, a command's own, 2 for bad input, 130 for Ctrl-C; a fault passes through with its traceback."""

    def raising(error):
        def run():
            raise error

        return run

    assert status(lambda: None) == 0 and status(lambda: 5) == 5
    assert status(raising(UnlearningError("a\nb")), "x: ") == 2
    assert capsys.readouterr().err == "x: error: a b\n"
    assert status(raising(KeyboardInterrupt()), "x: ") == 130
    assert capsys.readouterr().err == "x: interrupted\n"
    with pytest.raises(ZeroDivisionError):
        status(raising(ZeroDivisionError()))
    waited = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("zspag_hf.cli.exit_status.time.sleep", waited.append)
    assert status(raising(UnlearningError("mine alone"))) == 2
    assert waited == [10] and capsys.readouterr().err == "error: mine alone\n"


# ---------------------------------------------------------------------- help


def help_of(capsys, module, *argv):
    """What ``--help`` prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        module.main([*argv, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def shown(text):
    return set(re.findall(r"^ +(?:-h, )?--(\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("module", [unlearn, evaluate, compare, push, info], ids=lambda m: m.__name__)
def test_help_is_grouped_and_fits(module, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200" if module is not push else "100")  # push's parser is argparse's own
    text = help_of(capsys, module)
    assert max(map(len, text.splitlines())) <= 100
    assert "examples:\n  zspag-hf " in text and (module is push or "running:\n" in text)
    assert "--report_to" not in text and "--forget-classes" not in text


def test_help_mentions_every_option_of_the_library_and_help_all_every_one(capsys):
    text = help_of(capsys, unlearn)
    kinds = (DataArguments, MethodArguments, CommandArguments, UnlearningConfig)
    known = {one.name: one.metadata.get("help") for kind in kinds for one in fields(kind)}
    own = {name for name, told in known.items() if isinstance(told, Option) and told.group is not None}
    own -= {"num_train_epochs", "optim", "optim_args", "weight_decay"}  # which the default method cannot honour
    assert own <= shown(text), own - shown(text)
    assert {"forget_classes", "json", "num_processes", "baselines", "config", "method"} <= shown(text)
    assert "Every option of transformers' TrainingArguments works too; --help_all lists them." in text
    with pytest.raises(SystemExit):
        unlearn.main(["--help_all"])
    everything = shown(capsys.readouterr().out)
    names = own | {one.name for one in fields(TrainingArguments) if one.init} - {*RECIPE}
    assert names <= everything, names - everything


def own_options(kind):
    """Those of a method that every run does not have."""
    return {one.name for one in fields(kind)} - {one.name for one in fields(UnlearningConfig)}


def test_help_of_a_method_shows_its_options_and_no_other_methods(capsys):
    every = {name for kind in METHODS.values() for name in own_options(kind)}
    common = shown(help_of(capsys, unlearn)) - own_options(ZSPAG) - {*RECIPE, *LOOP, "max_steps"}
    assert not every & common and {"sparsity", "scope", "targets", "with_retain", "max_retain_samples"} <= every
    for name, kind in METHODS.items():
        honoured = {one.name for one in fields(kind)} & {*RECIPE} | ({"max_steps"} if kind.trains else set())
        loop = {"lr_scheduler_type", "gradient_accumulation_steps", "max_grad_norm"}  # the rest is for --help_all
        honoured |= loop if kind.loops else set()
        assert shown(help_of(capsys, unlearn, "--method", name)) == common | own_options(kind) | honoured, name


def test_help_says_defaults_where_they_say_something(capsys):
    text = " ".join(help_of(capsys, compare).split())
    assert "(default: outputs/compared)" in text and "(default: few)" in text
    assert "None" not in text and "default: False" not in text and "--push_to_hub" not in text


# ---------------------------------------------------------------------- options


@dataclass
class Some:
    many: list[str] | None = None
    number: float = 1.0
    flag: bool = False
    text: str = "a"
    counts: list[int] = field(default_factory=list)


def from_yaml(tmp_path, text, *argv):
    (tmp_path / "run.yaml").write_text(text)
    return CommandParser((Some,), prog="x").parse(["--config", str(tmp_path / "run.yaml"), *argv])[0]


def test_yaml_gives_defaults_that_the_command_line_overrides(tmp_path):
    text = "many: [no, 'null', 3]\nnumber: 1e-3\nflag: true\ntext: null\ncounts: []\n"
    assert from_yaml(tmp_path, text) == Some(["no", "null", "3"], 0.001, True, "a", [])
    assert from_yaml(tmp_path, text, "--number", "2", "--flag", "false", "--many", "x") == Some(["x"], 2.0, False)
    assert from_yaml(tmp_path, "many: one\ncounts: [1, -2]") == Some(["one"], counts=[1, -2])
    assert from_yaml(tmp_path, "# nothing yet\n") == Some()
    assert from_yaml(tmp_path, "text: {a: 1}").text == '{"a": 1}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nmber: 1", "run.yaml: there is no option nmber. Did you mean number?"),
        ("number: x", "run.yaml: argument --number: invalid float value: 'x'"),
        ("number: [1, 2]", "run.yaml: 'number' takes one value, not 2"),
        ("number: 1\nnumber: 2", "run.yaml: 'number' stands there twice"),
        ("many: [[1]]", "the list 'many' holds lists"),
        ("- number", "run.yaml' holds no names with values"),
        ("number: [", "run.yaml' is no valid YAML"),
        ("config: other.yaml", "run.yaml: there is no option config"),
    ],
)
def test_bad_yaml_is_named(text, says, tmp_path):
    with pytest.raises(UnlearningError) as error:
        from_yaml(tmp_path, text)
    assert says in str(error.value)


def test_unknown_options_get_the_nearest_and_none_is_abbreviated(capsys, tmp_path):
    for argv, says in (
        (["--forget_clases", "cat"], "there is no option --forget_clases. Did you mean --forget_classes?"),
        (["--forget-clases=cat"], "there is no option --forget-clases. Did you mean --forget_classes?"),
        (["--forget_cl", "cat"], "there is no option --forget_cl. Did you mean"),
        (["cat"], "'cat' belongs to no option"),
        (["--max_steps", "many"], "argument --max_steps: invalid int value: 'many'"),
        (["--config"], "argument --config: expected one argument"),
        (["--config", tmp_path / "none.yaml"], "none.yaml' cannot be read"),
    ):
        line = refused(capsys, "unlearn", *argv)
        assert line.startswith("zspag-hf unlearn: error: ") and says in line


def test_a_flag_does_not_swallow_what_follows():
    parser = CommandParser((Some,), prog="x")
    parser.add_argument("name", nargs="?")
    some, given = parser.parse(["--flag", "folder", "--text", "b"])
    assert some.flag and given.name == "folder"
    assert not parser.parse(["--flag", "no"])[0].flag


TYPES = (DataArguments, MethodArguments, CommandArguments)


def test_the_method_is_named_on_the_command_line_or_in_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("method: salun\nsparsity: 0.3\nlearning_rate: 1e-3\nforget_classes: [cat]\n")
    *_, config, method = parse_run(TYPES, ["--config", str(tmp_path / "run.yaml"), "--sparsity", "0.4"])
    assert method == SalUn(sparsity=0.4) and config.learning_rate == 0.001 and config.forget_classes == ["cat"]
    (tmp_path / "run.yaml").write_text("method: salun\n")
    *_, method = parse_run(TYPES, ["--config", str(tmp_path / "run.yaml"), "--method=zspag", "--scope", "head"])
    assert method == ZSPAG(scope="head")
    for name, kind in METHODS.items():
        assert parse_run(TYPES, ["--method", name])[-1] == kind(), name


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--sparsity", "0.3"], "there is no option --sparsity for this method, but for salun: give --method, or"),
        (["--method", "salun", "--scope", "head"], "there is no option --scope for this method, but for zspag: give"),
        (["--method", "salun", "--sparsty", "1"], "there is no option --sparsty. Did you mean --sparsity?"),
        (["--method", "salun", "--sparsity", "1"], "sparsity=1.0 must be at least 0 and below 1"),
        (["--method", "salum"], "method='salum' is not one of 'zspag', "),
        (["--method", "no.such:Method"], "method='no.such:Method' cannot be imported"),
        (["--num_train_epochs", "3"], "num_train_epochs=3.0 means nothing to ZSPAG: it takes a number of steps"),
        (["--num_train_epochs", "3"], "Give max_steps, or method='zspag_paper'"),
        (["--scope", "head", "--proxy_budget", "1"], "proxy_budget=1.0 would change nothing with scope='head'"),
        (["--method", "fisher", "--learning_rate", "1"], "learning_rate=1.0 means nothing to Fisher"),
        (["--method", "fisher", "--max_steps", "1"], "max_steps=1 means nothing to Fisher"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_a_method_has_not_are_refused_before_anything_is_loaded(argv, says, capsys):
    for name in ("unlearn", "compare"):
        assert says in refused(capsys, name, "--model_name_or_path", "no/such", "--dataset_name", "no/such", *argv)


def test_options_of_ones_own_method_are_options_as_they_are(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_methods.py").write_text(OWN_METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    with pytest.raises(SystemExit):
        main(["unlearn", "--method", "my_methods:Mine", "--help"])
    assert {"strength", "names", "loud", "must"} < shown(capsys.readouterr().out)
    assert sys.path[-1] == "", "an installed module has precedence over a file of its name"
    argv = ["--method", "my_methods:Mine", "--must", "3", "--names", "a", "b", "--loud"]
    assert parse_run(TYPES, argv)[-1].to_dict() == {"strength": 1.0, "names": ["a", "b"], "loud": True, "must": 3}
    assert parse_run(TYPES, ["--method", "my_methods:Mine", "--must", "3"])[-1].names == []
    assert "--must" in refused(capsys, "unlearn", "--method", "my_methods:Mine")


def test_an_option_of_another_method_in_a_file_is_named_too(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("sparsity: 0.3\n")
    line = refused(capsys, "unlearn", "--config", tmp_path / "run.yaml")
    assert "run.yaml: there is no option sparsity for this method, but for salun: give method, or leave it out" in line


def test_options_of_transformers_fail_in_one_line_too(options, capsys):
    line = refused(capsys, "unlearn", *options, "--save_strategy", "sometimes")
    assert "sometimes" in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["unlearn"], "model_name_or_path"),
        (["unlearn", "--num_processes", "0"], "num_processes=0"),
        (["unlearn", "--baselines", "some"], "baselines='some' is not one of 'none', 'few', 'all'"),
        (["unlearn", "--level", "deep"], "level='deep'"),
        (["unlearn", "--hub_model_id", "user/name"], "without push_to_hub publishes nothing"),
        (["unlearn", "--model_name_or_path", "no/such", "--dataset_name", "x"], "no/such"),
        (["evaluate", "--original", "a"], "pass --original and --unlearned"),
        (["compare", "--baselines", "none"], "nothing to compare with"),
        (["compare", "--push_to_hub"], "nothing can be pushed"),
        (["info"], "zspag-hf info MODEL"),
        (["info", "no/such"], "no/such"),
        (["info", "x", "--forget_images", "1"], "there is no option --forget_images"),
        (["push"], "zspag-hf push FOLDER --hub_model_id USER/NAME"),
        (["push", "nowhere", "--hub_model_id", "user/name"], "there is no folder 'nowhere'"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_status_2(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *argv)
    assert line.startswith(f"zspag-hf {argv[0]}: error: ") and says in line


# ---------------------------------------------------------------------- unlearn, evaluate, compare


def test_unlearn_prints_one_document_and_everything_else_on_stderr(result):
    out, stdout, stderr = result
    document = json.loads(stdout)
    saved = json.loads((out / "unlearning_report.json").read_text())
    assert document["report"] == saved and document["output_dir"] == str(out) and document["url"] is None
    assert "forgotten: cat (12 images)" in stderr and "judged by held-out proxies" in stderr
    assert {"model.safetensors", "README.md", "unlearning_report.html"} <= {path.name for path in out.iterdir()}


def test_the_command_in_the_card_is_the_same_run(result, place, options):
    """It names what was given, but for folders and the other models; BASE and DATA stand for folders."""
    out, _, _ = result
    words = shlex.split(command(UnlearningReport.load(out)).replace("\\\n", " "))
    assert words[:2] == ["zspag-hf", "unlearn"] and not any(str(place) in word for word in words)
    places = {"BASE": str(place / "model"), "DATA": str(place / "data")}
    given = [
        "--max_forget_samples",
        "12",
        "--gradient_accumulation_steps",
        "2",
        "--retain_in_evaluation",
        "--seed",
        "7",
    ]
    again = parse_run(TYPES, [places.get(word, word) for word in words[2:]])
    assert again == parse_run(TYPES, [*options, *given])


def test_no_document_holds_what_stands_for_a_single_image():
    report = UnlearningReport("zspag", "user/model", [{"id": 2, "label": "cat"}], 3, 0)
    report.projection, report.heatmaps = {"x": [1.0], "y": [2.0]}, {"original": [[1.0]]}
    document = running.as_document(report, "out")["report"]
    assert not document["projection"] and not document["heatmaps"]


def test_unlearn_takes_its_options_from_a_file_that_the_command_line_overrides(result):
    report = UnlearningReport.load(result[0])
    assert report.seed == 7 and [known["label"] for known in report.forget_classes] == ["cat"]
    assert report.given["gradient_accumulation_steps"] == 2 and report.given["max_forget_samples"] == 12


def test_unlearn_says_where_the_result_is_and_how_to_publish_it(result, options, capsys, monkeypatch):
    class Done:
        hub_model_id = "user/without-cat"
        is_world_process_zero = staticmethod(lambda: True)
        unlearned = staticmethod(lambda doing: UnlearningReport.load(result[0]))

    monkeypatch.setattr(unlearn, "run", lambda *given: Done)
    assert main(["unlearn", *options, "--output_dir", "out"]) == 0
    printed = capsys.readouterr().out
    assert "forgotten: cat (12 images)" in printed and "publish: zspag-hf push out --hub_model_id" in printed
    assert "chosen" not in printed and f"read:    {Path('out', 'unlearning_report.html')}\n" in printed
    assert main(["unlearn", *options, "--push_to_hub", "--output_dir", "out"]) == 0
    assert re.search(r"hub:     http\S+/user/without-cat\n", capsys.readouterr().out)


def test_a_checkpoint_to_resume_from_is_not_ignored(options, tmp_path, capsys):
    argv = [*options, "--output_dir", tmp_path, "--resume_from_checkpoint", tmp_path / "checkpoint-5"]
    assert main(["unlearn", *map(str, argv)]) == 2
    assert "there is no checkpoint there" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_equals_the_report_of_the_run(result, place, tmp_path, capsys):
    out, stdout, _ = result
    argv = ["evaluate", "--original", place / "model", "--unlearned", out, "--dataset_name", place / "data"]
    argv += ["--forget_classes", "cat", "--retrained_models", place / "other", "--retain_in_evaluation"]
    argv += ["--output_dir", tmp_path / "judged", "--seed", "7", "--disable_tqdm", "--use_cpu", "--json"]
    assert main(list(map(str, argv))) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["report"] == json.loads((tmp_path / "judged" / "unlearning_report.json").read_text())
    of_run = json.loads(stdout)["report"]["models"]
    for name in ("original", "masked", "unlearned", "retrained"):
        for score, value in document["report"]["models"][name].items():
            if isinstance(value, float):
                assert value == pytest.approx(of_run[name][score], abs=1e-5), (name, score)
    assert document["report"]["forget_images"] == 12 and "forgotten: cat" in printed.err


def test_evaluate_and_compare_leave_the_report_of_a_model_alone(result, place, options, capsys):
    out, _, _ = result
    models = ("--original", place / "model", "--unlearned", out)
    for argv in (("evaluate", *models), ("compare", *options)):
        assert "holds a model, whose report would be lost" in refused(capsys, *argv, "--output_dir", out)


@pytest.mark.slow
def test_compare_shows_a_row_for_each_setting_and_saves_no_model(options, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(
        "head only: {scope: head}\nno depth: {depth_weight: 0, seed: 3}\nSalUn: {method: salun, num_train_epochs: 1}\n"
    )
    argv = ["compare", *options, "--baselines", "none", "--settings", str(tmp_path / "settings.yaml")]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows, names = document["report"]["models"], ["head only", "no depth", "SalUn"]
    assert [name for name, row in rows.items() if row] == ["original", "masked", *names, "unlearned"]
    assert all(rows[name]["seconds"] > 0 and rows[name]["acc_rt"] is not None for name in names)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "unlearning_report.json" in names and "figures" in names
    assert not [name for name in names if name.endswith(("safetensors", "config.json", "README.md"))]


def test_a_row_differs_from_the_main_run_in_what_it_names_alone(tmp_path):
    """The main run's recipe is for its own method."""
    (tmp_path / "settings.yaml").write_text(
        "first: {scope: head, seed: 1, learning_rate: 0.5}\n"
        "second: {method: salun, sparsity: 0.3, targets: uniform}\n"
        "third: {method: fisher, max_retain_samples: 9}\n"
    )
    main_config = UnlearningConfig(learning_rate=0.1, max_steps=7, seed=5, max_grad_norm=1, use_cpu=True)
    rows = compare.own_settings(str(tmp_path / "settings.yaml"), ZSPAG(holdout_share=0.5))
    assert rows == {
        "first": Setting(ZSPAG(holdout_share=0.5, scope="head"), {"seed": 1, "learning_rate": 0.5}),
        "second": Setting(SalUn(sparsity=0.3, targets="uniform")),
        "third": Setting(Fisher(max_retain_samples=9)),
    }
    of_rows = [setting.config(main_config, ZSPAG()) for setting in rows.values()]
    assert [config.learning_rate for config in of_rows] == [0.5, -1, -1]
    assert [config.max_steps for config in of_rows] == [7, 7, -1]
    assert [config.seed for config in of_rows] == [1, 5, 5]
    assert [config.max_grad_norm for config in of_rows] == [1, 1, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: {skope: head}", "settings.yaml: a: there is no option skope. Did you mean scope?"),
        ("a: {scope: feet}", "the setting 'a': scope='feet'"),
        ("a: {forget_classes: [dog]}", "there is no option forget_classes"),
        ("a: {output_dir: x}", "there is no option output_dir"),
        ("a: {sparsity: 0.3}", "a: there is no option sparsity for this method, but for salun: give method"),
        ("a: {method: salun, scope: head}", "there is no option scope for this method, but for zspag: give method"),
        ("a: {method: salun, sparsity: 1}", "the setting 'a': sparsity=1.0 must be"),
        ("a: {method: salum}", "the setting 'a': method='salum' is not one of"),
        ("a: {num_train_epochs: 3}", "the setting 'a': num_train_epochs=3.0 means nothing to ZSPAG"),
        ("a: {method: retrain}", "'a' trains on retained data, and there are none: give retain_in_evaluation"),
        ("a: {method: amun}", "'a' cannot stand in one table with ZSPAG, which is to forget classes"),
        ("masked: {scope: head}", "has a row 'masked' already"),
        ("random labels: {scope: head}", "has a row 'random labels' already"),
        ("a: head", "'a' holds no options"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_runs(text, says, options, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(text)
    assert says in refused(capsys, "compare", *options, "--settings", tmp_path / "settings.yaml")


# ---------------------------------------------------------------------- info


def test_info_tells_layers_ledger_and_memory(result, capsys):
    out, _, _ = result
    assert main(["info", "--use_cpu", "--json", str(out)]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    names = [layer["name"] for layer in facts["layers"]]
    # patch embedding, q k v and output, two of the MLP in each of two blocks, and the head
    assert len(names) == 1 + 2 * 6 + 1 and facts["head"] == names[-1] == "classifier"
    assert [c["label"] for entry in facts["history"] for c in entry["classes"]] == ["cat"]
    assert facts["image_shape"] == [3, 8, 8] and facts["labels"] == NAMES
    # distinct inputs: patches (3 * 4 * 4), and in each block q = k = v, output, first and second of the MLP; the head
    widths = [48, *[16, 16, 16, 24] * 2, 16]
    assert facts["distinct_inputs"] == len(widths) and facts["gram_bytes"] == 8 * sum(d * d for d in widths)
    inside = sum(layer["weights"] for layer in facts["layers"])
    assert facts["parameters"] == inside + facts["frozen"]
    assert f"1. {facts['history'][0]['date']}: cat (12 images, zspag)" in printed.err
    assert max(map(len, printed.err.splitlines())) <= 100 + len(str(out))


def test_grouped_convolutions_have_a_gram_matrix_for_each_group():
    """A depthwise convolution of eight 3x3 groups needs 8 * 9 * 9 numbers, not 72 * 72."""
    config = MobileNetV1Config(depth_multiplier=0.25, image_size=32, num_labels=3)
    facts = describe(MobileNetV1ForImageClassification(config).eval(), tiny_processor())
    depthwise = next(layer for layer in facts.layers if layer.groups > 1)
    assert (depthwise.d_in, depthwise.outputs) == (9, depthwise.groups)
    assert facts.gram_bytes == sum(8 * layer.groups * layer.d_in**2 for layer in facts.layers if not layer.shares_input)


# ---------------------------------------------------------------------- push


def test_push_without_a_token_says_how_to_get_one(result, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    line = refused(capsys, "push", result[0], "--hub_model_id", "user/without-cat")
    assert line.startswith("zspag-hf push: error: ") and "hf auth login" in line


# ---------------------------------------------------------------------- several processes

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@needs_gloo
@pytest.mark.slow
def test_two_processes_give_one_document(options, tmp_path, capfd):
    argv = ["unlearn", *options, "--num_processes", "2", "--json", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--per_device_train_batch_size", "4"]) == 0
    printed = capfd.readouterr()
    report = json.loads(printed.out)["report"]
    assert report["models"]["unlearned"]["acc_rt"] is not None and np.isfinite(report["choice"]["proxy_kl"])
    assert printed.err.count("forgotten: cat") == 1


@needs_gloo
@pytest.mark.slow
def test_two_processes_fail_in_one_line(place, tmp_path, capfd):
    argv = ["--model_name_or_path", str(place / "model"), "--dataset_name", str(tmp_path), "--forget_classes", "cat"]
    assert main(["unlearn", *argv, *FAST, "--num_processes", "2"]) == 2
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.strip()]
    assert printed.out == "" and len(lines) == 1 and lines[0].startswith("zspag-hf unlearn: error: "), printed.err
