"""No result depends on how many processes there are: stages, readings, weights and counts under one, two and three."""

import json
import os

import pytest
import torch
from accelerate import PartialState
from children import run_group
from safetensors.torch import load_file, save_file
from tiny import images, trainer
from transformers import TrainerCallback

from zspag_hf import processes
from zspag_hf.parallel.batches import SharedBatches
from zspag_hf.parallel.processes import each_shared, my_batches, tensors_from_first
from zspag_hf.pipeline.classifier import gradient_batch

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
GLOBAL_BATCH = 6
BEE = {"forget_classes": ["bee"]}  # the class that the tiny models see in random images
FIXED = {"adaptive": False, "learning_rate": 0.005, "optim_args": "momentum=0.9", **BEE}
HARD = {**FIXED, "constraint": "hard", "energy_threshold": 0.9}
MANY = {"images": 98, "proxies_per_class": 98}  # neither batches of attacks nor of training come out even
JOBS = {
    "adaptive": {"images": 13, "max_steps": 20, **BEE},
    "adaptive_many": {**MANY, "max_steps": 10, **BEE},
    "hard": {"images": 13, "max_steps": 9, **HARD},
    "hard_resnet": {**MANY, "family": "resnet", "max_steps": 13, **HARD},
    "random_labels": {"images": 13, "method": "random_labels", "max_steps": 6, "learning_rate": 0.005, **BEE},
    "amun": {"images": 74, "method": "amun", "forget_classes": None, "max_steps": 6, "learning_rate": 0.005},
}
EVALUATED = ("adaptive", "hard")
OTHERS = ("random_labels", "amun")
RESUMED = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, **HARD}
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
    options["forget"] = images([label] * options.pop("images", 13), seed=1)
    return trainer(folder, options.pop("family", "vit"), test=test, per_device_eval_batch_size=4, **options)


def weights(run):
    return {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}


def job(name, folder):
    """One run, what it read and made: its stages as tensors, facts, weights, and what an evaluation counts."""
    run = make_trainer(folder / name, JOBS[name], images([0, 1, 2, 3, 4, 1, 2] * 3, seed=3))
    seen, facts, finished = {}, {}, run.finished

    def recorded(stage, *arguments):
        tensors, found = finished(stage, *arguments)
        seen.update({f"{stage}/{key}": tensor.clone() for key, tensor in tensors.items()})
        facts[stage] = found
        return tensors, found

    run.finished = recorded
    run.train()
    metrics = run.evaluate() if name in EVALUATED else {}
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


