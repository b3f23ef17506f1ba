"""The model card: metadata, text, what it must not hold, and the command that repeats the run."""

import inspect
import itertools
import json
import re
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined
from sample_reports import asked, full, minimal
from transformers import Trainer

from zspag_hf import METHODS, METRICS, UnlearningConfig, UnlearningError, UnlearningReport
from zspag_hf.cli.jobs import DataArguments, given_arguments
from zspag_hf.cli.parsing import parse_run
from zspag_hf.cli.running import MethodArguments
from zspag_hf.methods import find_method, method_name
from zspag_hf.methods.options import CONSTRAINTS
from zspag_hf.report.card import (
    INDEXED,
    LONGEST,
    PUBLIC_FIGURES,
    TEMPLATE,
    about_request,
    about_results,
    about_run,
    card_data,
    code,
    eval_results,
    model_card,
)
from zspag_hf.report.command import command
from zspag_hf.report.figures import FIGURES, draw_figures
from zspag_hf.report.page import CAPTIONS
from zspag_hf.report.report import finite
from zspag_hf.report.sentences import NO_CERTIFICATE, reading

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</details>",
    "a|b",
    "x\\|y\\",
    "[click](http://evil.example)",
    "![i](http://evil.example/i.png)",
    "<http://evil.example>",
    "http://evil.example",
    "www.evil.example",
    "`tick` ``two``",
    "```\n# owned\n```",
    "one\n\n---\nlicense: mit\n---\n# owned",
    "\r\n# owned\r\n| a | b |",
    "{{ 7 * 7 }}{% raw %}{# c #}",
    "*bold* _under_ ~~gone~~",
    "$$x$$",
    "\u202elive\u200b",
    "&lt;b&gt;&#124;",
    "--config=/etc/passwd",
    "$(rm -rf ~); '\" rm",
    "- a: b",
    "",
    "x" * 5000,
]


def body(card: ModelCard) -> str:
    return card.text


def headings(text: str) -> list[str]:
    found = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.findall(r"^#+ .*$", found, flags=re.M)


