import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from sample_reports import full, minimal

from zspag_hf.report.figures import (
    FIGURES,
    accuracy_against,
    accuracy_per_class,
    adaptation,
    draw_figures,
    forgetting_scores,
    heatmap_panels,
    heatmaps,
    layers,
    membership_roc,
    projection,
    relearning,
    style,
    write_figures,
)
from zspag_hf.report.figures.run import short_names
from zspag_hf.report.page import CAPTIONS

PNG = b"\x89PNG\r\n\x1a\n"


def lines(axes):
    """Every line of one panel as (x, y)."""
    return [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in axes.lines]


def drawn(axes, x, y):
    """Whether one line has exactly these points."""
    return any(len(a) == len(x) and np.allclose(a, x) and np.allclose(b, y, equal_nan=True) for a, b in lines(axes))


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


@pytest.fixture
def coarse(monkeypatch):
    """Pictures of few pixels, drawn sooner."""
    monkeypatch.setattr(style, "DPI", 30)


def test_every_picture_is_drawn_or_none():
    reports = [full(), full(classes=200, layers=70, beside=tuple(f"method {i}" for i in range(9)))]
    reports += [full(classes=2, retrained=1), full(retrained=0, beside=())]
    for name, draw in FIGURES.items():
        assert draw(minimal()) is None, name
        for report in reports:
            figure = draw(report)
            assert isinstance(figure, Figure), name
            width, height = figure.get_size_inches()
            assert width == 8 and 1.5 < height < 14, name


@pytest.mark.slow
def test_threads_draw_the_same_bytes_without_a_display_and_pyplot(coarse, monkeypatch):
    before = dict(matplotlib.rcParams)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails from here on
    with ThreadPoolExecutor(2) as pool:
        first, *others = pool.map(draw_figures, [full(classes=3, layers=2)] * 2)
    assert set(first) == set(FIGURES) == set(CAPTIONS) and all(other == first for other in others)
    assert all(data.startswith(PNG) for data in first.values())
    monkeypatch.undo()  # matplotlib looks for pyplot to tell its backend
    assert dict(matplotlib.rcParams) == before


def test_accuracies_are_the_reports():
    report = full()
    (axes,) = accuracy_per_class(report).axes
    accuracies = {
        name: list(report.models[name]["per_class"].values()) for name in ("original", "unlearned", "retrained")
    }
    assert [list(x) for x, _ in lines(axes)] == list(accuracies.values()), (
        "class 0, the forgotten one, is first already"
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"class {i}" for i in range(10)]


def test_of_many_classes_the_forgotten_and_the_most_changed_are_shown():
    report = full(classes=200)
    before, after = (report.models[name]["per_class"] for name in ("original", "unlearned"))
    gone = [c["label"] for c in report.forget_classes]
    change = {label: abs(after[label] - before[label]) for label in before if label not in gone}
    top, bottom = accuracy_per_class(report).axes
    shown = [label.get_text() for label in bottom.get_yticklabels()]
    assert shown == gone + sorted(change, key=change.get, reverse=True)[:16]
    assert drawn(top, range(1, 191), sorted(after[label] - before[label] for label in change))


def test_relearning_curves_are_the_reports_and_masked_is_told_in_words():
    report = full()
    figure = relearning(report)
    for axes, kind in zip(figure.axes, ("forget", "mixed"), strict=True):
        for name in ("original", "unlearned", "retrained 2", "fine-tuned"):
            assert drawn(axes, report.relearning[name][kind]["step"], report.relearning[name][kind]["acc_ut"])
    assert len(figure.axes[1].lines) == 6, "masked is not drawn a second time"
    assert "original, and masked (the same weights)" in texts(figure) and "retrained (3 models)" in texts(figure)


def test_roc_curves_are_the_reports():
    report = full()
    figure = membership_roc(report)
    for axes in figure.axes:
        assert drawn(axes, report.rocs["unlearned"]["fpr"], report.rocs["unlearned"]["tpr"])
    assert figure.axes[1].get_xscale() == "log" and figure.axes[1].get_xlim() == (0.01, 1)
    assert f"unlearned: area {report.models['unlearned']['mia_loss_auc']:.3f}" in texts(figure)
    assert not any(text.startswith("masked") for text in texts(figure)), "it has no curve in this report"


def test_heatmaps_share_one_scale():
    report = full()
    figure = heatmaps(report)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in figure.axes if axes.images] == [
        "original",
        "fine-tuned",
        "unlearned",
        "retrained 1",
        "retrained 2",
        "retrained 3",
    ]
    assert {image.get_clim() for image in images} == {(0.0, np.max(list(report.heatmaps.values())))}
    assert np.array_equal(images[0].get_array(), report.heatmaps["original"])


def test_layers_show_shares_and_moves():
    report = full()
    left, middle, right = layers(report).axes
    places = np.arange(13)
    assert drawn(left, [layer["rank"] / layer["d_in"] for layer in report.layers], places)
    assert drawn(middle, [layer["free_forget_energy"] for layer in report.layers], places)
    assert drawn(right, [layer["weight_change"] for layer in report.layers], places)
    assert drawn(right, [layer["proxy_drift"] for layer in report.layers], places)
    assert right.get_xscale() == "symlog", "a layer that did not move has its place"
    many = layers(full(layers=200)).axes[0]
    assert len(many.get_yticks()) <= 37 and many.get_yticklabels()[-1].get_text() == "head"


