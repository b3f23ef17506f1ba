import json
from pathlib import Path

import pytest

from zspag_hf.report import UnlearningReport
from zspag_hf.tables import summary_table

ROW = {"acc_rt": 0.5, "acc_ut": 0.25, "js_ut": None, "acc_views": None}
CHOICE = {
    "energy_threshold": 0.999,
    "learning_rate": 0.01,
    "whole_network_steps": 50,
    "forget_probability": [0.9, 0.8, 0.0],
    "proxy_kl": 0.002,
    "proxy_budget": 0.01,
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
