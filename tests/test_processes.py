"""No result depends on how many processes there are: stages, choices, weights and counts under one and two."""

import itertools
import json
import os

import pytest
import torch
from accelerate import PartialState
from children import ended, start_group
from safetensors.torch import load_file, save_file
from tiny import images, trainer
from transformers import TrainerCallback

from zspag_hf import UnlearningError
from zspag_hf.parallel import processes
from zspag_hf.parallel.batches import SharedBatches
from zspag_hf.parallel.processes import each_shared, my_batches, tensors_from_first
from zspag_hf.pipeline.classifier import gradient_batch
from zspag_hf.trainer.stage_cache import FOLDER, StageCache

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
GLOBAL_BATCH = 6
BEE = {"forget_classes": ["bee"]}  # the class that the tiny models see in random images
PAPER = {
    **{"method": "zspag_paper", "proxy_policy": "quota", "targets": "renormalised", "tilt": "influence", **BEE},
    **{"subspace_merge": "gram", "energy_threshold": 0.9, "learning_rate": 0.005, "optim_args": "momentum=0.9"},
}
MANY = {"images": 98, "proxies_per_class": 98}  # neither batches of attacks nor of training come out even
JOBS = {
    "default": {"images": 13, "max_steps": 12, **BEE},
    "real": {"images": 13, "max_steps": 6, "with_retain": True, **BEE},
    "paper": {**MANY, "family": "resnet", "max_steps": 13, **PAPER},
    "retained": {"images": 13, "method": "scrub", "max_steps": 9, "learning_rate": 0.005, **BEE},
    "amun": {"images": 74, "method": "amun", "forget_classes": None, "max_steps": 6, "learning_rate": 0.005},
}
CONSTRAINED = ("default", "real", "paper")
EVALUATED = "default"
RESUMED = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, **PAPER}
SOME = {
    "flags": torch.tensor([True, False, True]),
    "numbers": torch.tensor([[2**40, -1]]),
    "one": torch.tensor(1 / 3, dtype=torch.float64),
    "none": torch.zeros(0, 4),
}


class Cut(Exception):
    """Stands for the end of a process."""


class CutAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Cut


def make_trainer(folder, options, test=None):
    options = {**options, "per_device_train_batch_size": GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1"))}
    label = 2 if options.get("method") == "amun" else 1
    if options.get("method") == "scrub" or options.get("with_retain"):
        options["retain"] = images([0, 2, 3, 4] * 4, seed=2)
    options["forget"] = images([label] * options.pop("images", 13), seed=1)
    return trainer(folder, options.pop("family", "vit"), test=test, per_device_eval_batch_size=4, **options)


def weights(run):
    return {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}


def job(name, folder):
    """One run, what it chose and made: its stages as tensors, facts, weights, and what an evaluation counts."""
    run = make_trainer(folder / name, JOBS[name], images([0, 1, 2, 3, 4, 1, 2] * 3, seed=3))
    seen, facts, stage = {}, {}, StageCache.stage

    def recorded(cache, kind, make):
        tensors, told, seconds = stage(cache, kind, make)
        seen.update({f"{kind}/{key}": tensor.clone() for key, tensor in tensors.items()})
        facts[kind] = told
        return tensors, told, seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCache, "stage", recorded)
        run.train()
    metrics = run.evaluate() if name == EVALUATED else {}
    counts = {key: value for key, value in metrics.items() if "acc" in key}
    report = run.report
    facts = {"stages": facts, "curve": report.curve, "choice": report.choice, "counts": counts}
    facts |= {"layers": report.layers, "steps": run.state.global_step}
    facts |= {"models": report.models, "images": report.images}
    return {**seen, **{f"weights/{key}": value for key, value in weights(run).items()}}, facts


def resumed(folder):
    """Goes on with a run that ``cut`` began in ``folder``, from the checkpoint of step 8."""
    run = make_trainer(folder, RESUMED)
    steps = []
    step = run.training_step
    run.training_step = lambda *arguments: steps.append(run.state.global_step) or step(*arguments)
    run.train(resume_from_checkpoint=True)
    assert steps == [8, 9, 10, 11], steps
    return weights(run)


