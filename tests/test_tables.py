"""examples/benchmarks/tables.py, ablations.py: rows that exist, rates chosen on one half alone, runs that are kept."""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import NAMES, images, tiny_model, tiny_processor

sys.path.append(str(Path(__file__).parent.parent / "examples" / "benchmarks"))

import ablations
import benches
import digits
import tables
from ablations import (
    DEFAULT,
    LITERAL,
    PARTS,
    Ablation,
    ablate,
    all_rows,
    attack_figure,
    draw,
    literal,
    rows_of,
)
from benches import CLASS_ROWS, IMAGE_ROWS, STRONG_RATES, Bench, Training, halves, load_bench
from models import NETWORKS
from pages import PUBLISHED, average_gap, class_table, frontiers, image_table, retrained_row
from tables import BUDGETS, NEARLY, Budget, Runner, chosen, of_names

from zspag_hf import METHODS, PixelClassifier, UnlearningConfig, UnlearningTrainer
from zspag_hf.errors import UnlearningError
from zspag_hf.methods import AMUN, SSD, UNSC, ZSPAG, FineTune, NegGrad, RandomLabels, ZSPAGPaper, amun, method_name
from zspag_hf.pipeline.classifier import to_pixels

BUDGET = Budget((1e-3, 1e-2), {"max_retain_samples": 8, "num_train_epochs": 1})


@pytest.mark.parametrize(("kind", "rows"), [("classes", CLASS_ROWS), ("images", IMAGE_ROWS)])
def test_every_row_is_a_setting_of_its_kind_and_only_one_group_reads_retained_data(kind, rows):
    for group, settings in rows.items():
        for name, method in settings.items():
            method.check(quick())  # raises for a setting that no run takes
            assert method_name(method) in METHODS and kind in method.forgets, name
            assert method.reads_retained is (group == "with retained data"), name


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


def test_beside_retrained_models_it_is_the_least_gap_to_them():
    rows = [(1, 0.01, 1.0, 0.54, 0.8), (2, 0.4, 0.9, 0.5, 0.6), (3, 0.5, 0.5, 0.4, 0.5)]
    frontier = [{"rate": r, "validation": {"ua": a, "ra": b, "ta": c, "rmia": d}} for r, a, b, c, d in rows]
    models = [{"ua": 0.5, "ra": 1.0, "ta": 0.5, "rmia": 0.5} for _ in range(2)]
    assert chosen(frontier, {}, models)["rate"] == 2


def test_the_halves_share_no_image_and_are_the_same_each_time():
    data = images([0, 1, 2, 3, 4] * 4).add_column("row", list(range(20)))
    first, second = halves(data)
    assert sorted(first["row"][:] + second["row"][:]) == list(range(20)) and len(first) == 10
    assert halves(data)[0]["row"][:] == first["row"][:]


def test_each_class_is_in_both_halves_where_it_has_few_images():
    for part in halves(images([0, 1, 2, 3, 4] * 2)):
        assert sorted(part["label"][:]) == [0, 1, 2, 3, 4]


def bench(classes, **more):
    model = tiny_model()

    def load(seed):
        fresh = tiny_model()
        fresh.load_state_dict(model.state_dict())
        return fresh, tiny_processor()

    test = images([0, 1, 2, 3, 4] * 8, seed=5)
    parts = (images([2] * 16), images([0, 1, 3, 4] * 4, seed=2))
    return Bench("tiny", load, lambda seed: parts, *halves(test), classes, **more)


def quick(**options):
    """Options of a run that prints and logs nothing."""
    return UnlearningConfig(disable_tqdm=True, report_to="none", use_cpu=True, **options)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(tables, "quiet_config", quick)


SHORT = RandomLabels(num_train_epochs=2)
FEW = {"proxies_per_class": 4, "attack_eps": 0.5}
ROWS = {
    "zero-shot": {"random labels (FT-zs)": SHORT, "ZS-PAG": ZSPAG(**FEW)},
    "with retained data": {"fine-tuning": FineTune()},
}