def block(text: str, language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)\n```$", text, flags=re.M | re.S)[1]


def shell_words(text: str) -> list[str]:
    """The words that a shell makes of a command."""
    assert text.startswith("zspag-hf unlearn ")
    printed = subprocess.run(
        ["sh", "-c", text.replace("zspag-hf", "printf '%s\\0'", 1)], capture_output=True, text=True, check=True
    )
    return printed.stdout.split("\0")[1:-1]


def images_request(report: UnlearningReport, earlier=(), images: int = 12) -> UnlearningReport:
    report = asked(report, (), earlier, images)
    report.method = report.request["method"] = "amun"
    report.about = METHODS["amun"]().described()
    report.choice, report.curve, report.layers = None, [], []
    if not earlier:  # then no output is switched off
        report.models["masked"] = None
        report.verdicts.pop("masked", None)
    for row in filter(None, report.models.values()):
        row |= {"acc_ut": None, "js_ut": None, "relearn": None}
    return report


def folder_base(report: UnlearningReport) -> UnlearningReport:
    report.base_model, report.base_revision, report.dataset, report.inherited = "my-vit", None, None, {}
    return report


def not_forgotten(report: UnlearningReport) -> UnlearningReport:
    report.choice |= {"forgotten": False, "forget_probability": [0.9, 0.7, 0.31]}
    return report


STATES = {
    "never evaluated": lambda: asked(minimal()),
    "no retrained": lambda: asked(full(retrained=0)),
    "one retrained": lambda: asked(full(retrained=1)),
    "three retrained": lambda: asked(full()),
    "history": lambda: asked(full(), earlier=[("ann",), ("bob", "eve")]),
    "images": lambda: images_request(full()),
    "images after classes": lambda: images_request(full(), [("ann",), ()]),
    "images, never evaluated": lambda: images_request(minimal()),
    "folder": lambda: folder_base(asked(full())),
    "not forgotten": lambda: not_forgotten(asked(full())),
    "nasty": lambda: asked(full(beside=tuple(filter(None, NASTY))), NASTY, [NASTY, NASTY[::-1]]),
    "200 classes": lambda: asked(full(), [f"person {i}" for i in range(200)]),
}


DRAWN = ("models", "relearning", "rocs", "verdicts", "floors", "projection", "curve", "choice", "layers", "images")


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """A card asks which pictures there are by drawing them, nearly all of its time: once for equal numbers."""
    kept = {}

    def once(name, draw):
        def figure(report):
            key = name, json.dumps([getattr(report, part) for part in DRAWN])
            if key not in kept:
                kept[key] = draw(report)
            return kept[key]

        return figure

    cached = {name: once(name, draw) for name, draw in FIGURES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.report.card.FIGURES", cached)
        patch.setattr("zspag_hf.report.figures.FIGURES", cached)
        yield


QUICK = ("never evaluated", "images after classes", "nasty")


@pytest.fixture(params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STATES])
def report(request):
    return STATES[request.param]()


class TestEveryState:
    def test_the_metadata_survives_being_read_back(self, report):
        card = model_card(report, model_id="user/out")
        again = ModelCard(str(card))
        assert again.data.to_dict() == card.data.to_dict() and str(again) == str(card)
        assert again.data.eval_results == card.data.eval_results
        assert str(card).startswith("---\n") and str(card).endswith("\n") and "---" not in headings(body(card))[0]
        assert again.data.get("base_model_relation") in (None, "adapter", "merge", "quantized", "finetune")

    def test_the_sections_stand_in_order(self, report):
        text = body(model_card(report))
        found = headings(text)
        levels = [len(line.split(" ")[0]) for line in found]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        sections = ["What was forgotten", "How", "Results", "Limits", "How to use", "How to reproduce", "Citation"]
        if any(report.models.values()):
            sections.insert(3, "Pictures")
        assert [line[3:] for line in found if line.startswith("## ")] == sections
        assert "\n\n\n" not in text

    def test_tables_have_equal_rows(self, report):
        text = body(model_card(report))
        groups = [[*lines] for is_row, lines in itertools.groupby(text.splitlines(), lambda s: s[:1] == "|") if is_row]
        assert len(groups) == bool(report.history) + any(report.models.values())
        for lines in groups:
            assert len({line.count("|") for line in lines}) == 1 and len(lines) > 2

    def test_no_word_of_python_is_shown(self, report):
        for row in filter(None, report.models.values()):
            row |= {"acc_rt": float("nan"), "probe_auc": None}
        text = body(model_card(report))
        words = re.findall(r"[\w{}\[\]]+", text.replace("None,", ""))
        assert not {"None", "nan", "inf", "True", "False", "undefined", "{}", "[]"} & set(words)

    def test_the_template_is_given_all_it_asks_for(self, report):
        given = about_request(report, report.request) | about_run(report) | about_results(report)
        given |= {"model_id": '"user/out"', "command": command(report), "card_data": card_data(report, "user/out")}
        template = Environment(undefined=StrictUndefined).from_string(TEMPLATE.read_text(encoding="utf-8"))
        assert template.render(given).strip() == str(model_card(report, model_id="user/out")).strip()

    def test_the_same_report_gives_the_same_bytes(self, report):
        first = str(model_card(report, model_id="user/out"))
        assert str(model_card(report, model_id="user/out")) == first
        read = UnlearningReport(**json.loads(json.dumps(finite(asdict(report)))))
        assert str(model_card(read, model_id="user/out")) == first

    def test_the_pictures_are_those_that_a_push_uploads(self, report, monkeypatch):
        monkeypatch.setattr("zspag_hf.report.figures.png", lambda figure: b"")  # which there are is what matters
        text = body(model_card(report))
        shown = re.findall(r"!\[[^]]+\]\(figures/(\w+)\.png\)", text)
        drawn = draw_figures(report) if any(report.models.values()) else {}
        assert shown == [name for name in CAPTIONS if name in drawn and name not in ("projection", "heatmaps")]
        assert shown == [name for name in PUBLIC_FIGURES if name in drawn]
        assert all(CAPTIONS[name] in text for name in shown)

    def test_as_markdown_it_holds_nothing_but_its_own_links_and_html(self, report):
        markdown_it = pytest.importorskip("markdown_it")
        tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body(model_card(report)))
        inline = [child for token in tokens for child in token.children or []]
        html = [token.content for token in (*tokens, *inline) if token.type in ("html_block", "html_inline")]
        more = max(0, len(report.request["classes"]) - 12)
        summary = f"<details><summary>and {more} more</summary>"
        assert [part.strip() for part in html] == ([summary, "</details>"] if more else [])
        for token in inline:
            if token.type == "link_open":
                ours = r"https://huggingface\.co/[\w/.-]+|https://arxiv\.org/abs/\d+\.\d+|unlearning_report\.html"
                assert re.fullmatch(ours, token.attrs["href"]), token.attrs
            if token.type == "image":
                assert token.attrs["src"].startswith("figures/")
        plain = " ".join(token.content for token in inline if token.type == "text")
        assert "evil" not in plain and "owned" not in plain and "alert" not in plain
        tables = sum(token.type == "table_open" for token in tokens)
        assert tables == bool(report.history) + any(report.models.values())
        rows = sum(token.type == "tr_open" for token in tokens)
        evaluated = sum(row is not None for row in report.models.values())
        assert rows == (evaluated and evaluated + 1) + (len(report.history) and len(report.history) + 1)


class TestMetadata:
    def test_it_names_base_licence_data_and_results(self):
        report = asked(full())
        data = model_card(report, model_id="user/out").data.to_dict()
        index = data.pop("model-index")
        assert data == {
            "base_model": "user/vit-cifar10",
            "base_model_relation": "finetune",
            "datasets": ["user/cifar10"],
            "language": ["en", "de"],
            "library_name": "transformers",
            "license": "apache-2.0",
            "pipeline_tag": "image-classification",
            "tags": ["image-classification", "machine-unlearning", "zero-shot-unlearning", "zspag_hf", "zspag"],
        }
        assert index[0]["name"] == "out" and len(index[0]["results"]) == 1
        assert index[0]["results"][0]["dataset"] == {"name": "cifar10", "type": "user/cifar10"}
        for metric in index[0]["results"][0]["metrics"]:
            score = metric["type"]
            assert metric["value"] == pytest.approx(report.models["unlearned"][score], abs=5e-5)
            assert METRICS[score].definition in metric["name"]
        assert [metric["type"] for metric in index[0]["results"][0]["metrics"]] == list(INDEXED)

    @pytest.mark.parametrize("missing", INDEXED)
    def test_a_score_that_was_not_computed_is_left_out(self, missing):
        report = asked(full())
        report.models["unlearned"][missing] = None
        assert [result.metric_type for result in eval_results(report)] == [s for s in INDEXED if s != missing]

    def test_there_is_no_negative_zero(self):
        report = asked(full())
        report.models["unlearned"]["js_ut"] = report.models["original"]["js_ut"] = -1e-9
        card = model_card(report)
        table = [line for line in card.text.splitlines() if line.startswith("|")]
        assert "-0.0" not in card.data.to_yaml() and "-0.0" not in "".join(table)

    def test_before_evaluation_there_are_no_results(self):
        assert not {"model-index", "model_name"} & set(model_card(asked(minimal())).data.to_dict())

    def test_a_folder_is_named_in_the_text_alone(self):
        card = model_card(folder_base(asked(full())))
        assert not {"base_model", "base_model_relation", "datasets", "license", "language"} & set(card.data.to_dict())
        text = body(card)
        assert "`my-vit`; where it stands on the Hub, if it does, is not known." in text
        assert "Licence: unknown" in text and "Languages: unknown" in text and "BASE stands for" in text
        assert "huggingface.co" not in text

    @pytest.mark.parametrize(
        ("link", "expected"),
        [
            ("https://example.org/terms", "https://example.org/terms"),
            ("LICENSE", f"https://huggingface.co/user/vit-cifar10/blob/{'0123456789abcdef' * 2}/LICENSE"),
        ],
    )
    def test_a_licence_of_its_own_is_taken_over_with_its_link(self, link, expected):
        report = asked(minimal())
        report.inherited = {"license": "other", "license_name": "my-terms", "license_link": link}
        card = model_card(report)
        assert card.data.license == "other" and card.data.license_name == "my-terms"
        assert card.data.license_link == expected and "Licence: `my-terms`" in body(card)
        report.base_revision = None
        assert model_card(report).data.license_link == (expected if "example" in link else None)

    @pytest.mark.parametrize("text", NASTY)
    def test_the_yaml_holds_any_text(self, text):
        report = asked(full())
        report.inherited = {"license": text, "license_name": text, "license_link": text, "language": [text, text]}
        report.base_model = report.dataset = f"user/{text}"
        card = model_card(report)
        again = ModelCard(str(card)).data
        assert again.to_dict() == card.data.to_dict() and again.license == text and again.base_model == f"user/{text}"
        title, *sections = headings(card.text)
        assert title.startswith("# `") and "owned" not in " ".join(sections)

    def test_a_method_that_sees_retained_data_is_not_called_zero_shot(self):
        report = asked(full())
        report.reads_retained, report.method = True, "random_labels"
        card = model_card(report)
        assert "zero-shot-unlearning" not in card.data.tags and "random-labels" in card.data.tags
        assert "also saw retained training data" in body(card) and "saw no retained data" not in body(card)

    def test_a_report_of_an_earlier_version_says_by_an_option_whether_retained_data_were_read(self):
        report = asked(full())
        assert "zero-shot-unlearning" in model_card(report).data.tags
        report.config["with_retain"] = True
        assert "zero-shot-unlearning" not in model_card(report).data.tags

    def test_it_takes_what_create_model_card_of_trainer_takes(self):
        theirs = set(inspect.signature(Trainer.create_model_card).parameters) - {"self"}
        assert theirs <= set(inspect.signature(model_card).parameters)
        report, own = asked(full()), model_card(asked(full())).data.tags
        told = {"language": "fr", "license": "mit", "tags": "birds", "tasks": ["image-classification", "sorting"]}
        told |= {"model_name": "my model", "finetuned_from": "user/other"}
        card = model_card(report, **told, dataset=["My CIFAR"], dataset_tags="user/mine", dataset_args="plain")
        data = ModelCard(str(card)).data
        assert (data.language, data.license, data.model_name) == ("fr", "mit", "my model")
        assert data.tags == [*own, "birds", "sorting"] and data.datasets == ["user/mine"]
        assert data.base_model == "user/other" and data.base_model_relation == "finetune"
        for result in data.eval_results:
            assert (result.dataset_type, result.dataset_name) == ("user/mine", "My CIFAR")
            assert result.dataset_config == "plain" and result.metric_value is not None
        data = model_card(report, tags=["a", "b"], dataset="user/mine").data
        assert data.tags == [*own, "a", "b"] and data.datasets == ["user/mine"]
        assert {(r.dataset_type, r.dataset_name) for r in data.eval_results} == {("user/mine", "user/mine")}
        assert "model_name" not in model_card(asked(minimal()), model_name="my model").data.to_dict()


