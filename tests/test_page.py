import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_reports import ABSENT, full, minimal

import zspag_hf.report.figures
from zspag_hf.metrics import METRICS
from zspag_hf.report.figures import FIGURES, style
from zspag_hf.report.page import render
from zspag_hf.report.report import UnlearningReport
from zspag_hf.report.sentences import NO_CERTIFICATE, reading

VOID = {"meta", "img", "br", "link", "input", "hr"}
PICTURES = {"relearning": b"\x89PNG one", "layers": b"\x89PNG two"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises where tags are not balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text, self.titles = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "title" in attributes:
            self.titles.append(attributes["title"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def report():
    return full()


@pytest.fixture(scope="module")
def text(report):
    return render(report, PICTURES)


def test_the_page_holds_every_score_reason_and_definition(report, text):
    page = Page(text)
    for name, row in report.models.items():
        for score in METRICS:
            assert row[score] is None or f"{row[score]:.4f}" in page.words, (name, score)
    for reason in ABSENT.values():
        assert reason in page.titles and reason in page.words
    ids = {attributes.get("id") for _, attributes in page.tags}
    sources = re.sub(r" ([,;.])", r"\1", page.words)  # links stand apart
    for score, known in METRICS.items():
        assert f"score-{score}" in ids and known.definition in page.words and known.source in sources
        assert any(known.definition in title for title in page.titles)
    assert "±0.0500" in page.words and page.words.count("not forgotten") > 5
    assert len(re.findall(r"\*0\.\d{4}", page.words)) >= len(METRICS) - len(ABSENT), "a best one in every line"
    assert NO_CERTIFICATE in page.words and "certif" not in page.words.replace(NO_CERTIFICATE, "")


def test_the_page_loads_nothing(text):
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base"), tag
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "data", "poster", "background"):
            assert attributes.get(name, "data:").startswith("data:")
        if attributes.get("href", "#")[0] != "#":
            assert tag == "a" and attributes["href"].startswith("https://arxiv.org/abs/")
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S)) + "".join(a.get("style", "") for _, a in page.tags)
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "default-src 'none'" in text


def test_pictures_are_the_pngs_and_nothing_else(text):
    sources = [a["src"].removeprefix("data:image/png;base64,") for tag, a in Page(text).tags if tag == "img"]
    assert sorted(map(base64.b64decode, sources)) == sorted(PICTURES.values())
    assert all(a["alt"] for tag, a in Page(text).tags if tag == "img")


@pytest.mark.parametrize("retrained", [0, 1, 2, 3])
def test_nothing_is_shown_that_no_reader_knows(retrained):
    report = full(retrained=retrained)
    report.models["unlearned"] |= {"acc_ut": float("nan"), "js_ut": float("inf"), "seconds": 3.0}
    page = Page(render(report, PICTURES))
    for word in ("None", "nan", "NaN", "inf", "Infinity", "undefined", "Undefined", "{}", "[]"):
        assert word not in re.findall(r"[\w{}\[\]]+", page.words + " ".join(page.titles)), word
    assert ("No verdicts" in page.words) == (retrained < 3)
    assert not re.search(r"\d\.\d{6}", page.words), "no unrounded number"


