"""What each part of ZS-PAG does: one option at a time changed from the default and from the paper's form.

    python examples/benchmarks/ablations.py                                       # digits, which needs nothing
    python examples/benchmarks/ablations.py --parts subspace                      # the paper's table 5
    python examples/benchmarks/ablations.py --benches cifar --places places.json --parts attack constraint
    python examples/benchmarks/ablations.py --tables outputs/tables               # figure 2 with the rows of tables.py

Benches, places and kept runs are those of tables.py; benches of images at random have nothing to ablate, as ZS-PAG
forgets classes. The paper's form and its variants under the same constraint have its preset, and so has table 5, with
random labels in place of the pseudo-labels, without a constraint too; other rows with another constraint or energy
threshold have their rate chosen on validation data with the first seed.

Beside each bench's table.md stand the paper's figure 2, membership inference against the retrained models'
(mia_entropy), and figure 5, the attack's radius and the number of proxies.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benches import Bench, load_benches, read_places, slug
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from measure import machine
from models import quiet_config
from pages import spread
from tables import Budget, Runner, chosen
from tqdm.auto import tqdm

from zspag_hf.errors import UnlearningError
from zspag_hf.methods import ZSPAG, Method, RandomLabels, ZSPAGPaper, method_name
from zspag_hf.methods.options import MERGES, PRIORS, TILTS
from zspag_hf.methods.zspag_paper import STEPS
from zspag_hf.pipeline.attacks import ATTACKS
from zspag_hf.pipeline.proxies import POLICIES
from zspag_hf.pipeline.pseudo_labels import SIGNS
from zspag_hf.report.figures import png
from zspag_hf.report.figures.style import BESIDE, ROLES, dress, legend, new_figure, plain
from zspag_hf.report.files import write_whole

DEFAULT, LITERAL = "ZS-PAG", "ZS-PAG, as printed"
PRINTED_RL = f"{LITERAL}, RL"
PRESET = ZSPAGPaper()
BASES: dict[str, Method] = {DEFAULT: ZSPAG(), LITERAL: PRESET}
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0)  # of rows without a preset, most of them constrained
RADII, COUNTS = (0.02, 0.05, 0.1, 0.2, 0.4), (3, 10, 30, 100)
UNCONFINED = RandomLabels(learning_rate=PRESET.learning_rate)  # as_long gives it the preset's steps
IN_SUBSPACE = replace(
    UNCONFINED,
    constraint="hard",
    energy_threshold=PRESET.threshold,
    subspace_merge=PRESET.subspace_merge,
)


def default(**changes) -> Method:
    """The default with other options."""
    return replace(BASES[DEFAULT], **changes)


def literal(**changes) -> Method:
    """The paper's form with other options."""
    return replace(BASES[LITERAL], **changes)


def with_quota(method: Method) -> dict[str, Method]:
    """A method with each number of proxies."""
    return {f"{n} a class": replace(method, proxies_per_class=n) for n in COUNTS}


FORMS = {DEFAULT: default, LITERAL: literal}
TILT = {name: "none" if name == "second_best" else "influence" for name in PRIORS}  # one class has nothing to tilt
# part -> kind, a base or its form with random labels -> what the part's table calls a row -> its method
PARTS: dict[str, dict[str, dict[str, Method]]] = {
    "threshold": {
        DEFAULT: {f"energy {x:g}": default(energy_threshold=x) for x in (0.5, 0.9, 0.99, 0.999)},
        LITERAL: {f"energy {x:g}": literal(energy_threshold=x) for x in (0.5, 0.8, 0.9, 0.99)},
    },
    "attack": {base: {name: form(attack=name) for name in ATTACKS} for base, form in FORMS.items()},
    "radius": {base: {f"eps {x:g}": form(attack_eps=x) for x in RADII} for base, form in FORMS.items()},
    "proxies": {
        DEFAULT: with_quota(default()),
        LITERAL: with_quota(literal()),
        PRINTED_RL: with_quota(IN_SUBSPACE),
    },
    "policy": {base: {name: form(proxy_policy=name) for name in POLICIES} for base, form in FORMS.items()},
    "subspace": {
        LITERAL: {
            "RL": UNCONFINED,
            "random subspace + RL": replace(IN_SUBSPACE, subspace_merge="random"),
            "estimated subspace + RL": IN_SUBSPACE,
            "random subspace + pseudo-labels": literal(subspace_merge="random"),
        }
    },
    "merge": {LITERAL: {name: literal(subspace_merge=name) for name in MERGES}},
    "constraint": {
        LITERAL: {
            "soft": literal(constraint="soft", subspace_merge="gram"),
            "none": literal(constraint="none", subspace_merge="gram"),
        },
    },
    "pseudo-label": {
        LITERAL: {
            **{f"sign {name}": literal(influence_sign=name) for name in SIGNS},
            "KL in place of the mask": literal(targets="paper_unmasked"),
            **{f"prior {name}": literal(targets=name, tilt=tilt) for name, tilt in TILT.items()},
            **{f"tilt {name}": literal(targets="renormalised", tilt=name) for name in TILTS},
        },
    },
    "depth": {DEFAULT: {f"weight {x:g}": default(depth_weight=x) for x in (0.0, 3.0, 30.0, 100.0)}},
    "kept": {DEFAULT: {f"weight {x:g}": default(proxy_weight=x) for x in (0.0, 10.0, 100.0, 300.0)}},
    "scope": {DEFAULT: {"head": default(scope="head")}},
}


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        kind: a base, or its form with random labels. variant: what its part's table calls it.
        name: of folders and reports, made of what differs from the base: rows that come to the same share a run.
    """

    kind: str
    variant: str
    name: str
    method: Method

    @property
    def base(self) -> str:
        """Whose row it is."""
        return base_of(self.kind)


def base_of(kind: str) -> str:
    """The base that a kind belongs to."""
    return LITERAL if kind.startswith(LITERAL) else DEFAULT


def rows_of(part: str) -> list[Row]:
    """The rows of a part; one that is the base itself bears the base's name."""
    return [
        Row(kind, variant, name_of(base_of(kind), method), method)
        for kind, variants in PARTS[part].items()
        for variant, method in variants.items()
    ]


