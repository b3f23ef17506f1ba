"""The pipeline's speed and memory, as ratios measured in one run: against plain fine-tuning, against retraining, and of
its stages against their literal forms.

    python examples/benchmarks/speed.py
    python examples/benchmarks/speed.py --model_name_or_path MODEL --dataset_name DATA --forget_classes cat

Peak memory is of fresh processes, and of a ViT-B/16 with random weights.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import torch
from literal import influence_by_image, influence_by_label, largest_angle, stacked_bases
from measure import DEVICE, add_results, in_fresh_process, interleaved, peak_mb, reset_peak, row
from models import (
    Case,
    architecture,
    case_parser,
    described,
    fine_tune,
    load_case,
    processor,
    random_case,
    random_images,
    random_model,
    resnet_18,
    silence,
    with_layers,
    with_random_head,
)
from torch import Tensor

from zspag_hf.cli.info import random_pixels
from zspag_hf.methods import ZSPAG, Run
from zspag_hf.pipeline.classifier import PixelClassifier, to_pixels
from zspag_hf.pipeline.gradients import layer_gradients
from zspag_hf.pipeline.grams import collect_grams
from zspag_hf.pipeline.influence import label_influence
from zspag_hf.pipeline.proxies import ProxySet, attack_pairs, make_proxies, quota_pairs
from zspag_hf.pipeline.pseudo_labels import retained_mask
from zspag_hf.pipeline.subspaces import Spectrum, merged_bases

EPOCHS = 10
THRESHOLD = 0.99
MANY = {"real": 200, "small": 9}  # classes


def retained_labels(run: Run, count: int) -> Tensor:
    """Random ones, which is what fine-tuning without further thought would teach."""
    keep = retained_mask(run.classifier.num_labels, run.forget_ids).nonzero().squeeze(1)
    return keep[torch.randint(len(keep), (count,))]


# ------------------------------------------------------------------------------------------------ the whole pipeline


def pipeline_part(arguments: Namespace) -> list[dict]:
    """The default run beside fine-tuning on the same images, and beside a share of a retraining."""
    case, stages = load_case(arguments), []
    images = min(arguments.retrain_images, case.retained)
    with silence() as folder:

        def unlearning():
            trainer = case.again().trainer(folder, per_device_train_batch_size=arguments.batch)

            def run():
                trainer.train()
                stages.append(dict(trainer.run.timings))

            return run

        def tuning(count: int | None = None, epochs: int = 1):
            seen = case.again().trainer(folder).run
            pixels = seen.forget.pixels
            if count is not None:
                pixels = pixels[torch.arange(count) % len(pixels)]
            labels = retained_labels(seen, len(pixels))
            return partial(fine_tune, seen.classifier, pixels, labels, epochs, arguments.batch)

        prepare_all = {
            "unlearning": unlearning,
            "tuning": partial(tuning, epochs=EPOCHS),
            "retraining": partial(tuning, images),
        }
        took = interleaved(prepare_all, arguments.repeats)
    forget = len(case.job.forget)
    retraining = took["retraining"] * arguments.retrain_epochs * case.retained / images
    steps, retained = f"batch {arguments.batch}", f"{case.retained:,} retained images"
    return [
        row(
            f"default run over {EPOCHS} epochs of plain fine-tuning, the same {forget:,} forget images, {steps}: time",
            took["unlearning"] / took["tuning"],
            "at most 1.5",
        ),
        row(
            f"{arguments.retrain_epochs} epochs of retraining on {retained} (scaled from a pass over {images:,}) over"
            f" the default run, {steps}: time",
            retraining / took["unlearning"],
            "at least 50",
        ),
        row("default run by stage (the last of them)", stages[-1], unit="s"),
    ]


# ------------------------------------------------------------------------------------------------------- the stages


def some_proxies(case: Case, folder: str) -> tuple[Run, ProxySet]:
    """Proxies of all forget images, as the default run makes them of its part."""
    seen, method = case.trainer(folder).run, case.method
    sizes = {"per_class": method.proxies_per_class, "max_proxies": method.max_proxies}
    attack = method.make_attack()
    return seen, make_proxies(seen.classifier, seen.forget.pixels, seen.forget_ids, attack, **sizes)


def streamed_bases(classifier, pixels, labels, layers, energy_threshold):
    """The same subspaces as :func:`literal.stacked_bases`, as the library finds them."""
    return Spectrum(collect_grams(classifier, pixels, labels, layers), DEVICE).bases(energy_threshold)


FORMS = {"streamed": streamed_bases, "stacked": stacked_bases}


def subspace_memory(arguments: Namespace, form: str) -> float:
    """Peak of one form over what was held before, in MB. For a fresh process."""
    torch.set_num_threads(arguments.threads)
    with silence() as folder:
        seen, proxies = some_proxies(load_case(arguments), folder)
        seen.classifier.predict(proxies.pixels)  # buffers of the forward pass belong to neither form
        before = reset_peak()
        FORMS[form](seen.classifier, proxies.pixels, proxies.labels, seen.layers, THRESHOLD)
        return peak_mb() - before


def subspace_times(arguments: Namespace, inputs: tuple) -> dict[str, float]:
    """Seconds of the library's way, of one SVD of all rows, and of the equations as written."""
    forms = FORMS | {"class by class": merged_bases}
    return interleaved(
        {name: lambda form=form: partial(form, *inputs) for name, form in forms.items()}, arguments.repeats
    )