@pytest.mark.slow
def test_a_bench_of_classes_runs_once_and_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "quiet_config", partial(quick, max_steps=20))
    monkeypatch.setattr(Bench, "rows", property(lambda self: ROWS))
    runner = Runner(bench([NAMES[2]]), BUDGET, tmp_path, list(ROWS))
    results = runner.run([0, 1])
    reports = [runner.evaluated(results, seed, place) for place, seed in enumerate((0, 1))]
    text = class_table(runner.groups, results, reports)
    for name in ("original", "masked", *ROWS["zero-shot"], "fine-tuning"):
        assert f"| {name} |" in text
    assert len([line for line in frontiers(results).splitlines() if "random labels" in line]) == len(BUDGET.rates)
    (tuned,) = {json.dumps(cell["options"]) for cell in results["rows"]["fine-tuning"]["cells"]}
    assert BUDGET.retained.items() <= json.loads(tuned).items(), "what the budget says of methods with retained data"
    monkeypatch.setattr(Runner, "trainer", None)  # nothing is trained any more
    monkeypatch.setattr(Runner, "original", lambda self, seed: results["before"])
    again = Runner(bench([NAMES[2]]), BUDGET, tmp_path, list(ROWS)).run([0, 1])
    assert json.dumps(again) == json.dumps(results)
    kept = runner.folder / "report-0.json"
    older = {name: {key: row[key] for key in row if key != "recovery_5"} for name, row in reports[0].items() if row}
    kept.write_text(json.dumps(older))
    assert "recovery_5" in runner.evaluated(results, 0, 0)["original"], "a report of fewer scores is made anew"


def test_a_bench_of_images_runs(tmp_path, monkeypatch):
    rows = {"zero-shot": {"random labels": SHORT}}
    monkeypatch.setattr(Bench, "rows", property(lambda self: rows))
    runner = Runner(bench(None), BUDGET, tmp_path, list(rows))
    results = runner.run([0])
    assert "| random labels |" in image_table(runner.groups, results)
    assert 0 <= results["before"]["test"]["auc"] <= 1


@pytest.mark.slow
def test_what_does_not_depend_on_the_rate_is_made_once_a_seed_and_its_time_counts_for_each_run(tmp_path, monkeypatch):
    made = []
    search = amun.nearest_adversaries
    monkeypatch.setattr(amun, "nearest_adversaries", lambda *given, **more: made.append(0) or search(*given, **more))
    method = AMUN(num_train_epochs=1)
    runner = Runner(bench(None), BUDGET, tmp_path, [])
    cells = [runner.cell("AMUN", method, 0, 1e-3)]
    assert cells[0]["seconds"] > runner.searches[0][0] > 0
    runner.searches[0] = (1000.0, *runner.searches[0][1:])
    cells.append(runner.cell("AMUN", method, 0, 0.3))
    assert len(made) == 1 and cells[1]["seconds"] > 1000
    assert cells[0]["attack_success_rate"] == cells[1]["attack_success_rate"]
    assert cells[0]["test"] != cells[1]["test"], "runs of their own"
    alone = Runner(bench(None), BUDGET, tmp_path / "alone", []).cell("AMUN", method, 0, 0.3)
    assert len(made) == 2 and alone["test"] == cells[1]["test"]
    runner.cell("AMUN", method, 1, 0.3)
    assert len(made) == 3, "those of another seed are others"