def shared_things():
    """What a real process group gives for things that are not floats, and for fewer items than processes."""
    rank = processes.rank_and_size()[0]
    received = tensors_from_first(SOME if rank == 0 else None)
    assert tensors_from_first(None) is None
    assert all(torch.equal(received[k], v) and received[k].dtype == v.dtype for k, v in SOME.items())
    assert each_shared(lambda x: (x, str(x)), [7]) == [(7, "7")] and each_shared(str, []) == []
    assert each_shared(str, range(8)) == [str(i) for i in range(8)]
    total = processes.summed(torch.tensor([1, rank]))
    size = processes.rank_and_size()[1]
    assert total.tolist() == [size, size * (size - 1) // 2] and total.dtype == torch.long


def jobs_of(count):
    return [name for name in JOBS if count < 3 or name not in OTHERS]


def main(folder, jobs):
    """All jobs in one process group; the first process writes."""
    for name in jobs:
        tensors, facts = job(name, folder)
        if PartialState().is_main_process:
            save_file(tensors, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(facts))
    shared_things()
    if (folder / "cut").is_dir():
        found = resumed(folder / "cut")
        if PartialState().is_main_process:
            save_file(found, folder / "resumed.safetensors")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Number of processes -> job -> (tensors, facts); the folder of each under "folders"."""
    found = {"folders": {}}
    for count in (1, 2, 3):
        folder = found["folders"][count] = tmp_path_factory.mktemp(f"processes{count}")
        if count == 2:
            with pytest.raises(Cut):
                run = make_trainer(folder / "cut", RESUMED)
                run.add_callback(CutAt(10))
                run.train()
        run_group(count, main, folder, jobs_of(count))
        found[count] = {
            name: (load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text()))
            for name in jobs_of(count)
        }
    return found


def pairs(results, jobs=JOBS):
    """(name, one process's tensors and facts, those of two or three)."""
    for count in (2, 3):
        for name in (name for name in jobs if name in results[count]):
            yield f"{name}, {count} processes", results[1][name], results[count][name]


def part(tensors, stage):
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{stage}/")}


@needs_gloo
class TestAnyNumberOfProcesses:
    def test_the_same_stages_are_made(self, results):
        for name, (one, facts), (more, other) in pairs(results):
            assert {k: (v.shape, v.dtype) for k, v in one.items()} == {k: (v.shape, v.dtype) for k, v in more.items()}
            assert list(facts["stages"]) == list(other["stages"]), name
        made = set(results[1]["adaptive"][1]["stages"])
        assert made == {"proxies", "held_out_proxies", "subspaces", "pseudo_labels", "adaptation", "layers"}

    def test_batches_are_more_and_fewer_than_processes(self, results):
        """The jobs cover both: one of them has three batches of attacks, another one a single batch."""
        facts = {name: found[1]["stages"]["proxies"]["attempted"] for name, found in results[1].items() if "ad" in name}
        batch = gradient_batch(torch.zeros(1, 3, 8, 8))
        assert 2 * batch < facts["adaptive_many"] and facts["adaptive"] <= batch

    @pytest.mark.parametrize("stage", ["proxies", "held_out_proxies", "adversaries"])
    def test_proxies_are_the_same_to_the_last_bit(self, results, stage):
        found = 0
        for name, (one, facts), (more, other) in pairs(results):
            for key, tensor in part(one, stage).items():
                assert torch.equal(tensor, more[key]), (name, key)
                found += len(tensor)
            assert facts["stages"].get(stage) == other["stages"].get(stage), name
        assert found

    def test_gram_matrices(self, results):
        found = 0
        for name, (one, _), (more, _) in pairs(results):
            for key, gram in part(one, "subspaces").items():
                assert (gram - more[key]).abs().max() <= 1e-9 * gram.abs().max(), (name, key)
                found += 1
        assert found

    def test_pseudo_labels(self, results):
        found = 0
        for name, (one, _), (more, _) in pairs(results):
            for key, targets in part(one, "pseudo_labels").items():
                limit = 1e-6 if key.endswith("targets") else 1e-4 * float(targets.abs().max())
                assert (targets - more[key]).abs().max() <= limit, (name, key)
                found += 1
        assert found

    def test_choices_and_readings(self, results):
        for name, (_, facts), (_, other) in pairs(results, ("adaptive", "adaptive_many")):
            assert facts["choice"]["energy_threshold"] == other["choice"]["energy_threshold"], name
            assert facts["choice"]["learning_rate"] == pytest.approx(other["choice"]["learning_rate"], rel=1e-4)
            assert len(facts["curve"]) == len(other["curve"]) > 2
            for mine, theirs in zip(facts["curve"], other["curve"], strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5), name

    def test_facts_of_the_layers(self, results):
        for name, (_, facts), (_, other) in pairs(results, ("adaptive", "adaptive_many", "hard", "hard_resnet")):
            assert len(facts["layers"]) == len(other["layers"]) > 1
            for mine, theirs in zip(facts["layers"], other["layers"], strict=True):
                assert mine["name"] == theirs["name"]
                for key in mine.keys() - {"name"}:
                    assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), (name, mine["name"], key)

    def test_weights(self, results):
        for name, (one, facts), (more, other) in pairs(results):
            assert facts["steps"] == other["steps"]
            for key, weight in part(one, "weights").items():
                torch.testing.assert_close(more[key], weight, atol=1e-5, rtol=0, msg=lambda m, n=name, k=key: n + k + m)

    def test_the_runs_moved_the_weights_by_far_more_than_they_differ(self, results):
        for name in JOBS:
            layers = results[1][name][1]["layers"]
            assert name in OTHERS or max(layer["weight_change"] for layer in layers) > 1e-3, name
        trained = [part(results[1][name][0], "weights") for name in ("random_labels", "amun", "hard")]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert max(float((trained[one][k] - trained[other][k]).abs().max()) for k in trained[0]) > 1e-3

    def test_every_image_counts_once_in_an_evaluation(self, results):
        """21 test images in batches of 4: with padding counted, accuracies would be other fractions."""
        for name, (_, facts), (_, other) in pairs(results, EVALUATED):
            assert facts["counts"] == other["counts"] and facts["images"] == other["images"], name
            assert facts["images"]["forget"] == JOBS[name.split(",")[0]]["images"]
            for model, row in facts["models"].items():
                for score in row or {}:
                    assert other["models"][model][score] == pytest.approx(row[score], abs=1e-5), (name, model, score)
        counts = results[1]["hard"][1]["counts"]
        assert counts["eval_acc_rt_micro"] * 15 == pytest.approx(round(counts["eval_acc_rt_micro"] * 15))

    def test_a_run_that_one_process_began_goes_on_under_two(self, results, tmp_path):
        """From the checkpoint at step 8 of 12, at the same global batch."""
        whole = make_trainer(tmp_path, {**RESUMED, "save_strategy": "no"})
        whole.train()
        found = load_file(results["folders"][2] / "resumed.safetensors")
        for name, weight in weights(whole).items():
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0, msg=name)


