"""The page of a bench: one table of its methods, and what each rate came to."""

from __future__ import annotations

import statistics

from zspag_hf.metrics import compute

GAP_SCORES = ("ua", "ra", "ta", "rmia")


def spread(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def class_table(groups: dict, found: dict, reports: list[dict]) -> str:
    columns = ("acc_rt", "acc_ut", "js_ut", "mia_entropy", "relearn")
    lines = ["| method | rate | " + " | ".join(columns) + " | seconds |", "|---" * (len(columns) + 3) + "|"]

    def line(title: str, name: str, rate: str, seconds: str) -> str:
        cells = [spread([report[name].get(key) for report in reports if report.get(name)]) for key in columns]
        return f"| {title} | {rate} | " + " | ".join(cells) + f" | {seconds} |"

    lines += [line(name, name, "", "") for name in ("original", "masked", "retrained") if reports[0].get(name)]
    for group, rows in groups.items():
        lines.append(f"| *{group}* |" + " |" * (len(columns) + 2))
        for name in rows:
            row = found["rows"][name]
            seconds = statistics.mean(cell["seconds"] for cell in row["cells"])
            lines.append(line(name, name, "" if row["rate"] is None else f"{row['rate']:g}", f"{seconds:.1f}"))
    return "\n".join(lines)


def image_table(groups: dict, found: dict) -> str:
    """AMUN's columns where there are retrained models; else UA, TA and the AUC of the loss."""
    retrained = found["retrained"]
    columns = {"ua": "UA", "ta": "TA", "auc": "membership AUC"}
    if all(retrained):
        columns = {"ua": "UA", "ra": "RA", "ta": "TA", "rmia": "RMIA AUC", "gap": "Avg. Gap"}
    lines = [f"| method | rate | {' | '.join(columns.values())} | seconds |", "|---" * (len(columns) + 3) + "|"]

    def line(title: str, rate: float | None, scores: list[dict], seconds: str = "") -> str:
        cells = [spread([row.get(key) for row in scores]) for key in columns]
        return f"| {title} | {'' if rate is None else f'{rate:g}'} | " + " | ".join(cells) + f" | {seconds} |"

    lines.append(line("original", None, with_gaps(found["originals"], retrained)))
    if all(retrained):
        lines.append(line("retrained", None, [retrained_row(models) for models in retrained]))
    for group, rows in groups.items():
        lines.append(f"| *{group}* |" + " |" * (len(columns) + 2))
        for name in rows:
            row = found["rows"][name]
            seconds = statistics.mean(cell["seconds"] for cell in row["cells"])
            scores = with_gaps([cell["test"] for cell in row["cells"]], retrained)
            lines.append(line(name, row["rate"], scores, f"{seconds:.1f}"))
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


def frontiers(found: dict) -> str:
    """Every rate that was tried, on the validation half."""
    lines = ["| method | rate | scores on the validation half |", "|---|---|---|"]
    for name, row in found["rows"].items():
        for cell in row["frontier"]:
            scores = ", ".join(f"{key} {value:.3f}" for key, value in cell["validation"].items())
            rate = "own" if cell["rate"] is None else f"{cell['rate']:g}"
            lines.append(f"| {name} | {rate} | {scores} |")
    return "\n".join(lines)
