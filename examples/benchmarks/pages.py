"""The page of a bench: one table of its methods, and what each rate came to."""

from __future__ import annotations

import statistics

from zspag_hf.metrics import compute

GAP_SCORES = ("ua", "ra", "ta", "rmia")
NEARLY = "acc_rt / acc_ut at .05"

# acc_rt / acc_ut in percent as table 1 of arXiv 2507.21738 has them, mean of three runs: data set -> row of benches.py
PUBLISHED: dict[str, dict[str, str]] = {
    "CIFAR-10": {
        "original": "83.8 / 64.0",
        "retrained": "86.6 / 0",
        "random labels (FT)": "87.6 / 6.4",
        "random labels (FT-zs)": "80.7 / 4.7",
        "NegGrad+": "88.3 / 4.1",
        "NegGrad-zs": "76.9 / 1.8",
        "BadT": "85.5 / 2.2",
        "BadT-zs": "68.5 / 4.2",
        "SalUn": "87.5 / 6.5",
        "SalUn-zs": "80.8 / 4.6",
        "Fisher": "84.5 / 6.3",
        "boundary shrink": "80.8 / 4.7",
        "GKT": "74.7 / 9.8",
        "ZS-PAG": "85.5 / 1.4",
    },
    "CIFAR-100": {
        "original": "73.3 / 72.1",
        "retrained": "75.4 / 0",
        "random labels (FT)": "74.7 / 2.3",
        "random labels (FT-zs)": "66.6 / 0.3",
        "NegGrad+": "75.2 / 3.0",
        "NegGrad-zs": "66.0 / 2.3",
        "BadT": "71.9 / 8.3",
        "BadT-zs": "24.7 / 8.7",
        "SalUn": "74.7 / 1.7",
        "SalUn-zs": "67.8 / 0",
        "Fisher": "50.0 / 0",
        "boundary shrink": "69.5 / 3.0",
        "GKT": "63.5 / 6.0",
        "ZS-PAG": "75.5 / 2.0",
    },
    "Facescrub": {
        "original": "96.2 / 96.1",
        "retrained": "96.3 / 0",
        "random labels (FT)": "74.7 / 0",
        "random labels (FT-zs)": "78.7 / 0",
        "NegGrad+": "65.6 / 0",
        "NegGrad-zs": "79.1 / 3.9",
        "BadT": "87.5 / 6.4",
        "BadT-zs": "74.6 / 5.8",
        "SalUn": "85.2 / 1.3",
        "SalUn-zs": "77.5 / 0",
        "Fisher": "51.9 / 0",
        "boundary shrink": "77.2 / 0.6",
        "GKT": "73.1 / 1.0",
        "ZS-PAG": "96.5 / 1.9",
    },
}


def spread(values: list[float | None]) -> str:
    """Mean and sample standard deviation."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def class_table(groups: dict, results: dict, reports: list[dict], published: dict[str, str] | None = None) -> str:
    """Mean and spread over the seeds' reports; with published figures in a last column, where there are any."""
    columns = ("acc_rt", "acc_ut", "js_ut", "recovery_5", "mia_entropy", "relearn")
    names = ["method", "rate", *columns, "seconds", NEARLY, *([] if published is None else ["published, %"])]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]

    def line(title: str, name: str, rate: str, seconds: str, nearly: str = "") -> str:
        cells = [spread([report[name].get(key) for report in reports if report.get(name)]) for key in columns]
        cells += [seconds, nearly] if published is None else [seconds, nearly, published.get(name, "")]
        return f"| {title} | {rate} | " + " | ".join(cells) + " |"

    lines += [line(name, name, "", "") for name in ("original", "masked", "retrained") if reports[0].get(name)]
    for group, rows in groups.items():
        lines.append(f"| *{group}* |" + " |" * (len(names) - 1))
        for name in rows:
            row = results["rows"][name]
            seconds = mean_seconds(row["cells"])
            rate = "" if row["rate"] is None else f"{row['rate']:g}"
            lines.append(line(name, name, rate, seconds, nearly_forgotten(row)))
    return "\n".join(lines)


