"""Real images beside adversarial proxies: what they may be used for, and that nothing changes without them."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import NAMES, config, images, learned_model, patterns, tiny_model, trainer
from transformers import TrainerCallback

sys.path.append(str(Path(__file__).parent.parent / "examples" / "benchmarks"))

import real_images

from zspag_hf.cli.jobs import DataArguments, load_job
from zspag_hf.hub.datasets import load_split
from zspag_hf.methods import ZSPAG
from zspag_hf.methods.real_proxies import (
    GONE,
    RealImages,
    evened,
    first_of_each,
    gather_real,
    joined,
    retained_answers,
    split,
)
from zspag_hf.pipeline.proxies import ProxySet
from zspag_hf.report.card import model_card
from zspag_hf.report.command import command
from zspag_hf.trainer.run_key import run_key

FORGET = patterns([2] * 16, 1)
RETAIN = patterns([0, 1, 3, 4, 0, 1, 3, 4, 0], 2)
PUBLIC = patterns([0, 1, 2, 3, 4] * 4, 3)
DEEP = {"method": "zspag", "max_steps": 12, "proxies_per_class": 6, "attack_eps": 0.5}
DEEP |= {"per_device_train_batch_size": 4}


class Tripwire:
    """A data set that must not be looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"touched: {name}")


class Cut(BaseException):
    """A run that is cut off."""


class CutAt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 6:
            raise Cut


def make(folder, **options):
    return trainer(folder, model=learned_model(), forget=FORGET, **{**DEEP, **options})


def weights(job):
    return torch.cat([tensor.flatten().double() for tensor in job.model.state_dict().values()])


def rows_of(pixels):
    """Each image as bytes, without what float32 rounds off."""
    return {(image * 255).round().byte().numpy().tobytes() for image in pixels}