@pytest.mark.slow
def test_images_with_retrained_models_have_the_columns_of_amuns_table(tmp_path, monkeypatch):
    rows = {"zero-shot": {"random labels": SHORT}}
    monkeypatch.setattr(Bench, "rows", property(lambda self: rows))

    def others(*seeds):
        return lambda seed: [shaken(k) for k in seeds]

    with_others = bench(None, retrained=others(1, 2), references=others(3, 4))
    runner = Runner(with_others, BUDGET, tmp_path, list(rows))
    results = runner.run([0])
    head, _, original, retrained, _, row = image_table(runner.groups, results).splitlines()
    assert head == "| method | rate | UA | RA | TA | RMIA AUC | Avg. Gap | seconds |"
    (models,), scores = results["retrained"], results["originals"][0]
    kept = runner.parts(0)[1]
    logits = PixelClassifier(tiny_model(), tiny_processor()).predict(to_pixels(kept["image"][:], tiny_processor()))
    right = (logits.argmax(1) == torch.tensor(kept["label"][:])).double().mean()
    assert scores["ra"] == pytest.approx(float(right)), "accuracy on the training images that stay"
    distances = [abs(scores[key] - np.mean([m[key] for m in models])) for key in ("ua", "ra", "ta", "rmia")]
    assert original.split("|")[-3].strip() == f"{np.mean(distances):.3f}"
    between = [abs(models[0][key] - models[1][key]) for key in ("ua", "ra", "ta", "rmia")]
    assert retrained.split("|")[-3].strip() == f"{np.mean(between):.3f}" != "0.000"
    assert row.startswith("| random labels |") and " - " not in row


def shaken(seed):
    """The tiny model with other weights."""
    torch.manual_seed(seed)
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_gap_is_to_the_mean_of_the_retrained_models():
    models = [{"ua": a, "ra": 1.0, "ta": 0.8, "rmia": 0.5} for a in (0.2, 0.4)]
    assert average_gap({"ua": 0.5, "ra": 0.8, "ta": 0.8, "rmia": 0.5}, models) == pytest.approx((0.2 + 0.2) / 4)
    assert retrained_row(models) == pytest.approx({"ua": 0.3, "ra": 1.0, "ta": 0.8, "rmia": 0.5, "gap": 0.2 / 4})
    assert "gap" not in retrained_row(models[:1])


@pytest.mark.slow
def test_a_report_is_made_anew_for_models_of_another_rate(tmp_path):
    runner = Runner(bench([NAMES[2]]), BUDGET, tmp_path, [])
    reports = []
    for rate in (1e-3, 0.3, 0.3):
        results = {"rows": {"RL": {"cells": [runner.cell("RL", SHORT, 0, rate)]}}}
        reports.append(runner.evaluated(results, 0, 0)["RL"])
    assert reports[0]["model"] != reports[1]["model"] and reports[0]["acc_rt"] != reports[1]["acc_rt"]
    assert reports[2] == reports[1]


# ---------------------------------------------------------------------------------- models that are trained on the spot


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vgg", "alexnet", "resnet", "vit"])
def test_a_network_is_trained_once_and_read_as_it_was_saved(tmp_path, kind, monkeypatch):
    trained = []
    train = benches.train_classifier
    monkeypatch.setattr(benches, "train_classifier", lambda *given: trained.append(given[2]) or train(*given))
    data = images([0, 1, 2, 3, 4] * 4)
    training = Training(kind, data, lambda names, seed: NETWORKS[kind](names, seed, 32), tmp_path, epochs=3)
    first, processor = training.model(0)
    again, _ = training.model(0)
    assert len(trained) == 1
    pixels = to_pixels(data["image"][:], processor)
    assert pixels.shape[2:] == (32, 32)
    logits = PixelClassifier(first, processor).predict(pixels)
    assert logits.shape == (20, 5) and torch.equal(logits, PixelClassifier(again, processor).predict(pixels))
    untrained, _ = NETWORKS[kind](NAMES, 0, 32)
    assert not torch.equal(logits, PixelClassifier(untrained.eval(), processor).predict(pixels))
    training.model(0, [0, 1, 2], "without three")
    assert [len(given) for given in trained] == [20, 17]


@pytest.fixture
def quick_training(monkeypatch):
    """Which images each model was trained on, none of them for long."""
    seen = []

    def train(model, processor, dataset, *_):
        seen.append(dataset)
        return model.eval()

    monkeypatch.setattr(benches, "train_classifier", train)
    return seen