class TestText:
    def test_every_method_is_described(self):
        for name, method in METHODS.items():
            assert method.description.endswith(".") and method().described()[0] == method.description, name

    def test_what_was_forgotten(self):
        text = body(model_card(asked(full())))
        assert "# `vit-cifar10` without `class 0`\n" in text
        assert "The class `class 0` (id 0), given as 10 images, on 2026-11-01." in text
        assert f"`{'01' * 32}`, a SHA-256 over a secret nonce" in text and "Earlier requests" not in text

    def test_images_of_classes_that_stay(self):
        text = body(model_card(images_request(full())))
        assert "# `vit-cifar10` without 12 images of classes that stay\n" in text
        assert "12 images; their classes stay." in text and "AMUN" in text and "masked" not in headings(text)
        assert "--forget_classes" not in block(text, "bash") and "`--forget_indices`" in text
        assert "Where a class is a person" not in text and "- masked:" not in text
        assert "Where a class is a person" in body(model_card(images_request(full(), [("ann",)])))

    def test_one_image(self):
        assert "1 image; its" not in (text := body(model_card(images_request(full(), images=1))))
        assert "without 1 image of" in text

    def test_earlier_requests_are_a_table(self):
        text = body(model_card(asked(full(), ("cat",), [("ann",), tuple("abcdefg"), ()])))
        rows = [line for line in text.splitlines() if line.startswith("| `2026")]
        assert len(rows) == 3 and "`ann`" in rows[0] and "`a`, `b`, `c`, `d`, `e` and 2 more" in rows[1]
        assert "10 images of classes that stay" in rows[2] and f"`{'03' * 8}…`" in rows[1]
        assert "Forgotten classes are those of all requests together, 9 in all." in text

    def test_many_classes_stay_readable(self):
        text = body(model_card(STATES["200 classes"]()))
        assert "# `vit-cifar10` without `person 0`, `person 1`, `person 2` and 197 more\n" in text
        assert "200 classes, given as 10 images" in text and "<summary>and 188 more</summary>" in text
        assert all(f"`person {i}` (id {i})" in text for i in range(200))
        assert max(map(len, block(text, "bash").splitlines())) < 110

    def test_before_evaluation_the_card_says_so(self):
        text = body(model_card(asked(minimal())))
        assert "This model has not been evaluated" in text and "unlearning_report.html" not in text
        assert "This model has not been evaluated" not in body(model_card(asked(full())))

    @pytest.mark.parametrize("retrained", [0, 1, 3])
    def test_results_stand_beside_each_other(self, retrained):
        report = asked(full(retrained=retrained))
        text = body(model_card(report))
        for name, row in report.models.items():
            if row is not None:
                line = next(s for s in text.splitlines() if s.strip("| *`").startswith(name) and s[0] == "|")
                assert f"{row['acc_rt']:.4f}" in line and f"{row['relearn']:.4f}" in line
        assert ("No retrained reference was given" in text) == (retrained == 0)
        assert ("the mean of 3 models" in text) == (retrained == 3)
        assert ("No verdicts" in text) == (retrained < 3) == ("- differs: " not in text)
        for heading, sentences in reading(report).items():
            assert f"### {heading}" in text and all(sentence in text for sentence in sentences)
        assert text.count(NO_CERTIFICATE) == 1
        for score in ("acc_rt", "acc_ut", "js_ut", "recovery_5", "relearn", "probe_auc"):
            assert METRICS[score].definition in text

    def test_a_failure_to_forget_is_said_in_bold_at_the_top(self):
        text = body(model_card(STATES["not forgotten"]()))
        bold = next(line for line in text.splitlines() if line.startswith("**Not forgotten"))
        assert bold.endswith("**") and "0.31" in bold and text.index(bold) < text.index("## What was forgotten")
        assert "Not forgotten:" not in body(model_card(asked(full())))

    @pytest.mark.parametrize(
        ("method", "options", "said"),
        [
            ("zspag", {}, CONSTRAINTS["soft"]),
            ("random_labels", {"targets": "second_best"}, "had the most likely class that stays."),
            ("salun", {"targets": "renormalised", "tilt": "similarity"}, ", tilted to the classes most like them."),
            ("zspag_paper", {}, CONSTRAINTS["hard"]),
            (
                "zspag_paper",
                {"constraint": "none", "subspace_merge": "gram"},
                "as printed ([arXiv 2507",
            ),
            ("random_labels", {}, "another label that stays, drawn at random"),
            ("random_labels", {"constraint": "hard"}, CONSTRAINTS["hard"]),
            ("random_labels", {"constraint": "soft", "targets": "paper"}, CONSTRAINTS["soft"]),
            ("random_labels", {"targets": "paper"}, "had pseudo-labels by influence, eq. 7-10 of ZS-PAG."),
            (
                "random_labels",
                {"targets": "uniform", "tilt": "influence"},
                "all classes that stay alike, tilted by",
            ),
            ("unsc", {}, "by steps in the null space of what retained images use."),
            ("unsc", {"targets": "renormalised"}, "had the original outputs without the forgotten classes."),
        ],
    )
    def test_how_it_was_done(self, method, options, said):
        report = asked(full())
        report.about = find_method(method)(**options).described()
        report.config |= {"forget_views": 48}
        text = body(model_card(report))
        assert " ".join(report.about) in text and said in text
        kind = options.get("constraint", {"zspag": "soft", "zspag_paper": "hard"}.get(method, "none"))
        assert [name for name, told in CONSTRAINTS.items() if told and told in text] == [kind] * (kind != "none")
        own = not options.keys() & {"targets", "tilt"}
        assert own == ("In place of the method's own targets the forget images had" not in text)
        assert "each as 48 random crops" in text and "Seed 0," in text and "20 adversarial images" in text
        assert "torch 2.13.0" in text and "learning rate 0.01" in text and "it is shallow" in text

    def test_how_to_use_it(self):
        used = block(body(model_card(asked(full()), model_id="user/out")), "python")
        assert 'name = "user/out"\n' in used and "trust_remote_code" not in used
        compile(used, "card", "exec")
        report = asked(full())
        report.config["trust_remote_code"] = True
        used = block(body(model_card(report)), "python")
        assert used.count("trust_remote_code=True") == 2 and "folder/of/this/model" in used
        compile(used, "card", "exec")

    def test_the_paper_is_cited(self):
        cited = block(body(model_card(asked(full()))), "bibtex")
        assert "2507.21738" in cited and "Chen, Huiqiang and Zhu, Tianqing and Yu, Xin and Zhou, Wanlei" in cited
        assert cited.count("{") == cited.count("}")

    def test_an_evaluation_alone_has_no_card(self):
        with pytest.raises(UnlearningError, match="evaluation alone"):
            model_card(full())