def test_layer_names_lose_what_most_share():
    assert short_names(["vit.layers.0.attention.q_proj", "vit.layers.0.mlp.fc1", "classifier"]) == [
        "layers.0.attention.q_proj",
        "layers.0.mlp.fc1",
        "classifier",
    ]
    assert short_names(
        ["resnet.encoder.stages.0.layers.1.layer.0.convolution", "resnet.encoder.stages.1.norm", "fc"]
    ) == [
        "stages.0.laye.1.laye.0.convolution",
        "stages.1.norm",
        "fc",
    ]
    assert short_names(["fc"]) == ["fc"] and short_names(["0.weight", "1.weight"]) == ["0.weight", "1.weight"]


def test_an_adaptive_run_shows_what_it_read():
    top, bottom = adaptation(full()).axes
    assert drawn(top, [0, 10, 20, 21.2], [0.9, 0.8, 0.7, 0.001]), "the head is fitted without a step: to the right"
    assert drawn(bottom, [0, 10, 20, 21.2], [0, np.nan, 0.004, 0.004]), "what is not finite is a gap"
    assert any(np.allclose(y, 0.01) for _, y in lines(bottom)), "the budget"


def test_scores_stand_between_retrained_and_original():
    report = full(beside=())
    known = {
        "acc_ut": (1.0, 0.0, 0.25),
        "js_ut": (0.6, 0.2, 0.3),
        "relearn": (1.0, 0.5, 9.0),
        "probe_auc": (0.9, 0.9, 0.9),
    }
    for score in report.models["original"]:
        for row in report.models.values():
            if score not in known and score != "per_class":
                row[score] = None
    for score, values in known.items():
        for name, value in zip(("original", "retrained", "unlearned"), values, strict=True):
            report.models[name][score] = value
        report.models["masked"][score] = values[1]
    figure = forgetting_scores(report)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "accuracy, forgotten classes",
        "distance from retrained, JS",
        "relearning",
    ], "a score that is the same for original and retrained is left out"
    places = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert np.allclose(places["unlearned"], [0.25, 0.25]) and np.allclose(places["masked"], [0, 0, 0])
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1] == [">"], "9.0 is beyond the scale"
    widths = [bar.get_width() for bar in axes.patches]
    assert np.allclose(widths, [2 * 0.05, 2 * 0.05 / 0.4, 2 * 0.05 / 0.5]), "floor: tolerance to both sides"
    assert {"0.250", "0.300", "9.000"} <= set(texts(figure))


def test_proxies_lie_where_the_report_says():
    report = full()
    axes = projection(report).axes[0]
    shown = np.concatenate([c.get_offsets() for c in axes.collections])
    assert sorted(map(tuple, shown)) == sorted(zip(report.projection["x"], report.projection["y"], strict=True))
    dark = [c for c in axes.collections if np.allclose(c.get_facecolors(), [0, 0, 0, 1])]
    assert len(dark) == 1 and len(dark[0].get_offsets()) == 5, "forgotten ones are black"


def test_a_label_is_one_line_without_formulas():
    assert style.plain("$x$ \n  y") == r"\$x\$ y" and style.plain("_hidden") == " _hidden"
    assert style.plain("a" * 50, 10) == "a" * 9 + "…"


@pytest.mark.slow
def test_labels_that_look_like_formulas_are_text(coarse):
    report = full(beside=("_$\\frac$",))
    rename = {"class 1": "$\\undefined{", "class 2": "_a\nb", "class 3": "<b>" * 40}
    for row in report.models.values():
        row["per_class"] = {rename.get(k, k): v for k, v in row["per_class"].items()}
    report.projection["label"] = [rename.get(k, k) for k in report.projection["label"]]
    assert set(draw_figures(report)) == set(FIGURES)


def test_pictures_are_written_whole_and_stale_ones_removed(tmp_path):
    folder, pictures = tmp_path / "figures", {name: PNG + name.encode() for name in FIGURES if name != "heatmaps"}
    folder.mkdir()
    (folder / "heatmaps.png").write_bytes(b"stale")
    (folder / "mine.png").write_bytes(b"mine")
    assert write_figures(pictures, str(tmp_path)) == [str(folder / f"{name}.png") for name in pictures]
    held = {path.stem: path.read_bytes() for path in folder.iterdir()}
    assert held == pictures | {"mine": b"mine"}


def test_heat_is_laid_over_images_on_one_scale_a_row():
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    maps = {"unlearned": random.random((2, 4, 4)), "original": 3 * random.random((2, 4, 4))}
    figure = heatmap_panels(images, maps)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels[:3]] == ["image", "original", "unlearned"]
    assert np.array_equal(panels[3].images[0].get_array(), images[1])
    highest = max(maps[name][1].max() for name in maps)
    assert np.allclose(panels[4].images[1].get_array(), maps["original"][1] / highest)
    assert panels[4].images[1].get_extent() == [-0.5, 7.5, 7.5, -0.5], "the whole image"


def test_accuracy_is_a_mean_over_seeds():
    records = [
        {"x": x, "acc_rt": 0.5 + 0.1 * seed, "acc_ut": 0.1 * x, "attack_success_rate": None, "seed": seed}
        for x in (1, 2, 4)
        for seed in (0, 1)
    ]
    (axes,) = accuracy_against(records, "proxies per class").axes
    assert len(axes.lines) == 2 and drawn(axes, [1, 2, 4], [0.55] * 3) and drawn(axes, [1, 2, 4], [0.1, 0.2, 0.4])
    low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == (pytest.approx(0.5), pytest.approx(0.6)), "lowest to highest"
    assert axes.get_xlabel() == "proxies per class" and axes.get_xscale() == "linear"