def many_classes(arguments: Namespace) -> Case:
    """The model of the options with a random head for more classes, and the same images."""
    case = load_case(arguments)
    images = list(case.job.forget[case.config.image_column_name])
    model = with_random_head(case.job.model, case.job.processor, MANY[arguments.size])
    return random_case(model, case.job.processor, images, method=case.method)


def subspaces_part(arguments: Namespace) -> list[dict]:
    """Eq. 3-4 by stacked rows and SVDs against streamed Gram matrices; of few classes, and of many."""
    rows = []
    for case in (load_case(arguments), many_classes(arguments)):
        with silence() as folder:
            seen, proxies = some_proxies(case, folder)
            inputs = (seen.classifier, proxies.pixels, proxies.labels, seen.layers, THRESHOLD)
            angle = largest_angle(streamed_bases(*inputs), stacked_bases(*inputs))
            took = subspace_times(arguments, inputs)
        what = f"subspaces of {len(proxies):,} proxies of {len(proxies.labels.unique())} classes at energy {THRESHOLD}"
        rows += [
            row(
                f"{what}, one SVD of all rows and streamed Gram matrices: largest principal angle",
                angle,
                "under 0.001",
                "rad",
            ),
            row(f"{what}, one SVD of all rows over streamed Gram matrices: time", took["stacked"] / took["streamed"]),
            row(
                f"{what}, eq. 3-4 as written (an SVD and a merge a class) over streamed Gram matrices: time",
                took["class by class"] / took["streamed"],
                "at least 10",
            ),
        ]
    with silence():
        memory = {name: in_fresh_process(subspace_memory, arguments, name) for name in FORMS}
    what = "subspaces of the own classes, one SVD of all rows and streamed Gram matrices, above what was held before"
    return [
        *rows,
        row(f"{what}: peak memory of the first over the second", memory["stacked"] / memory["streamed"], "at least 10"),
        row(f"{what}: peak memory", memory, unit="MB"),
    ]


def influence_part(arguments: Namespace) -> list[dict]:
    """One forward-mode derivative for all labels against one backward pass a label, on a random residual network."""
    small = arguments.size == "small"
    side, count, labels = (16, 4, 12) if small else (64, 64, 200)
    model = random_model(resnet_18([8, 8, 16, 16] if small else [32, 64, 128, 256], 1 if small else 2), labels)
    classifier, layers = with_layers(model, processor(side))
    pixels = random_pixels(classifier, processor(side), count)
    v = layer_gradients(classifier, pixels, classifier.predict(pixels).argsort(1)[:, 1], layers)
    few = pixels[:2]
    forms = {
        "forward": partial(label_influence, classifier, pixels, v, layers),
        "backward": partial(influence_by_label, classifier, pixels, v, layers),
        "by image": partial(influence_by_image, classifier, few, v, layers),
    }
    values = {name: form() for name, form in forms.items()}
    took = interleaved({name: lambda form=form: form for name, form in forms.items()}, arguments.repeats)
    by_image = took["by image"] * len(pixels) / len(few)
    what = f"influence of {labels} labels on {count} images, a residual network of {side} pixels"
    difference = (values["forward"] - values["backward"]).abs().max() / values["backward"].abs().max()
    return [
        row(
            f"{what}: a backward pass a label (without gradients of weights) over one forward-mode derivative, time",
            took["backward"] / took["forward"],
            "at least 50",
        ),
        row(
            f"{what}: gradients of all weights, an image and label each (scaled from {len(few)} images), over one"
            " forward-mode derivative, time",
            by_image / took["forward"],
        ),
        row(f"{what}: largest difference over the largest value", float(difference)),
    ]