def name_of(base: str, method: Method) -> str:
    """The base, and in what the method differs from it; another kind of method in what differs from its defaults."""
    usual, held = BASES[base].to_dict(), method.to_dict()
    if type(method) is type(BASES[base]):
        differing = {name: value for name, value in held.items() if value != usual[name]}
    else:
        differing = {"method": method_name(method)} | method.given()
    return ", ".join([base, *(f"{name} {value}" for name, value in sorted(differing.items()))])


def all_rows(parts: list[str]) -> dict[str, Row]:
    """Every different row by name, the two bases first."""
    rows = {base: Row(base, "", base, method) for base, method in BASES.items()}
    for part in parts:
        rows |= {row.name: row for row in rows_of(part) if row.name not in rows}
    return rows


@dataclass
class Ablation:
    """All rows on one bench.

    Attributes:
        rates: row -> learning rate, None where the run chooses its own.
        cells: row -> its runs, those that ended in an error as None. errors: row -> the first such error.
        reports: seed by seed, the rows of :func:`zspag_hf.evaluate_unlearning`.
    """

    rates: dict[str, float | None]
    cells: dict[str, list[dict | None]]
    errors: dict[str, str]
    reports: list[dict[str, dict]]

    def values(self, row: str, key: str) -> list[float]:
        """A row's score by seed, from the reports, where there is one."""
        values = [report[row].get(key) for report in self.reports if report.get(row)]
        return [value for value in values if value is not None]

    def success(self, row: str) -> list[float]:
        """Share of attacks that reach their target, by seed."""
        rates = [cell.get("attack_success_rate") for cell in self.cells[row] if cell is not None]
        return [rate for rate in rates if rate is not None]


def chosen_rate(runner: Runner, row: Row, seed: int) -> float:
    """By the validation half.

    Raises:
        UnlearningError: no run ended.
    """
    frontier = [runner.attempt(row.name, row.method, seed, rate) for rate in RATES]
    ended = [cell for cell in frontier if "error" not in cell]
    if not ended:
        raise UnlearningError(frontier[0]["error"])
    return chosen(ended, {})["rate"]


def confining(method: Method) -> tuple:
    """What a rate suits: the constraint and its energy threshold."""
    return getattr(method, "constraint", None), getattr(method, "threshold", None)