class TestUntrustedText:
    @pytest.mark.parametrize("text", [*NASTY, "\0", "\t\v\x85\u2028"])
    def test_it_is_one_line_of_code(self, text):
        found = code(text)
        assert found[0] == found[-1] == "`" and "`" not in found[1:-1] and len(found) >= 3
        assert found.isprintable() and "|" not in found and len(found) <= LONGEST + 3

    @pytest.mark.parametrize("text", ["cat", "tabby, tabby cat", "Katze", "猫", "x_1 (2)"])
    def test_usual_names_stay_as_they_are(self, text):
        assert code(text) == f"`{text}`"

    def test_a_ledger_of_anything_is_text(self):
        report = asked(full(), earlier=[("ann",), ()])
        for entry in report.history:
            entry |= dict.fromkeys(("date", "images", "method", "seed", "commitment"), "<b>|`\n# owned")
        del report.history[0]["seed"]
        text = body(model_card(report))
        assert "\n# owned" not in text and "`unknown`" in text
        assert not re.search(r"<b>", re.sub(r"`[^`\n]*`", "", text))


class TestPrivacy:
    def test_no_folder_of_this_machine_is_named(self):
        report = folder_base(asked(full()))
        secret = "/home/someone/pictures"
        given = UnlearningConfig(output_dir=secret, cache_dir=secret, dataset_name=secret, hub_token="hf_secret")
        assert secret not in str(given.public()) + str(given.given()) and "hf_secret" not in str(given.public())
        report.config = {name: getattr(given, name) for name in vars(given) if isinstance(getattr(given, name), str)}
        report.config |= {"label_mapping_file": secret, "forget_indices": [77123]}
        assert secret in report.config.values(), "there is something to leave out"
        text = str(model_card(report, model_id="user/out"))
        assert "someone" not in text and "77123" not in text and "hf_secret" not in text

    def test_no_point_of_a_picture_is_named(self):
        report = asked(full())
        text = str(model_card(report))
        assert report.projection and report.heatmaps
        assert not any(f"{x}"[:7] in text for x in report.projection["x"])