def shared_things(folder):
    """What a real process group gives for things that are not floats, for fewer items than processes, and for an error
    that the first process alone meets."""
    rank = processes.rank_and_size()[0]
    received = tensors_from_first(SOME if rank == 0 else None)
    assert tensors_from_first(None) is None
    assert all(torch.equal(received[k], v) and received[k].dtype == v.dtype for k, v in SOME.items())
    assert each_shared(lambda x: (x, str(x)), [7]) == [(7, "7")] and each_shared(str, []) == []
    assert each_shared(str, range(8)) == [str(i) for i in range(8)]
    total = processes.summed(torch.tensor([1, rank]))
    size = processes.rank_and_size()[1]
    assert total.tolist() == [size, size * (size - 1) // 2] and total.dtype == torch.long
    if rank == 0:
        (folder / FOLDER).write_text("")
    with pytest.raises(UnlearningError, match="stages cannot be kept"):
        StageCache(folder, {})


def main(folder):
    """All jobs in one process group; the first process writes."""
    for name in JOBS:
        tensors, facts = job(name, folder)
        if PartialState().is_main_process:
            save_file(tensors, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(facts))
    if PartialState().num_processes > 1:
        shared_things(folder)
        after = resumed(folder / "cut")
        if PartialState().is_main_process:
            save_file(after, folder / "resumed.safetensors")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Number of processes -> job -> (tensors, facts); what the pair resumed under 0."""
    folders = {count: tmp_path_factory.mktemp(f"processes{count}") for count in (1, 2)}
    with pytest.raises(Cut):
        run = make_trainer(folders[2] / "cut", RESUMED)
        run.add_callback(CutAt(10))
        run.train()
    pair = start_group(2, main, folders[2])
    main(folders[1])
    for process, log in pair:
        ended(process, log)
    held = {
        count: {
            name: (load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text()))
            for name in JOBS
        }
        for count, folder in folders.items()
    }
    return held | {0: load_file(folders[2] / "resumed.safetensors")}


def pairs(results, jobs=JOBS):
    """(name, one process's tensors and facts, those of two)."""
    for name in jobs:
        yield name, results[1][name], results[2][name]


def part(tensors, stage):
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{stage}/")}


@needs_gloo
@pytest.mark.slow
class TestAnyNumberOfProcesses:
    def test_the_same_stages_are_made(self, results):
        for name, (one, facts), (more, other) in pairs(results):
            assert {k: (v.shape, v.dtype) for k, v in one.items()} == {k: (v.shape, v.dtype) for k, v in more.items()}
            assert list(facts["stages"]) == list(other["stages"]), name
        made = {name: set(results[1][name][1]["stages"]) for name in JOBS}
        stages = {"trained_labels", "proxies", "subspaces", "pseudo_labels", "layers"}
        assert made["paper"] == stages | {"second_best_proxies"}
        confident = {"confident_proxies", "held_out_confident_proxies"}
        default = stages - {"pseudo_labels"} | {"targets", "held_out_proxies"} | confident
        assert made["default"] == made["real"] == default
        assert made["retained"] == {"teacher"} and made["amun"] == {"adversaries"}

    def test_batches_are_more_and_fewer_than_processes(self, results):
        """The jobs cover both: one of them has three batches of attacks, another one a single batch."""
        attempted = {name: results[1][name][1]["stages"]["proxies"]["attempted"] for name in CONSTRAINED}
        batch = gradient_batch(torch.zeros(1, 3, 8, 8))
        assert 2 * batch < attempted["paper"] and attempted["default"] <= batch

    def test_proxies_are_the_same_to_the_last_bit(self, results):
        some = {"proxies": CONSTRAINED, "held_out_proxies": CONSTRAINED[:2], "confident_proxies": CONSTRAINED[:2]}
        for stage, jobs in (some | {"adversaries": ["amun"]}).items():
            for name, (one, facts), (more, other) in pairs(results, jobs):
                assert sum(len(tensor) for tensor in part(one, stage).values())
                for key, tensor in part(one, stage).items():
                    assert torch.equal(tensor, more[key]), (name, key)
                assert facts["stages"][stage] == other["stages"][stage], name

    def test_gram_matrices(self, results):
        for name, (one, _), (more, _) in pairs(results, CONSTRAINED):
            assert part(one, "subspaces")
            for key, gram in part(one, "subspaces").items():
                assert (gram - more[key]).abs().max() <= 1e-9 * gram.abs().max(), (name, key)

    def test_targets(self, results):
        for name, (one, _), (more, _) in pairs(results, ["paper"]):
            assert part(one, "pseudo_labels").keys() == {"pseudo_labels/targets", "pseudo_labels/influence"}
            for key, targets in part(one, "pseudo_labels").items():
                limit = 1e-6 if key.endswith("targets") else 1e-4 * float(targets.abs().max())
                assert (targets - more[key]).abs().max() <= limit, (name, key)
        torch.testing.assert_close(*(results[count]["default"][0]["targets/targets"] for count in (1, 2)))
        one, more = (results[count]["retained"][0]["teacher/logits"] for count in (1, 2))
        assert len(one) == 13 + 16
        torch.testing.assert_close(one, more)

    def test_choices_and_what_they_were_made_by(self, results):
        for name, (_, facts), (_, other) in pairs(results, ["default"]):
            assert facts["choice"]["energy_threshold"] == other["choice"]["energy_threshold"], name
            assert facts["choice"]["learning_rate"] == pytest.approx(other["choice"]["learning_rate"], rel=1e-4)
            assert len(facts["curve"]) == len(other["curve"]) > 2
            for mine, theirs in zip(facts["curve"], other["curve"], strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5), name

    def test_facts_of_the_layers(self, results):
        for name, (_, facts), (_, other) in pairs(results, CONSTRAINED):
            assert len(facts["layers"]) == len(other["layers"]) > 1
            for mine, theirs in zip(facts["layers"], other["layers"], strict=True):
                assert mine["name"] == theirs["name"]
                for key in mine.keys() - {"name"}:
                    assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), (name, mine["name"], key)

    def test_weights_which_moved_by_far_more_than_they_differ(self, results, tmp_path):
        start = weights(make_trainer(tmp_path, JOBS["default"]))
        for name, (one, facts), (more, other) in pairs(results):
            assert facts["steps"] == other["steps"]
            limit = 5e-4 if name in CONSTRAINED[:2] else 1e-5  # Adam and L-BFGS make more of a rounding than SGD does
            for key, weight in part(one, "weights").items():
                torch.testing.assert_close(
                    more[key], weight, atol=limit, rtol=0, msg=lambda m, n=name, k=key: n + k + m
                )
            if JOBS[name].get("family", "vit") == "vit":
                assert max(float((one[f"weights/{k}"] - v).abs().max()) for k, v in start.items()) > 50 * limit, name
            else:
                assert max(layer["weight_change"] for layer in facts["layers"]) > 1e-3, name

    def test_every_image_counts_once_in_an_evaluation(self, results):
        """21 test images in batches of 4: with padding counted, accuracies would be other fractions."""
        (_, facts), (_, other) = (results[count][EVALUATED] for count in (1, 2))
        assert facts["counts"] == other["counts"] and facts["images"] == other["images"]
        assert facts["images"]["forget"] == JOBS[EVALUATED]["images"]
        for model, row in facts["models"].items():
            for score in row or {}:
                assert other["models"][model][score] == pytest.approx(row[score], abs=1e-5), (model, score)
        retained = facts["images"]["test_retained"]
        assert retained == 15
        right = facts["counts"]["eval_acc_rt_micro"] * retained
        assert right == pytest.approx(round(right))

    def test_a_run_that_one_process_began_goes_on_under_two(self, results, tmp_path):
        """From the checkpoint at step 8 of 12, at the same global batch."""
        whole = make_trainer(tmp_path, {**RESUMED, "save_strategy": "no"})
        whole.train()
        for name, weight in weights(whole).items():
            torch.testing.assert_close(results[0][name], weight, atol=1e-5, rtol=0, msg=name)


class TestSharedBatches:
    """All processes of a group, one after the other."""

    @staticmethod
    def epoch(count, size, epoch=0, together=GLOBAL_BATCH, seed=5):
        """Global batches, each the list of the processes' rows."""
        samplers = [SharedBatches(count, together // size, rank, size, seed) for rank in range(size)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        drawn = [list(sampler) for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == [len(batches) for batches in drawn], "as many as announced"
        return list(zip(*drawn, strict=True))

    def test_each_index_counts_once_an_epoch(self):
        for size, count in itertools.product((1, 2, 3, 6), (1, 5, 6, 7, 12, 13, 74)):
            rows = [row for batch in self.epoch(count, size) for mine in batch for row in mine]
            assert sorted(index for index, weight in rows if weight) == list(range(count)), (size, count)

    @pytest.mark.parametrize("size", [1, 2, 3, 6])
    def test_the_mean_over_processes_is_the_mean_over_the_global_batch(self, size):
        values = torch.rand(13, dtype=torch.float64)
        order = [[i for mine in batch for i, weight in mine if weight] for batch in self.epoch(13, size)]
        for batch, members in zip(self.epoch(13, size), order, strict=True):
            assert sum(weight for mine in batch for _, weight in mine) == pytest.approx(size)
            mean = sum(weight * values[index] for mine in batch for index, weight in mine) / size
            assert float(mean) == pytest.approx(float(values[members].mean()))

    def test_a_global_batch_holds_the_same_images_for_any_number_of_processes(self):
        def batches(size, epoch):
            return [{i for mine in batch for i, weight in mine if weight} for batch in self.epoch(13, size, epoch)]

        for size, epoch in itertools.product((2, 3, 6), (0, 4)):
            assert batches(size, epoch) == batches(1, epoch), (size, epoch)

    def test_a_process_without_a_row_gets_one_that_does_not_count(self):
        last = self.epoch(13, 3)[-1]
        assert [len(mine) for mine in last] == [1, 1, 1] and [mine[0][1] for mine in last] == [3.0, 0.0, 0.0]

    def test_the_order_changes_with_the_epoch_and_the_seed_and_repeats(self):
        orders = [self.epoch(74, 1, epoch, seed=seed) for epoch, seed in ((0, 5), (1, 5), (0, 9), (0, 5))]
        assert orders[0] == orders[3] and orders[0] != orders[1] and orders[0] != orders[2]


class TestWholeBatches:
    @pytest.fixture
    def as_process(self, monkeypatch):
        def become(rank, size):
            monkeypatch.setattr(processes, "rank_and_size", lambda: (rank, size))

        return become

    def test_batches_are_those_of_one_process_shared_out(self, as_process):
        for size, count in itertools.product((1, 2, 3, 7), (0, 1, 63, 64, 65, 200)):
            shares = []
            for rank in range(size):
                as_process(rank, size)
                shares.append(my_batches(count, 64))
            as_process(0, 1)
            alone = my_batches(count, 64)
            assert sorted((s.start, s.stop) for mine in shares for s in mine) == [(s.start, s.stop) for s in alone]
            rows = torch.cat([torch.arange(count)[s] for s in alone] or [torch.arange(0)])
            assert rows.tolist() == list(range(count)), (size, count)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1, "nobody waits for another's second batch"

    @pytest.mark.parametrize("size", [2, 3, 5])
    def test_each_item_is_worked_on_by_one_process_and_known_to_all(self, as_process, monkeypatch, size):
        items, worked, gathered = ["a", "b", "c", "d"], [], []
        monkeypatch.setattr(processes, "gather_object", lambda mine: gathered.extend(mine) or list(gathered))
        for rank in reversed(range(size)):
            as_process(rank, size)
            known = each_shared(lambda item: worked.append(item) or item.upper(), items)
        assert known == ["A", "B", "C", "D"], "in the order of the items, not of the processes"
        assert sorted(worked) == items

    def test_alone_nothing_is_sent(self, monkeypatch):
        for name in ("gather_object", "reduce", "broadcast", "broadcast_object_list"):
            monkeypatch.setattr(processes, name, None)
        tensor = torch.rand(3)
        assert processes.summed(tensor) is tensor and processes.from_first("x") == "x"
        assert tensors_from_first(SOME) is SOME and each_shared(str, [1, 2]) == ["1", "2"]