@pytest.mark.slow
def test_models_without_a_random_share_are_trained_on_the_other_images_alone(tmp_path, quick_training):
    loaded = load_bench("digits-random-50", {}, tmp_path)
    (forget, kept), (others, _) = loaded.parts(3), loaded.parts(4)
    assert loaded.classes is None and len(forget) == round(1347 / 2) == 1347 - len(kept)
    assert [image.tobytes() for image in forget["image"][:9]] != [image.tobytes() for image in others["image"][:9]]
    models = loaded.retrained(3) + loaded.references(3)
    whole, _ = loaded.model(3)
    assert len(models) == 6 and len(quick_training) == 7
    sizes = [len(data) for data in quick_training]
    assert sizes == [len(kept)] * 6 + [1347]
    assert [i.tobytes() for i in quick_training[0]["image"][:]] == [i.tobytes() for i in kept["image"][:]]
    weights = {next(model.parameters()).sum().item() for model in [*models, whole]}
    assert len(weights) == 7, "each from first weights of its own"


def test_a_place_says_which_network_to_train(tmp_path, quick_training):
    entry = {"data": "digits", "train": "vgg", "classes": ["3", "5"], "side": 32, "epochs": 1}
    loaded = load_bench("two digits", {"two digits": entry}, tmp_path)
    forget, kept = loaded.parts(0)
    assert set(forget["label"][:]) == {3, 5} and not {3, 5} & set(kept["label"][:])
    assert len(loaded.retrained(0)) == 2 and loaded.references(0) == []
    assert set(quick_training[0]["label"][:]) == set(range(10)) - {3, 5}
    model, _ = loaded.model(0)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    assert type(loaded.saved(str(folder))) is type(model), "as a plain module, which no folder brings back by itself"


def test_a_place_may_have_few_images_learned_by_heart(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(benches, "train_classifier", lambda *given: seen.append((len(given[2]), given[-1])) or given[0])
    entry = {"data": "digits", "train": "vgg", "share": 0.1, "epochs": 1, "images": 200, "augment": False}
    loaded = load_bench("a few", {"a few": entry}, tmp_path)
    forget, kept = loaded.parts(0)
    assert (len(forget), len(kept)) == (20, 180)
    loaded.model(0), loaded.retrained(0)
    assert seen == [(200, False), (180, False), (180, False)], "images, and whether they are moved"


def test_images_are_learned_by_heart_as_they_are():
    item = {"pixels": torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), "labels": torch.tensor(3)}
    as_they_are = item["pixels"] / 255 * 2 - 1
    assert torch.equal(digits.plain([item])["pixel_values"][0], as_they_are)
    assert not torch.equal(digits.jitter([item])["pixel_values"][0], as_they_are)


@pytest.mark.parametrize(
    ("name", "place", "says"),
    [
        ("digit", {}, "no bench 'digit'.*digits-random-10"),
        ("a", {"a": {"data": "digits", "train": "vgg16", "classes": ["3"]}}, "no network 'vgg16'.*vgg, alexnet"),
        ("a", {"a": {"data": "digits", "train": "vgg"}}, '"classes".*"share"'),
        ("a", {"a": {"data": "digits", "train": "vgg", "classes": ["3"], "share": 0.1}}, '"classes".*"share"'),
    ],
)
def test_a_place_that_says_too_little_is_refused(tmp_path, name, place, says):
    with pytest.raises(UnlearningError, match=says):
        load_bench(name, place, tmp_path)


# --------------------------------------------------------------------------------------------------------- ablations


def test_every_row_of_the_ablations_is_a_setting_of_its_own():
    rows = [row for part in PARTS for row in rows_of(part)]  # raises for one that is none
    assert set(all_rows(list(PARTS))) == {row.name for row in rows}
    for row in rows:
        same = {other.name for other in rows if other.method == row.method}
        assert same == {row.name}, "the same options run once"
        row.method.check(quick())  # raises for a setting that no run takes
    titles = {(row.kind, row.variant): row for row in rows}
    assert titles[DEFAULT, "pgd"].name == DEFAULT and titles[LITERAL, "pgd"].name == LITERAL
    assert titles[LITERAL, "truncated"].name == LITERAL and titles[DEFAULT, "weight 30"].name == DEFAULT
    subspace = {row.variant: row.name for row in rows_of("subspace")}
    assert len(set(subspace.values()) | {LITERAL}) == 5
    counted = [row for row in rows_of("proxies") if row.base == LITERAL]
    assert {row.method.proxy_policy for row in counted} == {"quota"}, "eq. 2 alone knows no number for each class"