RUNS = [
    "",
    "--forget_views 48 --seed 3",
    "--learning_rate 0.003 --energy_threshold 0.99 --max_steps 200",
    "--method trw --targets second_best --tilt none",
    "--scope head --holdout_share 0.2 --attack_eps 0.03 --label_offset 1 --image_column_name 'an image'",
    "--trust_remote_code --allow_pickled_weights --depth_weight 0.0 --per_device_train_batch_size 8",
    "--method zspag_paper",
    "--method zspag_paper --learning_rate 0.1 --optim adamw_torch --lr_scheduler_type linear --num_train_epochs 3",
    "--method zspag_paper --constraint soft --subspace_merge gram --attack fgsm --max_steps 7 --weight_decay 0.1",
    "--method random_labels --constraint hard --learning_rate 0.1",
    "--method random_labels --targets uniform --tilt influence --influence_sign eq10 --attack_steps 3",
    "--method salun --sparsity 0.3 --targets second_best --optim_args momentum=0.9,nesterov=True",
    "--method unsc --constraint none --targets renormalised --max_retain_samples 50 --retain_in_evaluation",
    "--method scrub --max_retain_samples 9 --retain_in_evaluation",
    "--gradient_accumulation_steps 4 --use_cpu --bf16 --adam_beta1 0.5 --save_strategy steps --save_steps 0.5",
    """--method zspag_paper --lr_scheduler_type cosine_with_restarts --lr_scheduler_kwargs '{"num_cycles": 2}'""",
    "--baselines few --train_split 'all of it' --test_split validation --max_forget_samples 100 --dataset_revision v1",
]
BASE = ["--model_name_or_path", "user/vit-cifar10", "--model_revision", "0123456789abcdef" * 2]
BASE += ["--dataset_name", "user/cifar10", "--forget_classes", "class 0", "--level", "full"]
TYPES = (DataArguments, MethodArguments)


