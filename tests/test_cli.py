"""The command line: what a user types, sees and gets back. In process where the process is not what is tested."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from tiny import NAMES, images, tiny_model, tiny_processor
from transformers import TrainingArguments

from zspag_hf import UnlearningConfig, UnlearningError, UnlearningReport
from zspag_hf.cli import COMMANDS, compare, evaluate, info, main, push, running, unlearn
from zspag_hf.cli.cost import describe, estimate_seconds
from zspag_hf.cli.exit_status import status
from zspag_hf.cli.help import GROUPS
from zspag_hf.cli.jobs import DataArguments
from zspag_hf.cli.parsing import CommandParser, parse
from zspag_hf.hub.models import load_classifier

REPOSITORY = Path(__file__).parent.parent
FAST = ["--proxies_per_class", "4", "--attack_eps", "0.5", "--max_steps", "10", "--disable_tqdm", "--use_cpu"]


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
    """Folder, stdout and stderr of one run with --json."""
    out = place / "without-cat"
    done = command(
        "unlearn",
        *("--model_name_or_path", place / "model", "--dataset_name", place / "data", "--forget_classes", "cat", *FAST),
        *("--retrained_models", place / "other", "--retain_in_evaluation", "--json", "--output_dir", out),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out, done.stdout, done.stderr


def command(*argv, env=None):
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "zspag_hf.cli", *map(str, argv)],
        env=env or {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )


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


def test_the_top_level_does_not_wait_for_torch():
    code = "import sys; from zspag_hf.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for text in ("--version", "nonsense"):
        done = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, cwd=REPOSITORY)
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


@pytest.mark.parametrize("module", [unlearn, evaluate, compare, push, info], ids=lambda m: m.__name__)
def test_help_is_grouped_and_fits(module, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, text.splitlines())) <= 100
    assert "examples:\n  zspag-hf " in text and "running:\n" in text
    assert "--report_to" not in text and "--forget-classes" not in text


def shown(text):
    return set(re.findall(r"^ +(?:-h, )?--(\w+)", text, re.MULTILINE))


def test_help_mentions_every_option_of_the_library_and_help_all_every_one(capsys):
    own = {f.name for f in fields(DataArguments)} | set(UnlearningConfig.__annotations__)
    for ask, names in (("--help", own), ("--help_all", {f.name for f in fields(TrainingArguments) if f.init})):
        with pytest.raises(SystemExit):
            unlearn.main([ask])
        text = capsys.readouterr().out
        assert names <= shown(text), names - shown(text)
    with pytest.raises(SystemExit):
        unlearn.main(["--help"])
    text = capsys.readouterr().out
    assert "Every option of transformers' TrainingArguments works too; --help_all lists them." in text
    assert {"json", "num_processes", "baselines", "config"} <= shown(text)


def test_every_grouped_option_exists():
    """A renamed option must not stay behind in the table of the help."""
    known = {f.name for f in fields(UnlearningConfig)} | {"help", "help_all", "config"}
    for kind in (
        *(evaluate.EvaluateArguments, compare.CompareArguments, push.PushArguments, info.InfoArguments),
        running.CommandArguments,
    ):
        known |= {f.name for f in fields(kind)}
    assert {name for names in GROUPS.values() for name in names} <= known


def test_help_says_defaults_where_they_say_something(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
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
    return parse((Some,), ["--config", str(tmp_path / "run.yaml"), *argv])[0]


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
        (["info", "x", "--forget_images", "1"], "forget_images=1"),
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
    assert "forgotten: cat (12 images)" in stderr and "chosen from the held-out proxies" in stderr
    assert {"model.safetensors", "README.md", "unlearning_report.html"} <= {path.name for path in out.iterdir()}


def test_no_document_holds_what_stands_for_a_single_image():
    report = UnlearningReport("zspag", "user/model", [{"id": 2, "label": "cat"}], 3, 0)
    report.projection, report.heatmaps = {"x": [1.0], "y": [2.0]}, {"original": [[1.0]]}
    document = running.as_document(report, "out")["report"]
    assert not document["projection"] and not document["heatmaps"]


def test_unlearn_takes_its_options_from_a_file(place, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: {place / 'model'}\ndataset_name: {place / 'data'}\nforget_classes: [cat, dog]\n"
        f"proxies_per_class: 4\nattack_eps: 0.5\nmax_steps: 10\nuse_cpu: true\ndisable_tqdm: true\nseed: 7\n"
        f"output_dir: {tmp_path / 'out'}\n"
    )
    assert main(["unlearn", "--config", str(tmp_path / "run.yaml"), "--forget_classes", "bee"]) == 0
    report = UnlearningReport.load(tmp_path / "out")
    assert report.seed == 7 and [c["label"] for c in report.forget_classes] == ["bee"]
    printed = capsys.readouterr().out
    assert "forgotten: bee (12 images)" in printed and f"zspag-hf push {tmp_path / 'out'} --hub_model_id" in printed


def test_a_checkpoint_to_resume_from_is_not_ignored(options, tmp_path, capsys):
    argv = [*options, "--output_dir", tmp_path, "--resume_from_checkpoint", tmp_path / "checkpoint-5"]
    assert main(["unlearn", *map(str, argv)]) == 2
    assert "there is no checkpoint there" in capsys.readouterr().err


def test_evaluate_equals_the_report_of_the_run(result, place, tmp_path, capsys):
    out, stdout, _ = result
    argv = ["evaluate", "--original", place / "model", "--unlearned", out, "--dataset_name", place / "data"]
    argv += ["--forget_classes", "cat", "--retrained_models", place / "other", "--retain_in_evaluation"]
    argv += ["--output_dir", tmp_path / "judged", "--disable_tqdm", "--use_cpu", "--json"]
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


def test_compare_shows_a_row_for_each_setting_and_saves_no_model(options, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text("head only: {scope: head}\nno tilt: {tilt: none, seed: 3}\n")
    argv = ["compare", *options, "--baselines", "none", "--settings", str(tmp_path / "settings.yaml")]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["report"]["models"]
    assert [name for name, row in rows.items() if row] == ["original", "masked", "head only", "no tilt", "unlearned"]
    assert rows["head only"]["seconds"] > 0 and rows["head only"]["acc_rt"] is not None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "unlearning_report.json" in names and "figures" in names
    assert not [name for name in names if name.endswith(("safetensors", "config.json", "README.md"))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: {skope: head}", "settings.yaml: a: there is no option skope. Did you mean scope?"),
        ("a: {scope: feet}", "the setting 'a': scope='feet'"),
        ("a: {forget_classes: [dog]}", "there is no option forget_classes"),
        ("a: {output_dir: x}", "there is no option output_dir"),
        ("masked: {scope: head}", "has a row 'masked' already"),
        ("random labels: {scope: head}", "has a row 'random labels' already"),
        ("a: head", "'a' holds no options"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_runs(text, says, options, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(text)
    assert says in refused(capsys, "compare", *options, "--settings", tmp_path / "settings.yaml")


# ---------------------------------------------------------------------- info


def test_info_tells_layers_ledger_memory_and_cost(result, capsys):
    out, _, _ = result
    assert main(["info", "--use_cpu", "--json", str(out), "--forget_images", "20"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    names = [layer["name"] for layer in found["layers"]]
    # patch embedding, q k v and output, two of the MLP in each of two blocks, and the head
    assert len(names) == 1 + 2 * 6 + 1 and found["head"] == names[-1] == "classifier"
    assert [c["label"] for entry in found["history"] for c in entry["classes"]] == ["cat"]
    assert found["image_shape"] == [3, 8, 8] and found["labels"] == NAMES
    # distinct inputs: patches (3 * 4 * 4), and in each block q = k = v, output, first and second of the MLP; the head
    widths = [48, *[16, 16, 16, 24] * 2, 16]
    assert found["distinct_inputs"] == len(widths) and found["gram_bytes"] == 8 * sum(d * d for d in widths)
    inside = sum(layer["weights"] for layer in found["layers"])
    assert found["parameters"] == inside + found["frozen"]
    stages = found["estimated_seconds"]
    assert all(value > 0 for value in stages.values())
    assert stages["total"] == pytest.approx(sum(value for name, value in stages.items() if name != "total"))
    assert f"1. {found['history'][0]['date']}: cat (12 images, zspag)" in printed.err
    assert "An estimate" in printed.err and max(map(len, printed.err.splitlines())) <= 100 + len(str(out))


def test_an_estimate_grows_with_the_request_and_leaves_the_model_alone(place):
    model, processor = load_classifier(place / "model")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, large = (estimate_seconds(model, processor, 50, most) for most in (8, 4000))
    assert large["proxies"] > 3 * small["proxies"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_grouped_convolutions_have_a_gram_matrix_for_each_group(vit):
    """A depthwise convolution of eight 3x3 groups needs 8 * 9 * 9 numbers, not 72 * 72."""
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    config = MobileNetV1Config(depth_multiplier=0.25, image_size=32, num_labels=3)
    facts = describe(MobileNetV1ForImageClassification(config).eval(), tiny_processor())
    depthwise = next(layer for layer in facts.layers if layer.groups > 1)
    assert (depthwise.d_in, depthwise.outputs) == (9, depthwise.groups)
    assert facts.gram_bytes == sum(8 * layer.groups * layer.d_in**2 for layer in facts.layers if not layer.shares_input)


# ---------------------------------------------------------------------- push


def test_push_prints_where_the_result_stands(result, tmp_path):
    out, _, _ = result
    with LoopbackHub() as hub:
        env = hub.env(tmp_path / "cache")
        done = command("push", out, "--hub_model_id", "user/without-cat", "--hub_token", hub.write_token, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout == f"pushed: {hub.url}/user/without-cat\n"
        assert "model.safetensors" in hub.files("user/without-cat")
        assert hub.commits("user/without-cat")[-1].title == "Forget cat"


def test_push_without_a_token_says_how_to_get_one(result, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    line = refused(capsys, "push", result[0], "--hub_model_id", "user/without-cat")
    assert line.startswith("zspag-hf push: error: ") and "hf auth login" in line


# ---------------------------------------------------------------------- several processes

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@needs_gloo
def test_two_processes_give_one_document(options, tmp_path):
    argv = ["unlearn", *options, "--num_processes", "2", "--json", "--output_dir", tmp_path / "out"]
    done = command(*argv, "--per_device_train_batch_size", "4")
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)["report"]
    assert report["models"]["unlearned"]["acc_rt"] is not None and np.isfinite(report["choice"]["proxy_kl"])
    assert done.stderr.count("forgotten: cat") == 1


@needs_gloo
def test_two_processes_fail_in_one_line(place, tmp_path):
    argv = ["--model_name_or_path", place / "model", "--dataset_name", tmp_path, "--forget_classes", "cat", *FAST]
    done = command("unlearn", *argv, "--num_processes", "2")
    assert done.returncode == 2 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("zspag-hf unlearn: error: "), done.stderr