def attack_part(arguments: Namespace) -> list[dict]:
    """PGD that leaves an image once it has crossed against PGD that spends every step."""
    with silence() as folder:
        case = load_case(arguments)
        seen, method = case.trainer(folder).run, case.method
        classifier, pixels = seen.classifier, seen.forget.pixels
        logits = classifier.predict(pixels)
        pairs, _ = quota_pairs(logits, seen.forget_ids, method.proxies_per_class, method.max_proxies)
        crossed = {}

        def attacking(name: str, leave_early: bool):
            def run():
                attack = method.make_attack()
                attack.leave_early = leave_early
                taken = attack_pairs(classifier, pixels, pairs, attack)
                crossed[name] = len(taken[1]) / len(pairs)

            return run

        forms = {"leaving early": True, "every step": False}
        took = interleaved({name: partial(attacking, name, early) for name, early in forms.items()}, arguments.repeats)
    what = f"PGD on {len(pairs):,} pairs of image and class, at most {method.make_attack().steps} steps"
    return [
        row(f"{what}: every step over leaving early, time", took["every step"] / took["leaving early"]),
        row(f"{what}: share that crosses", {name: crossed[name] for name in forms}),
    ]


# ------------------------------------------------------------------------------------------------------------ memory


LARGE = {"real": ("ViT-B/16", 96, 64), "small": ("ViT of 32 pixels", 24, 4)}  # forget images, proxies
LARGE_STEPS = 3


def whole_memory(arguments: Namespace, form: str) -> float:
    """Peak of a process that unlearns, or fine-tunes, in MB; on random weights and images.

    Few images and proxies: the peak does not depend on how many there are once they fill a batch. The class is the one
    that the model gives second most, so that attacks leave it.
    """
    torch.set_num_threads(arguments.threads)
    name, images, proxies = LARGE[arguments.size]
    model, made = architecture(name, arguments.size)
    pictures = random_images(images, made.size["height"])
    model.to(DEVICE)
    if form == "tuning":
        classifier = PixelClassifier(model, made).to(DEVICE)
        fine_tune(classifier, to_pixels(pictures, made), torch.zeros(images, dtype=torch.long), 1, arguments.batch)
        return peak_mb()
    case = random_case(model, made, pictures, 1, ZSPAG(max_proxies=proxies, attack_steps=1), max_steps=LARGE_STEPS)
    with silence() as folder:
        case.trainer(folder, per_device_train_batch_size=arguments.batch).train()
    return peak_mb()


def memory_part(arguments: Namespace) -> list[dict]:
    """The default run beside plain fine-tuning, each in a process of its own."""
    memory = {name: in_fresh_process(whole_memory, arguments, name) for name in ("unlearning", "tuning")}
    name, images, proxies = LARGE[arguments.size]
    what = f"{name}, random weights, batch {arguments.batch}, {images} forget images, {proxies} proxies"
    what += f", {LARGE_STEPS} steps"
    return [
        row(
            f"{what}: peak memory of the default run over plain fine-tuning's",
            memory["unlearning"] / memory["tuning"],
            "at most 1.3",
        ),
        row(f"{what}: peak memory of the process", memory, unit="MB"),
    ]


PARTS = {
    "pipeline": pipeline_part,
    "subspaces": subspaces_part,
    "influence": influence_part,
    "attack": attack_part,
    "memory": memory_part,
}


def main() -> None:
    """Run the command line."""
    parser = case_parser(__doc__, repeats=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--retrain_epochs", type=int, default=12)
    parser.add_argument("--retrain_images", type=int, default=2048, help="images of an epoch that are timed")
    arguments = parser.parse_args()
    arguments.threads = torch.get_num_threads()
    torch.manual_seed(0)
    for part in arguments.parts:
        subject = described(load_case(arguments)) if part in ("pipeline", "subspaces", "attack") else ""
        add_results(arguments.output, part, PARTS[part](arguments), subject)


if __name__ == "__main__":
    main()
