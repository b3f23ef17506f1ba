"""What a few real images buy: 1, 10 and 100 a class, retained ones or unlabelled ones, beside the proxies.

    python examples/benchmarks/real_images.py                             # digits, which needs nothing
    python examples/benchmarks/real_images.py --benches faces --places places.json  # as tables.py reads it

The unlabelled images are those of the test split's half that is not reported, of forgotten classes too, without their
labels; where that half has fewer of a class, all of them. With ``--half validation`` that half is reported and nothing
unlabelled is read: forms of the method are chosen by it. Each run is kept in ``--output_dir``, so that an interrupted
command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from benches import Bench, load_benches, read_places, slug
from datasets import Dataset
from models import quiet_config, silence

from zspag_hf import UnlearningTrainer, evaluate_unlearning
from zspag_hf.methods import ZSPAG
from zspag_hf.report.files import write_whole

COLUMNS = ("acc_rt", "acc_ut", "js_ut", "recovery_5", "relearn")
BESIDE = ("original", "masked", "retrained")


def few(data: Dataset, count: int, seed: int) -> Dataset:
    """At most so many images of each class, drawn at random: those of a smaller count are among them."""
    order, labels = np.random.default_rng(seed).permutation(len(data)), np.asarray(data["label"][:])
    return data.select(sorted(row for k in np.unique(labels) for row in order[labels[order] == k][:count]))


def settings(bench: Bench, half: str, counts: list[int], seed: int) -> dict[str, dict]:
    """Row -> the data sets that a run is given beside the forget images."""
    retain, rows = bench.parts(seed)[1], {"none": {}}
    rows |= {f"{count} retained": {"retain_dataset": few(retain, count, seed)} for count in counts}
    if half == "test":
        unlabelled = {count: few(bench.validation, count, seed).select_columns(["image"]) for count in counts}
        most = max(map(len, unlabelled.values()))
        first = next(count for count in counts if len(unlabelled[count]) == most)
        rows |= {f"{c} unlabelled": {"public_dataset": d} for c, d in unlabelled.items() if c <= first}
    return rows


def trained(bench: Bench, seed: int, given: dict[str, Dataset], place: Path) -> dict:
    """What the run says of itself; its model is in ``place``, from an earlier command or from now."""
    known = place / "run.json"
    if not known.exists():
        (model, processor), forget = bench.model(seed), bench.parts(seed)[0]
        method = ZSPAG(with_retain="retain_dataset" in given)
        with silence() as folder:
            config = quiet_config(forget_classes=bench.classes, seed=seed, output_dir=folder)
            trainer = UnlearningTrainer(model, config, forget, method=method, processing_class=processor, **given)
            trainer.train()
            trainer.model.save_pretrained(place)
        used = (trainer.report.public_images or {}).get("used") or trainer.report.retained_images
        facts = {"images": used or 0, "seconds": trainer.run.timings["total"], "choice": trainer.report.choice}
        write_whole(str(known), json.dumps(facts).encode())
    return json.loads(known.read_text())


def table(bench: Bench, half: str, counts: list[int], seed: int, folder: Path) -> str:
    """The rows of one bench, in Markdown."""
    rows = settings(bench, half, counts, seed)
    places = {name: folder / slug(bench.name) / slug(f"{seed} {name} {half}") for name in rows}
    facts = {name: trained(bench, seed, given, places[name]) for name, given in rows.items()}
    (model, processor), (forget, _) = bench.model(seed), bench.parts(seed)
    saved = {name: bench.saved(str(place)) for name, place in places.items()}
    with silence():
        report = evaluate_unlearning(
            model,
            saved.pop("none"),
            forget,
            getattr(bench, half),
            bench.classes,
            retrained=bench.retrained(seed) or None,
            beside=saved,
            processing_class=processor,
            seed=seed,
            disable_progress=True,
        )
    head = (bench.name, "images", *COLUMNS, "seconds")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in [name for name in (*BESIDE, *rows) if name in rows or report.models.get(name)]:
        scores, fact = report.models["unlearned" if name == "none" else name], facts.get(name, {})
        told = [f"{scores[column]:.3f}" if scores[column] is not None else "" for column in COLUMNS]
        seconds = f"{fact['seconds']:.0f}" if fact else ""
        lines.append(f"| {name} | {fact.get('images', '')} | {' | '.join(told)} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benches", nargs="+", default=["digits"])
    parser.add_argument("--places", type=Path, help="JSON file: bench -> where its data and models are")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100], help="images a class")
    parser.add_argument("--half", choices=("test", "validation"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/real-images"))
    arguments = parser.parse_args()
    for bench in load_benches(arguments.benches, read_places(arguments.places), arguments.output_dir):
        print(table(bench, arguments.half, arguments.counts, arguments.seed, arguments.output_dir), flush=True)


if __name__ == "__main__":
    main()