def nearly_forgotten(row: dict) -> str:
    """acc_rt / acc_ut of the rate that was chosen for less forgetting, with the first seed, and the rate, where that is
    another one."""
    cell = row.get("nearly")
    if cell is None or cell["rate"] == row["rate"]:
        return "" if cell is None else "the same"
    scores = " / ".join(f"{cell['test'][key]:.3f}" for key in ("acc_rt", "acc_ut"))
    return f"{scores} at {cell['rate']:g}"


def mean_seconds(cells: list[dict]) -> str:
    """Of the runs that ended."""
    took = [cell["seconds"] for cell in cells if "error" not in cell]
    return f"{statistics.mean(took):.1f}" if took else "-"


def image_table(groups: dict, results: dict) -> str:
    """AMUN's columns where there are retrained models; else UA, TA and the AUC of the loss."""
    retrained = results["retrained"]
    columns = {"ua": "UA", "ta": "TA", "auc": "membership AUC"}
    if all(retrained):
        columns = {"ua": "UA", "ra": "RA", "ta": "TA", "rmia": "RMIA AUC", "gap": "Avg. Gap"}
    lines = [f"| method | rate | {' | '.join(columns.values())} | seconds |", "|---" * (len(columns) + 3) + "|"]

    def line(title: str, rate: float | None, scores: list[dict], seconds: str = "") -> str:
        cells = [spread([row.get(key) for row in scores]) for key in columns]
        return f"| {title} | {'' if rate is None else f'{rate:g}'} | " + " | ".join(cells) + f" | {seconds} |"

    lines.append(line("original", None, with_gaps(results["originals"], retrained)))
    if all(retrained):
        lines.append(line("retrained", None, [retrained_row(models) for models in retrained]))
    for group, rows in groups.items():
        lines.append(f"| *{group}* |" + " |" * (len(columns) + 2))
        for name in rows:
            row = results["rows"][name]
            ended = [i for i, cell in enumerate(row["cells"]) if "error" not in cell]
            scores = with_gaps([row["cells"][i]["test"] for i in ended], [retrained[i] for i in ended])
            lines.append(line(name, row["rate"], scores, mean_seconds(row["cells"])))
    return "\n".join(lines)


def with_gaps(scores: list[dict], retrained: list[list[dict]]) -> list[dict]:
    """With Avg. Gap to the mean of the retrained models, seed by seed, where there are any."""
    pairs = zip(scores, retrained, strict=True)
    return [row | {"gap": average_gap(row, models)} if models else row for row, models in pairs]


def average_gap(row: dict, models: list[dict]) -> float:
    """Mean distance of GAP_SCORES from the mean of the models'."""
    middle = [statistics.mean(model[key] for model in models) for key in GAP_SCORES]
    own = [row[key] for key in GAP_SCORES]
    return compute("gap_to_retrained", predictions=own, references=middle)["avg_gap"]


def retrained_row(models: list[dict]) -> dict:
    """Mean of the retrained models' scores, and as gap the mean distance of one from the others."""
    mean = {key: statistics.mean(model[key] for model in models) for key in GAP_SCORES}
    if len(models) > 1:
        others = [[other for other in models if other is not model] for model in models]
        mean["gap"] = statistics.mean(map(average_gap, models, others))
    return mean


def frontiers(results: dict) -> str:
    """Every rate that was tried, on the validation half, or why there is nothing; beside the published one the size of
    its batches."""
    lines = ["| method | rate | scores on the validation half |", "|---|---|---|"]
    for name, row in results["rows"].items():
        for cell in row["frontier"]:
            scores = cell.get("error") or ", ".join(f"{key} {value:.3f}" for key, value in cell["validation"].items())
            rate = "own" if cell["rate"] is None else f"{cell['rate']:g}"
            published, batch = row.get("published", (None, None))
            if batch is not None and cell["rate"] in (published, None):
                rate += f" (published, batches of {batch})"
            lines.append(f"| {name} | {rate} | {scores} |")
    return "\n".join(lines)