def as_long(method: Method, images: int) -> Method:
    """Random labels with as many steps on so many forget images as the preset takes."""
    if not isinstance(method, RandomLabels):
        return method
    return replace(method, num_train_epochs=STEPS / -(-images // quiet_config().per_device_train_batch_size))


def ablate(runner: Runner, parts: list[str], seeds: list[int]) -> Ablation:
    """Run every row for every seed; kept runs are read."""
    rows = all_rows(parts)
    rates, cells, errors = {}, {}, {}
    for row in tqdm(rows.values(), desc=runner.bench.name):
        if isinstance(row.method, ZSPAG):
            rates[row.name] = None
        elif isinstance(row.method, RandomLabels) or confining(row.method) == confining(BASES[LITERAL]):
            rates[row.name] = None  # the preset's
        else:  # what one constraint takes is too much for a looser one, and nothing for a tighter one
            rates[row.name] = chosen_rate(runner, row, seeds[0])
        cells[row.name] = []
        for seed in seeds:
            try:
                method = as_long(row.method, len(runner.parts(seed)[0]))
                cells[row.name].append(runner.cell(row.name, method, seed, rates[row.name]))
            except UnlearningError as error:  # a radius that no attack crosses, for one: part of the result
                cells[row.name].append(None)
                errors.setdefault(row.name, str(error))
    reports = []
    for place, seed in enumerate(seeds):
        done = {name: {"cells": runs} for name, runs in cells.items() if runs[place] is not None}
        reports.append(runner.evaluated({"rows": done}, seed, place))
    return Ablation(rates, cells, errors, reports)


# ---------------------------------------------------------------------------------------------------------- the page

COLUMNS = ("acc_rt", "acc_ut", "js_ut", "recovery_5", "relearn")


def table(ablation: Ablation, parts: list[str]) -> str:
    """One table a part, in Markdown."""
    before = [name for name in ("original", "masked", "retrained") if any(r.get(name) for r in ablation.reports)]
    lines = []
    for part in parts:
        lines += [
            f"## {part}",
            "",
            f"| row | {' | '.join(COLUMNS)} | attacks that succeed | seconds |",
            "|---" * (len(COLUMNS) + 3) + "|",
        ]
        lines += [line(ablation, name, name) for name in before]
        for row in rows_of(part):
            lines.append(line(ablation, f"{row.kind}: {row.variant}" + " (as it is)" * (row.name in BASES), row.name))
        lines.append("")
    return "\n".join(lines)


def line(ablation: Ablation, title: str, name: str) -> str:
    """One row of it."""
    cells = [spread(ablation.values(name, key)) for key in COLUMNS]
    runs = [cell for cell in ablation.cells.get(name, []) if cell is not None]
    cells.append(spread(ablation.success(name)) if runs else "")
    cells.append(f"{statistics.mean(cell['seconds'] for cell in runs):.1f}" if runs else "")
    return f"| {title} | " + " | ".join(cells) + " |"


def failures(ablation: Ablation) -> str:
    """Which runs ended in an error, and why."""
    lines = []
    for name, error in ablation.errors.items():
        count = sum(cell is None for cell in ablation.cells[name])
        lines.append(f"- {name}, {count} of {len(ablation.cells[name])} seeds: {' '.join(error.split())}")
    return "\n".join(["## Runs that ended in an error", "", *lines, ""]) if lines else ""


# ------------------------------------------------------------------------------------------------------- the pictures

MEMBERSHIP = "mia_entropy"  # the definition whose direction is the paper's: high where forget images pass for members


def membership_figure(reports: list[dict[str, dict]], names: dict[str, str]) -> Figure | None:
    """Figure 2: what a membership attack makes of the forget images, by model; right is what the retrained models get.

    Args:
        reports: seed by seed, row -> scores. names: rows to draw -> what to call them.

    Returns:
        None without such scores.
    """
    scores = {name: [report[name][MEMBERSHIP] for report in reports if report.get(name)] for name in names}
    scores = {name: values for name, values in scores.items() if values and None not in values}
    if not scores:
        return None
    figure = new_figure("Forget images that a membership attack takes for members", 1.9 + 0.27 * len(scores))
    axes = figure.subplots()
    entries = {}
    right = [report["retrained"][MEMBERSHIP] for report in reports if report.get("retrained")]
    if right:
        colour = ROLES["retrained"][0]
        entries["retrained, mean"] = axes.axvline(statistics.mean(right), color=colour, linewidth=1.5)
        entries["retrained, lowest to highest seed"] = axes.axvspan(min(right), max(right), color=colour, alpha=0.2)
    places = np.arange(len(scores))[::-1]
    for place, values in zip(places, scores.values(), strict=True):
        axes.plot([min(values), max(values)], [place, place], color=BESIDE[0], linewidth=1.5)
        (dots,) = axes.plot([statistics.mean(values)], [place], "o", color=BESIDE[0], markersize=6)
    entries["mean of the seeds, and from lowest to highest"] = dots
    dress(axes, f"share of the forget images called members ({MEMBERSHIP})", "", f"seeds: {len(reports)}")
    axes.set_yticks(places, [plain(names[name]) for name in scores])
    axes.set_xlim(-0.03, 1.03)
    legend(figure, entries)
    return figure


CURVES = {  # kind -> text, colour, marker
    LITERAL: ("acc_rt, the paper's form", BESIDE[0], "o"),
    PRINTED_RL: ("acc_rt, the same with random labels (b)", ROLES["unlearned"][0], "s"),
    DEFAULT: ("acc_rt, default", BESIDE[1], "^"),
}


def attack_figure(ablation: Ablation) -> Figure:
    """Figure 5: (a) the attack's radius and (b) the number of proxies against the accuracy on retained classes. That on
    forgotten classes, which the paper leaves out, is beside it: a subspace that leaves nothing free keeps both."""
    figure = new_figure("Test accuracy of the unlearned models", 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    entries = {}
    of_part = {part: rows_of(part) for part in ("radius", "proxies")}
    for axes, part, places in zip(panels, of_part, (RADII, COUNTS), strict=True):
        for kind, (text, colour, marker) in CURVES.items():
            names = [row.name for row in of_part[part] if row.kind == kind]
            drawn = curve(axes, places, [ablation.values(name, "acc_rt") for name in names], colour, marker, "-")
            entries |= {text: drawn} if drawn else {}
            curve(axes, places, [ablation.values(name, "acc_ut") for name in names], colour, marker, "--", "white")
        names = [row.name for row in of_part[part] if row.kind == LITERAL]
        drawn = curve(axes, places, [ablation.success(name) for name in names], "#777777", "d", ":")
        entries |= {"attacks that succeed, the paper's form": drawn} if drawn else {}
        for model in ("original", "retrained"):
            if values := ablation.values(model, "acc_rt"):
                colour = ROLES[model][0]
                text = f"acc_rt, {model}"
                entries[text] = axes.axhline(statistics.mean(values), color=colour, linewidth=1.2, linestyle="--")
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
    dress(panels[0], "(a) radius, share of the pixel range", "test accuracy, success rate (shares)")
    dress(panels[1], "(b) proxies a retained class", "", "hollow and dashed: acc_ut of the same")
    panels[0].set_ylim(-0.03, 1.05)
    legend(figure, entries)
    return figure


def curve(
    axes: Axes, places: tuple, groups: list[list[float]], colour: str, marker: str, style: str, fill: str | None = None
):
    """Mean over seeds, lowest to highest shaded; None without a value."""
    pairs = [(place, group) for place, group in zip(places, groups, strict=False) if group]
    if not pairs:
        return None
    at = [place for place, _ in pairs]
    mean = [statistics.mean(group) for _, group in pairs]
    options = {"linestyle": style, "linewidth": 1.8, "markersize": 6, "markerfacecolor": fill or colour}
    (drawn,) = axes.plot(at, mean, color=colour, marker=marker, **options)
    low, high = [min(group) for _, group in pairs], [max(group) for _, group in pairs]
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    return drawn


def read_reports(folder: Path | None, bench: Bench, seeds: list[int]) -> list[dict[str, dict]]:
    """The reports that tables.py kept of a bench, of each seed; empty ones without a folder.

    Raises:
        UnlearningError: the folder has none.
    """
    if folder is None:
        return [{} for _ in seeds]
    places = [folder / slug(bench.name) / f"report-{seed}.json" for seed in seeds]
    for place in places:
        if not place.exists():
            raise UnlearningError(
                f"there is no {place}: run tables.py on that bench with these seeds, or drop --tables."
            )
    return [json.loads(place.read_text()) for place in places]


def draw(ablation: Ablation, parts: list[str], beside: list[dict[str, dict]]) -> dict[str, Figure]:
    """File -> picture; figure 5 where both of its parts were run."""
    reports = [others | own for others, own in zip(beside, ablation.reports, strict=True)]
    listed = ["original", "masked", *(name for report in beside for name in report if name != "retrained"), *BASES]
    names = {name: name for name in listed}
    names |= {row.name: row.variant for row in rows_of("subspace") if "subspace" in parts}
    pictures = {"figure_2.png": membership_figure(reports, names)}
    if {"radius", "proxies"} <= set(parts):
        pictures["figure_5.png"] = attack_figure(ablation)
    return {name: picture for name, picture in pictures.items() if picture is not None}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benches", nargs="+", default=["digits"])
    parser.add_argument("--places", type=Path, help="JSON file: bench -> where its data and models are")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", type=Path, help="what tables.py wrote: its methods are drawn in figure 2 too")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ablations"))
    arguments = parser.parse_args()
    benches = load_benches(arguments.benches, read_places(arguments.places), arguments.output_dir)
    for bench in benches:
        if bench.classes is None:
            raise UnlearningError(
                f"{bench.name!r} forgets images at random, which ZS-PAG does not: give one of classes."
            )
    for bench in benches:
        beside = read_reports(arguments.tables, bench, arguments.seeds)
        runner = Runner(bench, Budget(RATES, {}), arguments.output_dir, [])
        ablation = ablate(runner, arguments.parts, arguments.seeds)
        facts = machine()
        text = f"# {bench.name}\n\n{table(ablation, arguments.parts)}\n{failures(ablation)}\n"
        text += f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores; seeds {arguments.seeds}; rate of the paper's"
        text += f" form and its variants {PRESET.learning_rate:g}.\n"
        write_whole(str(runner.folder / "table.md"), text.encode())
        for name, figure in draw(ablation, arguments.parts, beside).items():
            write_whole(str(runner.folder / name), png(figure))
        print(text)


if __name__ == "__main__":
    main()