def test_hostile_names_are_text():
    hostile = "<script>alert(1)</script>\"' onload=x"
    report = full(beside=(hostile,))
    report.forget_classes[0]["label"] = report.base_model = report.layers[0]["name"] = hostile
    report.config["forget_classes"], report.reasons["acc_views"] = [hostile], hostile
    for row in report.models.values():
        row["acc_views"] = None
    text = render(report, PICTURES)
    page = Page(text)
    assert "<script" not in text and page.words.count(hostile) >= 5 and hostile in page.titles
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_reading_follows_the_numbers():
    report = full(beside=())
    for name, acc_ut, acc_rt, js in (
        ("original", 1.0, 0.9, 0.6),
        ("masked", 0.0, 0.91, 0.3),
        ("unlearned", 0.02, 0.88, 0.2),
    ):
        report.models[name] |= {"acc_ut": acc_ut, "acc_rt": acc_rt, "js_ut": js}
    report.models["retrained"] |= {"acc_ut": 0.0, "acc_rt": 0.92, "js_ut": 0.1, "relearn_steps": 7.0}
    for name, back in (("original", 1.0), ("unlearned", 0.98), ("retrained", 0.54)):
        report.models[name] |= {"recovery_5": back, "recovery_1": back / 2}
    report.models["unlearned"]["relearn_steps"], report.models["original"]["relearn_steps"] = 21, 1
    report.verdicts["unlearned"] = dict.fromkeys(METRICS, "as retrained") | {"relearn": "not forgotten"}
    report.verdicts["masked"] = dict.fromkeys(METRICS, "as retrained") | {"js_ut": "differs"}
    said = {heading: " ".join(sentences) for heading, sentences in reading(report).items()}
    accuracy = said["Accuracy alone proves nothing"]
    assert "2.0%, before 100.0%, retrained 0.0%" in accuracy and "it gets 0.0% and 91.0%" in accuracy
    assert "nearer to them than masking" in said["Distance from retraining"]
    assert "never within 20 steps (original after 1 step, retrained after 7 steps)" in said["Depth"]
    assert "five forget images of a class put into the head" in said["Depth"]
    assert "accuracy back to 98.0% (original 100.0%, retrained 54.0%)." in said["Depth"]
    assert "By relearn the forgetting is shallow" in said["Depth"]
    counted = len(METRICS)
    assert f"Of {counted} scores that have a verdict" in said["Verdicts"] and "1 not forgotten" in said["Verdicts"]
    assert f"too on {counted - 2}, " in said["Verdicts"] and "; 1 remain: js_ut." in said["Verdicts"]
    report.floors["js_ut"], report.models["unlearned"]["js_ut"] = None, 0.297
    assert "Masking alone gets as close" in " ".join(reading(report)["Distance from retraining"])
    report.models["unlearned"]["js_ut"] = 0.32
    assert "no nearer to them" in " ".join(reading(report)["Distance from retraining"])
    report.floors["js_ut"] = {"mean": 0.1, "sd": 0.1, "models": 3, "tolerance": 0.4}
    assert "within what retrained models differ by" in " ".join(reading(report)["Distance from retraining"])
    report.models["unlearned"]["recovery_5"] = None
    depth = " ".join(reading(report)["Depth"])
    assert "one forget image of a class put into the head brings its accuracy back to 49.0%" in depth


def test_before_evaluation_only_the_numbers_are_saved(tmp_path):
    minimal().save(str(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["unlearning_report.json"]


def test_an_evaluated_report_is_saved_with_page_and_pictures(tmp_path, report, monkeypatch):
    few = {name: FIGURES[name] for name in ("layers", "projection")}  # drawn sooner; all of them: test_figures.py
    monkeypatch.setattr(zspag_hf.report.figures, "FIGURES", few)
    path = report.save(str(tmp_path))
    assert UnlearningReport.load(str(tmp_path)) == report
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    pictures = [f"figures/{name}.png" for name in few]
    assert names == sorted([*pictures, "unlearning_report.html", "unlearning_report.json"]) and path.endswith(".json")
    page = Path(tmp_path, "unlearning_report.html").read_text(encoding="utf-8")
    for picture in pictures:
        assert base64.b64encode((tmp_path / picture).read_bytes()).decode() in page
    assert str(tmp_path) not in page


def test_a_failure_in_drawing_loses_no_number_and_spoils_no_file(tmp_path, monkeypatch):
    report, layers = full(classes=3, layers=2), FIGURES["layers"]
    monkeypatch.setattr(style, "DPI", 30)
    monkeypatch.setattr(zspag_hf.report.figures, "FIGURES", {"layers": layers})
    report.save(str(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def broken(_report):
        raise RuntimeError("out of ink")

    monkeypatch.setitem(zspag_hf.report.figures.FIGURES, "layers", broken)
    report.seed = 7
    with pytest.raises(RuntimeError, match="out of ink"):
        report.save(str(tmp_path))
    assert UnlearningReport.load(str(tmp_path)).seed == 7
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    changed = {p.name for p in before if before[p] != after[p]}
    assert set(before) == set(after) and changed == {"unlearning_report.json"}


def test_the_same_report_gives_the_same_page():
    """And the same pictures: tests/test_figures.py."""
    assert render(full(), PICTURES) == render(full(), PICTURES)


def test_the_methods_options_stand_with_the_runs_and_an_older_report_has_both_in_config(report):
    older, newer = full(), full()
    older.config |= {"forget_views": 48, "energy_threshold": 0.97, "variant": "paper"}
    newer.config |= {"forget_views": 48}
    newer.method_options = {"energy_threshold": 0.97}
    for given in (older, newer):
        words = Page(render(given, PICTURES)).words
        assert "10 , each as 48 random crops" in words or "10, each as 48 random crops" in words
        assert "energy_threshold 0.97" in words and "forget_views 48" in words
    assert "zspag, paper, seed 0" in Page(render(older, PICTURES)).words