@pytest.mark.slow
def test_an_ablation_runs_once_and_says_what_failed(tmp_path, monkeypatch):
    few = {"radius": {LITERAL: {f"eps {x:g}": literal(attack_eps=x, num_train_epochs=2) for x in (0.5, 0.1)}}}
    bases = {DEFAULT: SHORT, LITERAL: literal(attack_eps=0.4, num_train_epochs=2)}
    failing, run_cell = f"{LITERAL}, attack_eps 0.1", Runner.cell

    def cell(self, row, *given):
        if row == failing:
            raise UnlearningError("no attack crosses.")
        return run_cell(self, row, *given)

    monkeypatch.setattr(Runner, "cell", cell)
    monkeypatch.setattr(ablations, "PARTS", few)
    monkeypatch.setattr(ablations, "RATES", (1e-2,))
    monkeypatch.setattr(ablations, "BASES", bases)
    run = bench([NAMES[2]], retrained=lambda seed: [shaken(1), shaken(2)])
    ablation = ablate(Runner(run, BUDGET, tmp_path, []), ["radius"], [0])
    assert ablations.failures(ablation).endswith(f"- {failing}, 1 of 1 seeds: no attack crosses.\n")
    text = ablations.table(ablation, ["radius"])
    assert f"| {LITERAL}: eps 0.1 | - | - | - | - | - |  |  |" in text
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {LITERAL}: eps 0.5 |")]
    (made,) = ablation.cells[f"{LITERAL}, attack_eps 0.5"]
    assert line.split("|")[2].strip() == f"{made['test']['acc_rt']:.3f}"
    assert line.split("|")[4].strip() == f"{ablation.reports[0][made['row']]['js_ut']:.3f}"
    monkeypatch.setattr(Runner, "trainer", lambda *_: pytest.fail("trained again"))
    assert ablate(Runner(run, BUDGET, tmp_path, []), ["radius"], [0]) == ablation


def test_the_pictures_show_every_row_and_every_place():
    names = list(all_rows(["subspace", "radius", "proxies"]))
    scores = {name: {"acc_rt": 0.5 + i / 100, "acc_ut": 0.1, "mia_entropy": i / 100} for i, name in enumerate(names)}
    seen = {name: {"acc_rt": 0.9, "mia_entropy": 0.8} for name in ("original", "masked", "retrained")}
    cells = {name: [{"attack_success_rate": 0.5}] for name in names}
    ablation = Ablation({}, cells, {}, [scores | seen])
    pictures = draw(ablation, ["subspace", "radius", "proxies"], [{"SalUn": {"mia_entropy": 0.3}}])
    axes = pictures["figure_2.png"].axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["original", "masked", "SalUn", DEFAULT, LITERAL, *(row.variant for row in rows_of("subspace"))]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots][2:4] == [0.3, scores[DEFAULT]["mia_entropy"]]
    expected_places = {"radius": [*ablations.RADII], "proxies": [3, 10, 30, 100]}
    for panel, (part, places) in zip(attack_figure(ablation).axes, expected_places.items(), strict=True):
        (curve, _) = [line for line in panel.lines if line.get_marker() == "^"]  # acc_rt and acc_ut
        expected = [scores[row.name]["acc_rt"] for row in rows_of(part) if row.kind == DEFAULT]
        assert curve.get_xdata().tolist() == places and curve.get_ydata().tolist() == expected
    assert "figure_5.png" not in draw(ablation, ["subspace", "radius"], [{}])


def test_rows_by_name():
    groups = {"zero-shot": {"a": 1, "b": 2}, "with retained data": {"c": 3}}
    assert of_names(groups, ["b"]) == {"zero-shot": {"b": 2}}
    with pytest.raises(UnlearningError, match="no row 'd': give some of a, b, c"):
        of_names(groups, ["d"])