def recorded(argv, labels=("class 0",)) -> UnlearningReport:
    """As a run with these options records itself."""
    data, beside, config, method = parse_run(TYPES, argv)
    report, (own, args) = asked(full(), labels), method.completed(config, 10)
    report.method, report.seed, report.level = method_name(method), config.seed, data.level
    report.method_options, report.config = own.to_dict(), args.public()
    report.given = config.given() | method.given() | given_arguments(data) | given_arguments(beside)
    return UnlearningReport(**json.loads(json.dumps(finite(asdict(report)))))


class TestReproduce:
    @pytest.mark.parametrize("given", RUNS)
    def test_the_command_gives_the_same_run(self, given):
        argv = [*BASE, *shlex.split(given)]
        words = shell_words(block(body(model_card(recorded(argv))), "bash"))
        assert parse_run(TYPES, words) == parse_run(TYPES, argv)
        named = {word[2:] for word in words if word.startswith("--")}
        assert named == {word[2:] for word in [*argv, "--seed"] if word.startswith("--")}, "no option too many"

    def test_it_tells_neither_folders_nor_accounts_nor_which_images(self):
        folders = {"output_dir", "cache_dir", "retrained_models", "label_mapping_file", "run_name"}
        accounts = {"hub_token", "hub_model_id", "hub_revision", "forget_column", "forget_values"}
        argv = [word for name in sorted(folders | accounts) for word in (f"--{name}", "/home/secret")]
        argv += ["--push_to_hub", "--hub_private_repo", "--forget_indices", "77123"]
        words = shell_words(command(recorded([*BASE, *argv])))
        assert words == shell_words(command(recorded(BASE)))
        assert not any("secret" in word or "77123" in word for word in words)

    def test_options_of_a_method_of_ones_own_are_named(self):
        report = asked(full())
        report.method, report.given = "my_methods:Mine", {"strength": 2.0, "names": ["a b", "c"], "flag": False}
        words = shell_words(command(report))
        assert words[words.index("--method") + 1] == "my_methods:Mine"
        start = words.index("--strength")
        assert words[start : start + 7] == ["--strength", "2.0", "--names", "a b", "c", "--flag", "false"]

    @pytest.mark.parametrize("labels", [["golden retriever", "tabby, tabby cat"], ["3"], *([text] for text in NASTY)])
    def test_any_label_can_be_named(self, labels):
        report = asked(full(), labels)
        report.config["forget_classes"] = labels
        text = command(report)
        words = shell_words(text)
        start = words.index("--forget_classes") + 1
        assert words[start : words.index("--seed")] in (labels, [str(i) for i in range(len(labels))])
        assert "`" not in text and all(line.endswith("\\") for line in text.splitlines()[:-1])


def test_the_card_is_written_as_it_was_made(tmp_path):
    card = model_card(asked(full()), model_id="user/out")
    card.save(tmp_path / "README.md")
    assert Path(tmp_path, "README.md").read_text(encoding="utf-8") == str(card)
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == card.data.to_dict()
