import json
from pathlib import Path

import pytest
from sample_reports import ABSENT, asked, full

from zspag_hf.metrics import METRICS
from zspag_hf.report.card import model_card
from zspag_hf.report.report import UnlearningReport
from zspag_hf.report.tables import best_of, graded, masked_sentence, notes, summary_table

ROW = {"acc_rt": 0.5, "acc_ut": 0.25, "js_ut": None, "acc_views": None}
CHOICE = {
    "energy_threshold": 0.999,
    "learning_rate": 0.01,
    "whole_network_steps": 50,
    "forget_probability": [0.9, 0.8, 0.0],
    "proxy_kl": 0.002,
    "proxy_budget": 0.01,
    "target_js": 0.002,
    "steps": 70,
    "forgotten": True,
}


def report(**facts):
    return UnlearningReport("zspag", "base", [{"id": 2, "label": "cat"}], 10, 0, **facts)


def test_a_report_reads_back_equal_and_is_strict_json(tmp_path):
    written = report(curve=[{"proxy_kl": float("inf"), "target_js": float("nan"), "step": 3}])
    text = Path(written.save(str(tmp_path))).read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = UnlearningReport.load(str(tmp_path))
    assert again.curve == [{"proxy_kl": None, "target_js": None, "step": 3}]
    assert again.models == dict.fromkeys(("original", "masked", "unlearned", "retrained"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["unlearning_report.json"]


def test_the_table_shows_only_columns_that_somebody_has():
    text = summary_table({"original": ROW, "unlearned": ROW | {"js_ut": 0.125}})
    head, first, second = text.splitlines()
    assert head.split() == ["model", "acc_rt", "acc_ut", "JS", "to", "retrained"]
    assert first.split() == ["original", "0.5000", "0.2500", "-"]
    assert second.split()[-1] == "0.1250" and len({len(line) for line in text.splitlines()}) == 1


def test_shallow_forgetting_is_called_shallow():
    assert "did 11% of the forgetting, the head the rest: it is shallow" in report(choice=CHOICE).chosen()
    deep = CHOICE | {"forget_probability": [0.9, 0.01, 0.0]}
    assert "shallow" not in report(choice=deep).chosen()


def test_a_failure_to_forget_is_said_aloud():
    assert "NOT FORGOTTEN" in report(choice=CHOICE | {"forgotten": False}).chosen()
    assert "NOT FORGOTTEN" not in report(choice=CHOICE).chosen()


def test_the_summary_is_of_evaluated_models():
    evaluated = full(retrained=0)
    names = [line.split()[0] for line in evaluated.summary().splitlines()]
    assert names == ["model", "original", "masked", "fine-tuned", "unlearned"]


def test_the_best_is_highest_lowest_or_closest_to_retrained():
    rows = {
        "original": {"acc_rt": 1.0, "acc_ut": 0.0, "ua": 0.5},
        "masked": {"acc_rt": 0.8, "acc_ut": 0.2, "ua": 0.9},
        "unlearned": {"acc_rt": 0.7, "acc_ut": 0.1, "ua": 0.4},
        "other": {"acc_rt": 0.80004, "acc_ut": None, "ua": 0.1},
        "retrained": {"acc_rt": 0.9, "acc_ut": 0.0, "ua": 0.5},
    }
    assert best_of("acc_rt", rows) == ["masked", "other"], "equal to four digits; original and retrained do not compete"
    assert best_of("acc_ut", rows) == ["unlearned"]
    assert best_of("ua", rows) == ["unlearned"]
    del rows["retrained"]
    assert best_of("ua", rows) == [], "closest to what?"
    assert best_of("acc_ut", {name: rows[name] for name in ("original", "masked")}) == [], "one alone is not the best"


def test_the_table_holds_every_score_with_its_verdict():
    given = full(beside=())
    lines = given.table().splitlines()
    assert lines[0].split() == ["score", *[n for n in given.models], "floor", "verdict", "on", "unlearned"]
    table = {line.split()[0]: line for line in lines[1 : lines.index("")]}
    for score in METRICS:
        assert (score in table) == (score not in ABSENT)
    row, target = given.models["unlearned"], given.models["retrained"]["js_ut"]
    assert f"{row['js_ut']:.4f} {row['js_ut'] - target:+.3f}" in table["js_ut"] and "±0.0500" in table["js_ut"]
    assert given.verdicts["unlearned"]["js_ut"] in table["js_ut"] and table["js_ut"].startswith("js_ut ↓")
    cells = {line.score: line.cells for lines in graded(given).values() for line in lines}
    assert set(cells) == set(METRICS) and cells["attack_accuracy"]["unlearned"].value is None
    assert cells["acc_rt"]["retrained"].gap is None


def test_a_report_of_a_version_with_fewer_scores_is_shown_without_them():
    given = full()
    for row in given.models.values():
        del row["recovery_5"], row["dispersion"]
    shown = {line.score: line for lines in graded(given).values() for line in lines}
    assert "of a version that did not" in shown["recovery_5"].reason and not shown["recovery_1"].reason
    table, summary = given.table().splitlines(), given.summary().splitlines()
    assert not [line for line in table if line.startswith("dispersion ")] and "recovery" not in summary[0]


def test_without_three_retrained_models_there_is_no_verdict():
    given = full(retrained=1)
    assert "verdict on unlearned" not in given.table() and "No verdicts: one retrained model given" in given.table()
    assert "No verdicts" not in full().table()


def test_notes_say_what_is_missing_and_what_proves_nothing():
    given = full()
    text = "\n".join(notes(given))
    for score, reason in ABSENT.items():
        assert f"Not computed, {reason}: {score}." in text
    for score, row in METRICS.items():
        assert (f"(!) {score}: " in text) == bool(row.caveat and score not in ABSENT)


def test_what_the_masked_model_passes_for_free_is_measured_where_there_are_verdicts():
    given = full()
    listed = lambda: masked_sentence(given).rstrip(".").split(": ")[1].split(", ")  # noqa: E731
    assert listed() == [score for score, verdict in given.verdicts["masked"].items() if verdict == "as retrained"]
    given.verdicts = {}
    assert listed() == [score for score, row in METRICS.items() if row.masked_passes and score not in ABSENT]
    given.reasons["acc_rt"] = "some reason"
    assert "acc_rt" not in listed()


def test_a_model_that_lacks_scores_is_named_with_the_reason():
    given = full()
    given.row_reasons = {"retrained": "distances between retrained models need two of them"}
    assert "retrained: distances between retrained models need two of them." in given.table()


def test_what_the_run_could_not_look_at_is_told():
    shown = asked(full())
    assert shown.left_out() == []
    shown.proxies = {"count": 3, "per_class": {"ant": 3, "bee": 0, "dog": 0}}
    shown.layers = [layer | {"missed": missed} for layer, missed in zip(shown.layers, (0.004, 0.012), strict=False)]
    classes, layers = shown.left_out()
    assert classes.startswith("2 of 3 retained classes") and "1.20%" in layers and layers.startswith("2 wide")
    card = str(model_card(shown))
    assert classes in card and layers in card