def proxies(labels, own=None):
    pixels = torch.rand(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return ProxySet(pixels, torch.tensor(labels), 9, 1.0, {}, {}, None if own is None else torch.tensor(own))


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A run with images of both kinds."""
    job = make(tmp_path_factory.mktemp("used"), with_retain=True, retain=RETAIN, public=PUBLIC)
    job.train()
    return job


class TestSplit:
    LABELS = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 4])

    def test_every_class_of_two_has_an_image_on_either_side_and_a_single_one_trains(self):
        for share in (0.01, 0.3, 0.99):
            training, judging = split(self.LABELS, share, seed=0)
            assert sorted([*training.tolist(), *judging.tolist()]) == list(range(13))
            assert set(self.LABELS[training].tolist()) == {0, 3, 4} and set(self.LABELS[judging].tolist()) == {0, 3}

    def test_it_is_by_the_share_and_drawn_from_the_seed(self):
        training, judging = split(self.LABELS, 0.3, seed=0)
        assert (self.LABELS[judging] == 0).sum() == 3
        assert torch.equal(split(self.LABELS, 0.3, seed=0)[0], training)
        assert any(not torch.equal(split(self.LABELS, 0.3, seed)[0], training) for seed in range(1, 5))

    def test_of_no_image_both_parts_are_empty(self):
        assert [len(part) for part in split(self.LABELS[:0], 0.3, seed=0)] == [0, 0]


class TestBesideProxies:
    def test_a_class_counts_as_much_as_proxies_do_and_no_image_is_lost(self):
        rows = evened(torch.tensor([1, 3, 3, 3, 4, 4]), 4)
        labels = torch.tensor([1, 3, 3, 3, 4, 4])[rows]
        assert torch.bincount(labels).tolist() == [0, 4, 0, 3, 4] and rows.unique().tolist() == list(range(6))
        assert evened(torch.tensor([1] * 9), 4).tolist() == list(range(9))

    def test_they_come_behind_the_proxies_with_labels_and_no_wrong_one(self):
        held = proxies([0, 0, 1, 1], [2, -1, 2, 2])
        picture = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
        both = RealImages(picture, torch.tensor([3])).beside(held, seed=0)
        assert both.labels.tolist() == [0, 0, 1, 1, 3, 3] and both.own.tolist() == [2, -1, 2, 2, -1, -1]
        assert torch.equal(both.pixels[:4], held.pixels) and torch.equal(both.pixels[4:5], picture)
        assert not torch.equal(both.pixels[5:], picture) and 0 <= both.pixels.min() <= both.pixels.max() <= 1
        again = RealImages(picture, torch.tensor([3])).beside(held, seed=0)
        assert torch.equal(again.pixels, both.pixels)
        assert both.attempted == held.attempted, "what attacks did stays as it was"

    def test_without_any_the_proxies_are_the_same_to_the_bit(self):
        held = proxies([0, 1], [2, -1])
        assert RealImages(torch.ones(0, 1, 2, 2), torch.ones(0, dtype=torch.long)).beside(held, 0) is held
        twice = joined(replace(held, pixels=held.pixels + 1), held)
        assert torch.equal(twice.pixels, torch.cat([held.pixels + 1, held.pixels]))
        assert twice.labels.tolist() == [0, 1, 0, 1] and twice.own.tolist() == [2, -1, 2, -1]
        assert joined(proxies([0]), proxies([1])).own is None

    def test_repeated_images_count_once(self):
        pixels = torch.tensor([3, 1, 3, 2, 1])[:, None]
        assert first_of_each(pixels).tolist() == [0, 1, 3] and first_of_each(pixels[:0]).tolist() == []


class TestGathered:
    def run(self, public, retained=None):
        """What gather_real reads of a run, over a model that answers with an image's first pixel."""
        classifier = SimpleNamespace(
            predict_shared=lambda pixels: torch.nn.functional.one_hot(pixels[:, 0, 0, 0].long(), 5).float()
        )
        forget = SimpleNamespace(pixels=torch.full((2, 1, 2, 2), 2, dtype=torch.uint8), labels=torch.tensor([2, 2]))
        stages = []

        def stage(name, make, under=None):
            stages.append(name)
            return make()

        return SimpleNamespace(
            classifier=classifier,
            forget=forget,
            forget_ids=[1, 2],
            seed=0,
            retained=retained,
            public=public,
            stage=stage,
            stages=stages,
        )

    def public(self, *answers):
        pixels = torch.arange(len(answers) * 4, dtype=torch.uint8).reshape(-1, 1, 2, 2) + 10
        pixels[:, 0, 0, 0] = torch.tensor(answers, dtype=torch.uint8)
        return pixels

    def test_public_images_of_forgotten_classes_are_left_out_and_counted(self):
        run = self.run(self.public(0, 1, 2, 3, 3, 2))
        assert retained_answers(run).tolist() == [0, GONE, GONE, 3, 3, GONE]
        real = gather_real(run, 0.5)
        assert sorted([*real.training.labels.tolist(), *real.judging.labels.tolist()]) == [0, 3, 3]
        assert real.facts == {"public": {"used": 3, "left_out": 3}} and run.stages == ["public_labels"]
        assert real.training.pixels.dtype == torch.float32 and real.training.pixels.max() <= 1

    def test_an_image_of_both_kinds_trains_or_judges(self):
        public = self.public(0, 0, 0, 3)
        retained = SimpleNamespace(pixels=public.flip(0), labels=torch.tensor([3, 4, 4, 4]))
        real = gather_real(self.run(public, retained), 0.5)
        assert sorted([*real.training.labels.tolist(), *real.judging.labels.tolist()]) == [3, 4, 4, 4]
        assert not rows_of(real.training.pixels) & rows_of(real.judging.pixels)

    def test_without_either_both_parts_are_empty_and_no_stage_is_made(self):
        run = self.run(None)
        real = gather_real(run, 0.5)
        assert len(real.training.labels) == len(real.judging.labels) == 0 and not real.facts and not run.stages


class TestRun:
    def test_no_image_that_judges_trains(self, used):
        training, judging = used.run.plan.proxies.pixels, used.run.plan.facts["control"].held_out.proxies
        real = rows_of(used.run.retained.pixels.float() / 255) | rows_of(used.run.public.float() / 255)
        mine, theirs = rows_of(training) & real, rows_of(judging) & real
        assert mine and theirs and not mine & theirs

    def test_they_stand_among_the_confident_proxies_whose_features_are_drawn(self, used):
        kept = used.run.plan.proxies
        assert len(kept.labels) == len(kept.features) < len(kept.pixels)
        assert rows_of(kept.pixels[: len(kept.labels)]) & rows_of(used.run.retained.pixels.float() / 255)
        assert not rows_of(kept.pixels[len(kept.labels) :]) & rows_of(used.run.retained.pixels.float() / 255)
        assert not torch.isin(kept.labels, torch.tensor(used.run.forget_ids)).any()

    def test_the_report_and_the_card_say_how_many_and_not_which(self, used):
        report = used.report
        assert report.reads_retained and not report.zero_shot and report.retained_images == 9
        counts = report.public_images
        assert counts["used"] + counts["left_out"] == 20 and counts["left_out"] >= 1
        told = f"{counts['left_out']} of 20 unlabelled images were left out"
        assert any(told in line for line in report.left_out())
        card = str(model_card(report))
        assert "retained training data, 9 images." in card and told in card
        assert f"{counts['used']} unlabelled images of the same kind" in card
        assert "--public_dataset_name PUBLIC" in command(report) and "PUBLIC stands for" in card

    def test_public_images_alone_are_told_and_are_no_retained_data(self, tmp_path):
        job = make(tmp_path, public=PUBLIC, max_steps=2)
        job.train()
        card = str(model_card(job.report))
        assert job.report.zero_shot and job.report.retained_images is None and job.run.retained is None
        assert "no other training data. It also saw" in card

    def test_no_retained_image_is_touched_and_nothing_changes_without_with_retain(self, tmp_path):
        plain, wired = (make(tmp_path / n, retain=given) for n, given in (("a", None), ("b", Tripwire())))
        assert run_key(plain.run, plain.completed_method) == run_key(wired.run, wired.completed_method)
        plain.train()
        wired.train()
        assert torch.equal(weights(plain), weights(wired))
        with pytest.raises(AssertionError, match="touched"):
            make(tmp_path / "c", retain=Tripwire(), with_retain=True)

    def test_the_label_column_of_public_images_is_neither_needed_nor_read(self, tmp_path):
        wrong = PUBLIC.remove_columns("label").add_column("label", [None] * 20)
        keys = []
        for given in (PUBLIC, wrong, PUBLIC.select_columns(["image"])):
            job = make(tmp_path, public=given)
            keys.append(run_key(job.run, job.completed_method))
        assert keys[0] == keys[1] == keys[2]

    def test_other_images_are_another_run(self, tmp_path):
        keys = []
        for given in (None, PUBLIC, PUBLIC.select(range(10))):
            job = make(tmp_path, public=given)
            keys.append(run_key(job.run, job.completed_method)["public images"])
        assert keys[0] is None and len(set(keys)) == 3

    @pytest.mark.slow
    def test_cut_off_and_gone_on_with_it_ends_as_one_left_alone(self, tmp_path, used):
        given = {"with_retain": True, "retain": RETAIN, "public": PUBLIC, "save_strategy": "steps", "save_steps": 4}
        with pytest.raises(Cut):
            make(tmp_path, callbacks=[CutAt()], **given).train()
        again = make(tmp_path, **given)
        again.train(resume_from_checkpoint=True)
        assert torch.equal(weights(again), weights(used))
        assert again.report.public_images == used.report.public_images


class TestCommand:
    def test_a_job_reads_unlabelled_data_by_name(self, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        for split_name, labels in (("train", [0, 1, 2, 2, 3, 4]), ("test", [0, 2, 3])):
            images(labels).to_parquet(folder / f"{split_name}.parquet")
        (tmp_path / "public").mkdir()
        images([0, 1], seed=8).select_columns(["image"]).to_parquet(tmp_path / "public" / "train.parquet")
        tiny = tmp_path / "model"
        made = trainer(tmp_path, model=tiny_model())
        made.model.save_pretrained(tiny)
        made.processing_class.save_pretrained(tiny)
        data = DataArguments(str(tiny), public_dataset_name=str(tmp_path / "public"))
        args = config(tmp_path, dataset_name=str(folder), cache_dir=str(tmp_path / "cache"))
        job = load_job(data, args, ZSPAG())
        assert job.public.column_names == ["image"] and len(job.public) == 2 and job.retain is None
        assert "public_dataset_name" not in job.given, "it may be a folder"
        assert load_job(replace(data, public_dataset_name=None), args, ZSPAG()).public is None
        assert load_split(str(folder), "test").features["label"].names == NAMES


class TestBenchmark:
    """examples/benchmarks/real_images.py: what its rows are given."""

    def test_fewer_images_are_among_more_and_unlabelled_ones_are_of_the_other_half(self):
        train, other = images([0, 1, 2, 3, 4] * 4, seed=1), images([0, 1, 2, 3, 4] * 3, seed=2)
        bench = SimpleNamespace(parts=lambda seed: (None, train), validation=other)
        rows = real_images.settings(bench, "test", [1, 3, 100], seed=0)
        sizes = {name: [len(data) for data in given.values()] for name, given in rows.items()}
        retained = {"none": [], "1 retained": [5], "3 retained": [15], "100 retained": [20]}
        assert sizes == retained | {"1 unlabelled": [5], "3 unlabelled": [15]}, "100 of 3 a class would be the same row"
        assert rows["1 unlabelled"]["public_dataset"].column_names == ["image"]
        few, more = (
            {image.tobytes() for image in rows[f"{count} retained"]["retain_dataset"]["image"]} for count in (1, 3)
        )
        assert few < more
        assert real_images.settings(bench, "validation", [1], seed=0).keys() == {"none", "1 retained"}
