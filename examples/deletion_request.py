"""Two people ask, one after the other, that a face classifier forget them.

    accelerate launch examples/deletion_request.py

needs no network: it trains a small classifier on drawn faces of eight people who never lived, forgets "Ada", and then
"Grace" on the model that is left. Between the requests nothing is kept but that model's folder: its config says what
was forgotten, so the second request brings nobody back. With a classifier and pictures of your own, each person a
class:

    accelerate launch examples/deletion_request.py --model_name_or_path user/faces --dataset_name user/pictures \\
        --people ann bob --output_dir outputs/without

Every field of UnlearningConfig is an option.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from digits import digits_model, train_classifier
from faces import PEOPLE, faces_dataset

from zspag_hf import UnlearningConfig
from zspag_hf.cli.exit_status import reported
from zspag_hf.cli.jobs import DataArguments, Job, announce, load_job, run
from zspag_hf.cli.parsing import parse_run
from zspag_hf.cli.running import MethodArguments
from zspag_hf.data.labels import resolve_classes, rows_of_classes
from zspag_hf.data.request import proves
from zspag_hf.hub.models import load_classifier
from zspag_hf.trainer.trainer import UnlearningTrainer


@dataclass
class RequestArguments:
    """Who asks."""

    people: list[str] = field(
        default_factory=lambda: ["Ada", "Grace"],
        metadata={"help": "Who asks to be forgotten, one request each, in this order."},
    )


def train_on_faces(folder: Path, config: UnlearningConfig) -> str:
    """The classifier that the requests are about, saved as any other."""
    model, processor = digits_model(PEOPLE, config.seed, size=32, patch=4)
    train_classifier(model, processor, faces_dataset(), [], replace(config, output_dir=str(folder)), epochs=30)
    if config.process_index == 0:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    config.distributed_state.wait_for_everyone()
    return str(folder)


def drawn_job(source: str, person: str, config: UnlearningConfig) -> Job:
    """The classifier as it is now, one person's pictures, and pictures of everybody to test on."""
    model, processor = load_classifier(source, hub=config.hub)
    pictures = faces_dataset()
    rows = rows_of_classes(pictures, "label", range(len(PEOPLE)), [PEOPLE.index(person)])
    return Job(model, processor, pictures.select(rows), faces_dataset(20, seed=1))


def show(trainers: dict[str, UnlearningTrainer]) -> None:
    """Who is still recognised after each request, and what the last model says of itself."""
    first, last = (list(trainers.values())[i] for i in (0, -1))
    columns = {"before": first.report.models["original"]["per_class"]}
    columns |= {f"without {name}": run.report.models["unlearned"]["per_class"] for name, run in trainers.items()}
    print("\ntest accuracy".ljust(21) + "".join(f"{title:>20}" for title in columns))
    for name in columns["before"]:
        print(f"{name:<20}" + "".join(f"{column[name]:>20.2f}" for column in columns.values()))
    print("\nthe ledger in config.json:")
    for number, entry in enumerate(last.model.config.unlearning, 1):
        who = ", ".join(known["label"] for known in entry["classes"])
        print(f"  {number}. {entry['date']}  {who}, {entry['images']} images, commitment {entry['commitment'][:16]}...")
    for name, trainer in trainers.items():
        folder = trainer.args.output_dir
        kept = proves(folder, trainer.report.request, trainer.run.forget.images)
        print(f"the pictures of {name} {'are' if kept else 'are NOT'} those that {folder} commits to")


def main() -> None:
    """Run the command line."""
    types = (RequestArguments, DataArguments, MethodArguments)
    arguments, data, beside, config, method = parse_run(types, sys.argv[1:])
    out = Path("outputs/deletion" if config.output_dir == UnlearningConfig.output_dir else config.output_dir)
    drawn = data.model_name_or_path is None
    if drawn:
        resolve_classes(arguments.people, PEOPLE)  # a name that nobody has is told before the training
    source = train_on_faces(out / "original", config) if drawn else data.model_name_or_path
    trainers = {}
    for number, person in enumerate(arguments.people, 1):
        announce(f"request {number}: {person}")
        wish = replace(config, forget_classes=[person], output_dir=str(out / f"without-{number}"))
        now = replace(data, model_name_or_path=source)
        job = drawn_job(source, person, wish) if drawn else load_job(now, wish, method)
        trainers[person] = run(job, wish, method, beside.rows(), data.level)
        source = wish.output_dir  # all that the next request knows
    if trainers[person].is_world_process_zero():
        show(trainers)


if __name__ == "__main__":
    reported(main)