def test_published_figures_stand_beside_and_have_a_row():
    rows = {name for group in CLASS_ROWS.values() for name in group} | {"original", "retrained"}
    assert all(set(figures) <= rows for figures in PUBLISHED.values())
    report = {"original": {"acc_rt": 0.5}, "a": {"acc_rt": 0.25}}
    results = {"rows": {"a": {"rate": 0.1, "cells": [{"seconds": 2}]}}}
    lines = class_table({"g": {"a": {}}}, results, [report], {"original": "83.8 / 64.0"}).split("\n")
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].endswith("| published, % |") and lines[2].endswith("| 83.8 / 64.0 |")
    assert lines[-1].startswith("| a | 0.1 | 0.250 |")


def test_the_point_of_less_forgetting_stands_beside_with_its_rate():
    frontier = [cell(1, 0.5, 0.01), cell(2, 0.7, 0.05), cell(3, 0.8, 0.06)]
    assert chosen(frontier, {})["rate"] == 1 and chosen(frontier, {}, forgotten=NEARLY)["rate"] == 2
    row = {"rate": 1, "cells": [], "nearly": frontier[1] | {"test": {"acc_rt": 0.625, "acc_ut": 0.0625}}}
    results = {"rows": {"a": row, "b": row | {"nearly": row["nearly"] | {"rate": 1}}, "c": {"rate": None, "cells": []}}}
    report = {"original": {"acc_rt": 0.5}} | {name: {"acc_rt": 0.25} for name in "abc"}
    lines = class_table({"g": {name: {} for name in "abc"}}, results, [report]).split("\n")
    assert lines[0].endswith("| acc_rt / acc_ut at .05 |") and len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[-2].strip() for line in lines[-3:]] == ["0.625 / 0.062 at 2", "the same", ""]


def test_a_published_rate_stands_with_its_batches():
    row = {"published": (0.1, 512), "frontier": [cell(0.1, 0.5, 0.0), cell(0.3, 0.5, 0.0)]}
    lines = frontiers({"rows": {"a": row, "b": row | {"published": (0.3, None)}}}).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == ["0.1 (published, batches of 512)", "0.3", "0.1", "0.3"]


def test_the_grid_has_the_published_rate_and_larger_ones_under_a_hard_constraint(tmp_path):
    runner = Runner(bench([NAMES[2]]), BUDGET, tmp_path, [])
    assert runner.rates(NegGrad()) == [5e-5, *BUDGET.rates] and runner.published(NegGrad()) == (5e-5, 512)
    for grid in (STRONG_RATES, *(budget.rates for budget in BUDGETS.values())):
        assert all(2.9 < after / before < 3.4 for before, after in itertools.pairwise(grid))
    assert all(budget.rates[0] == 1e-5 for budget in BUDGETS.values())
    assert runner.rates(UNSC()) == sorted([0.04, *STRONG_RATES])
    assert runner.rates(ZSPAGPaper()) == runner.rates(ZSPAG()) == runner.rates(SSD()) == [None]


@pytest.mark.slow
def test_a_run_that_ends_in_an_error_costs_its_row_alone(tmp_path, monkeypatch):
    rows = {"zero-shot": {"random labels (FT-zs)": SHORT, "SSD-zs": SSD()}}
    monkeypatch.setattr(Bench, "rows", property(lambda self: rows))
    train = UnlearningTrainer.train

    def failing(self, *given):
        if isinstance(self.method, SSD):
            raise UnlearningError("nothing to damp")
        return train(self, *given)

    monkeypatch.setattr(UnlearningTrainer, "train", failing)
    runner = Runner(bench([NAMES[2]]), BUDGET, tmp_path, list(rows))
    results = runner.run([0])
    text = class_table(runner.groups, results, [runner.evaluated(results, 0, 0)])
    assert next(line for line in text.splitlines() if line.startswith("| SSD-zs |")).count("| - ") == 7
    assert "| SSD-zs | own | nothing to damp |" in frontiers(results)
    with pytest.raises(ValueError, match="holds a run with"):
        runner.cell("random labels (FT-zs)", replace(SHORT, num_train_epochs=3), 0, BUDGET.rates[0])