class TestSharedBatches:
    """All processes of a group, one after the other."""

    @staticmethod
    def epoch(count, size, epoch=0, together=GLOBAL_BATCH, seed=5):
        """Global batches, each the list of the processes' rows."""
        samplers = [SharedBatches(count, together // size, rank, size, seed) for rank in range(size)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        found = [list(sampler) for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == [len(batches) for batches in found], "as many as announced"
        return list(zip(*found, strict=True))

    @pytest.mark.parametrize("size", [1, 2, 3, 6])
    @pytest.mark.parametrize("count", [1, 5, 6, 7, 12, 13, 74])
    def test_each_index_counts_once_an_epoch(self, count, size):
        rows = [row for batch in self.epoch(count, size) for mine in batch for row in mine]
        assert sorted(index for index, weight in rows if weight) == list(range(count))

    @pytest.mark.parametrize("size", [1, 2, 3, 6])
    def test_the_mean_over_processes_is_the_mean_over_the_global_batch(self, size):
        values = torch.rand(13, dtype=torch.float64)
        order = [[i for mine in batch for i, weight in mine if weight] for batch in self.epoch(13, size)]
        for batch, members in zip(self.epoch(13, size), order, strict=True):
            assert sum(weight for mine in batch for _, weight in mine) == pytest.approx(size)
            mean = sum(weight * values[index] for mine in batch for index, weight in mine) / size
            assert float(mean) == pytest.approx(float(values[members].mean()))

    @pytest.mark.parametrize("size", [2, 3, 6])
    @pytest.mark.parametrize("epoch", [0, 4])
    def test_a_global_batch_holds_the_same_images_for_any_number_of_processes(self, size, epoch):
        def batches(size):
            return [{i for mine in batch for i, weight in mine if weight} for batch in self.epoch(13, size, epoch)]

        assert batches(size) == batches(1)

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

    @pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_batches_are_those_of_one_process_shared_out(self, as_process, count, size):
        found = []
        for rank in range(size):
            as_process(rank, size)
            found.append(my_batches(count, 64))
        as_process(0, 1)
        alone = my_batches(count, 64)
        assert sorted((s.start, s.stop) for mine in found for s in mine) == [(s.start, s.stop) for s in alone]
        assert torch.cat([torch.arange(count)[s] for s in alone] or [torch.arange(0)]).tolist() == list(range(count))
        assert max(map(len, found)) - min(map(len, found)) <= 1, "nobody waits for another's second batch"

    @pytest.mark.parametrize("size", [2, 3, 5])
    def test_each_item_is_worked_on_by_one_process_and_known_to_all(self, as_process, monkeypatch, size):
        items, worked, gathered = ["a", "b", "c", "d"], [], []
        monkeypatch.setattr(processes, "gather_object", lambda mine: gathered.extend(mine) or list(gathered))
        for rank in reversed(range(size)):
            as_process(rank, size)
            found = each_shared(lambda item: worked.append(item) or item.upper(), items)
        assert found == ["A", "B", "C", "D"], "in the order of the items, not of the processes"
        assert sorted(worked) == items

    def test_alone_nothing_is_sent(self, monkeypatch):
        for name in ("gather_object", "reduce", "broadcast", "broadcast_object_list"):
            monkeypatch.setattr(processes, name, None)
        tensor = torch.rand(3)
        assert processes.summed(tensor) is tensor and processes.from_first("x") == "x"
        assert tensors_from_first(SOME) is SOME and each_shared(str, [1, 2]) == ["1", "2"]
