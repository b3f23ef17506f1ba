"""examples/benchmarks/tables.py: rows that exist, rates chosen on one half alone, runs that are kept."""

import json
import sys
from pathlib import Path

import pytest
from tiny import NAMES, images, tiny_model, tiny_processor

sys.path.append(str(Path(__file__).parent.parent / "examples" / "benchmarks"))

import tables
from benches import CLASS_ROWS, IMAGE_ROWS, Bench, halves
from tables import Budget, Runner, chosen, class_table, frontiers, image_table

from zspag_hf import METHODS, UnlearningConfig

BUDGET = Budget((1e-3, 1e-2), {"max_retain_samples": 8, "num_train_epochs": 1})


@pytest.mark.parametrize(("kind", "rows"), [("classes", CLASS_ROWS), ("images", IMAGE_ROWS)])
def test_every_row_is_a_setting_of_its_kind_and_only_one_group_reads_retained_data(tmp_path, kind, rows):
    for group, settings in rows.items():
        for name, options in settings.items():
            config = UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
            assert kind in METHODS[config.method].forgets, name
            assert config.with_retain is (group != "zero-shot"), name


def cell(rate, acc_rt, acc_ut, **test):
    return {"rate": rate, "validation": {"acc_rt": acc_rt, "acc_ut": acc_ut}, "test": test}


def test_the_rate_is_the_one_that_keeps_most_among_those_that_forget():
    frontier = [cell(1, 0.9, 0.5), cell(2, 0.7, 0.01), cell(3, 0.8, 0.02), cell(4, 0.6, 0.0)]
    assert chosen(frontier, {})["rate"] == 3
    assert chosen([frontier[0], cell(5, 0.2, 0.3)], {})["rate"] == 5, "none forgets: the one that forgets most"


def test_for_images_it_is_the_nearest_to_chance_among_those_that_cost_little():
    before = {"validation": {"ta": 0.8}}
    frontier = [
        {"rate": r, "validation": {"ta": ta, "auc": auc}}
        for r, ta, auc in [(1, 0.8, 0.6), (2, 0.79, 0.53), (3, 0.6, 0.5)]
    ]
    assert chosen(frontier, before)["rate"] == 2
    assert chosen(frontier[2:], before)["rate"] == 3


def test_the_halves_share_no_image_and_are_the_same_each_time():
    data = images([0, 1, 2, 3, 4] * 4).add_column("row", list(range(20)))
    first, second = halves(data)
    assert sorted(first["row"][:] + second["row"][:]) == list(range(20)) and len(first) == 10
    assert halves(data)[0]["row"][:] == first["row"][:]


def bench(classes):
    model = tiny_model()

    def load(seed):
        fresh = tiny_model()
        fresh.load_state_dict(model.state_dict())
        return fresh, tiny_processor()

    test = images([0, 1, 2, 3, 4] * 8, seed=5)
    parts = (images([2] * 16), images([0, 1, 3, 4] * 4, seed=2))
    return Bench("tiny", load, lambda seed: parts, *halves(test), classes)


ROWS = {
    "zero-shot": {"random labels (FT-zs)": {"method": "random_labels", "max_steps": 2}, "ZS-PAG": {"method": "zspag"}},
    "with retained data": {"fine-tuning": {"method": "finetune"}},
}


def test_a_bench_of_classes_runs_once_and_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "quiet_config", quick)
    monkeypatch.setattr(Bench, "rows", property(lambda self: ROWS))
    runner = Runner(bench([NAMES[2]]), BUDGET, tmp_path, list(ROWS))
    found = runner.run([0, 1])
    reports = [runner.evaluated(found, seed, place) for place, seed in enumerate((0, 1))]
    text = class_table(runner.groups, found, reports)
    for name in ("original", "masked", *ROWS["zero-shot"], "fine-tuning"):
        assert f"| {name} |" in text
    assert len([line for line in frontiers(found).splitlines() if "random labels" in line]) == len(BUDGET.rates)
    monkeypatch.setattr(Runner, "trainer", None)  # nothing is trained any more
    monkeypatch.setattr(Runner, "original", lambda self, seed: found["before"])
    again = Runner(bench([NAMES[2]]), BUDGET, tmp_path, list(ROWS)).run([0, 1])
    assert json.dumps(again) == json.dumps(found)


def test_a_bench_of_images_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "quiet_config", quick)
    rows = {"zero-shot": {"random labels": {"method": "random_labels", "max_steps": 2}}}
    monkeypatch.setattr(Bench, "rows", property(lambda self: rows))
    runner = Runner(bench(None), BUDGET, tmp_path, list(rows))
    found = runner.run([0])
    assert "| random labels |" in image_table(runner.groups, found)
    assert 0 <= found["before"]["test"]["auc"] <= 1


def quick(**options):
    small = {"proxies_per_class": 4, "attack_eps": 0.5, "max_steps": 20, "report_to": "none", "use_cpu": True}
    return UnlearningConfig(**{**small, "disable_tqdm": True, **options})
