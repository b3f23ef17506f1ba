"""Finished stages on disk: read back as they were or made anew, kept from everybody else, gone once saved."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import images, tiny_model, tiny_processor, trainer

from zspag_hf import UnlearningError, stage_cache
from zspag_hf.trainer.publishing import staged
from zspag_hf.trainer.run_key import run_key
from zspag_hf.trainer.stage_cache import FOLDER, KEY_NAME, StageCache, differences

KEY = {"model": "a", "images": "b", "settings": {"seed": 0, "attack": "pgd"}}
TENSORS = {
    "flags": torch.tensor([True, False]),
    "numbers": torch.tensor([[1, -(2**40)]]),
    "double": torch.tensor([1 / 3, float("inf")], dtype=torch.float64),
    "half": torch.tensor([[0.1]], dtype=torch.bfloat16),
    "pixels": torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8),
    "turned": torch.arange(6.0).view(2, 3).T,
    "one": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
}
FACTS = {"rate": 1 / 3, "steps": 7, "name": "Ångström", "nothing": None, "probe": [{"kl": 1e-300}], "flag": True}
FIXED = {"adaptive": False, "constraint": "hard", "energy_threshold": 0.9, "max_steps": 3}


@pytest.fixture
def warnings(monkeypatch):
    """What the cache warns of, as a list."""
    found = []
    monkeypatch.setattr(stage_cache.logger, "warning", found.append)
    return found


def fail():
    raise AssertionError("the stage is there")


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]) and tensor.dtype == other[name].dtype, name


class TestRoundTrip:
    def test_tensors_and_facts_come_back_as_they_were(self, tmp_path):
        cache = StageCache(tmp_path, KEY)
        made, facts, seconds = cache.stage("first", lambda: (TENSORS, FACTS))
        assert seconds == 0 and facts == FACTS
        same(made, TENSORS)
        found, facts, seconds = StageCache(tmp_path, KEY, True).stage("first", fail)
        assert seconds > 0 and facts == FACTS
        same(found, TENSORS)

    def test_what_was_just_made_equals_what_is_read(self, tmp_path):
        """JSON turns tuples into lists and numbers as keys into text: the same in both."""
        facts = {"pair": (1, 2), "by_class": {3: 4}}
        made = StageCache(tmp_path, KEY).stage("first", lambda: ({}, facts))[:2]
        assert made == StageCache(tmp_path, KEY, True).stage("first", fail)[:2]

    def test_facts_alone_are_a_stage(self, tmp_path):
        StageCache(tmp_path, KEY).stage("first", lambda: ({}, FACTS))
        assert StageCache(tmp_path, KEY, True).load("first")[0] == {}

    def test_tensors_that_share_memory_are_kept(self, tmp_path):
        whole = torch.rand(4, 4)
        shared = {"whole": whole, "again": whole, "part": whole[1]}
        StageCache(tmp_path, KEY).store("first", shared, {})
        same(StageCache(tmp_path, KEY, True).load("first")[0], shared)

    def test_a_stage_is_not_there_before_it_was_made(self, tmp_path):
        cache = StageCache(tmp_path, KEY)
        cache.store("first", TENSORS, {})
        assert cache.load("second") is None

    def test_another_run_without_resuming_begins_anew(self, tmp_path):
        StageCache(tmp_path, KEY).store("first", TENSORS, {})
        assert StageCache(tmp_path, KEY).load("first") is None

    def test_a_last_stage_replaces_the_others(self, tmp_path):
        cache = StageCache(tmp_path, KEY)
        for name in ("first", "second"):
            cache.store(name, TENSORS, {})
        cache.keep_only("second")
        assert cache.load("first") is None and cache.load("second")


class TestStale:
    @pytest.mark.parametrize(
        ("other", "named"),
        [
            ({"settings": {"seed": 1, "attack": "pgd"}}, ["seed"]),
            ({"settings": {"seed": 1, "attack": "cw"}}, ["attack", "seed"]),
            ({"images": "c"}, ["images"]),
            ({"model": "c", "images": "c"}, ["images", "model"]),
        ],
    )
    def test_another_runs_stages_are_not_used_and_what_differs_is_named(self, tmp_path, warnings, other, named):
        StageCache(tmp_path, KEY | other).store("first", TENSORS, {})
        assert StageCache(tmp_path, KEY, True).load("first") is None
        (warning,) = warnings
        assert "another run are not used" in warning
        assert sorted(warning.split("another ")[-1].rstrip(".").split(", ")) == named

    def test_they_stay_for_that_run(self, tmp_path, warnings):
        StageCache(tmp_path, KEY | {"images": "c"}).store("first", TENSORS, {})
        StageCache(tmp_path, KEY, True).store("first", TENSORS, {})
        same(StageCache(tmp_path, KEY | {"images": "c"}, True).load("first")[0], TENSORS)

    def test_what_is_damaged_of_another_run_stops_nobody(self, tmp_path, warnings):
        other = StageCache(tmp_path, KEY | {"images": "c"})
        (other.folder / KEY_NAME).write_text("{", encoding="utf-8")
        assert StageCache(tmp_path, KEY, True).load("first") is None
        (warning,) = warnings
        assert "damaged" in warning and other.folder.name in warning

    def test_nothing_is_warned_of_where_the_run_is_the_same(self, tmp_path, warnings):
        for _ in range(2):
            StageCache(tmp_path, KEY).store("first", TENSORS, {})
        StageCache(tmp_path, KEY, True)
        assert not warnings

    def test_differences_go_both_ways(self):
        """A setting that one version knows and the other does not is a difference too."""
        longer = KEY | {"settings": KEY["settings"] | {"new": 1}}
        assert differences(KEY, longer) == differences(longer, KEY) == ["new"]
        unset = KEY | {"settings": KEY["settings"] | {"new": None}}
        assert differences(KEY, unset) == ["new"]
        assert differences(KEY, KEY | {"more": 1}) == differences(KEY | {"more": 1}, KEY) == ["more"]


class TestKey:
    """Everything that a run's weights depend on is in its key, and nothing else."""

    @staticmethod
    def key(folder, **options):
        return run_key(trainer(folder, **options))

    @pytest.mark.parametrize(
        ("named", "change"),
        [
            ("images", {"forget": images([2] * 12, seed=9)}),
            ("images", {"forget": images([2] * 11)}),
            ("classes", {"forget": images([3] * 12), "forget_classes": ["dog"]}),
            ("seed", {"seed": 1}),
            ("max_steps", {"max_steps": 7}),
            ("learning_rate", {"learning_rate": 0.1}),
            ("attack_eps", {"attack_eps": 0.4}),
            ("proxies_per_class", {"proxies_per_class": 5}),
            ("proxy_budget", {"proxy_budget": 0.02}),
            ("energy_threshold", {"energy_threshold": 0.9}),
            ("tilt", {"tilt": "none"}),
            ("scope", {"scope": "all"}),
            ("forget_views", {"forget_views": 2}),
            ("weight_decay", {"weight_decay": 0.1}),
            ("data_seed", {"data_seed": 3}),
            ("global_batch_size", {"per_device_train_batch_size": 5}),
            ("gradient_accumulation_steps", {"gradient_accumulation_steps": 2}),
        ],
    )
    def test_what_the_weights_depend_on_is_named(self, tmp_path, named, change):
        assert named in differences(self.key(tmp_path), self.key(tmp_path, **change))

    def test_another_model(self, tmp_path):
        model = tiny_model()
        with torch.no_grad():
            model.classifier.bias[0] += 1e-6
        assert differences(self.key(tmp_path), self.key(tmp_path, model=model)) == ["model"]
        assert "model" in differences(self.key(tmp_path), self.key(tmp_path, family="resnet"))

    def test_another_normalisation(self, tmp_path, monkeypatch):
        """The images are kept as pixels: the model reads others where its processor scales them otherwise."""
        before = self.key(tmp_path)
        other = tiny_processor()
        other.image_std = [0.3] * 3
        monkeypatch.setattr("tiny.tiny_processor", lambda: other)
        assert differences(before, self.key(tmp_path)) == ["processing"]

    @pytest.mark.parametrize(
        "change",
        [
            {"output_dir": "elsewhere"},
            {"per_device_eval_batch_size": 3},
            {"logging_steps": 1},
            {"save_strategy": "epoch"},
            {"test": images([0, 1, 2])},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_what_they_do_not_depend_on_is_left_out(self, tmp_path, change, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert differences(self.key(tmp_path), self.key(tmp_path, **change)) == []

    def test_the_optimizer_that_is_passed(self, tmp_path):
        def key(lr):
            model = tiny_model()
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            return self.key(tmp_path, model=model, optimizers=(optimizer, None), **FIXED)

        assert differences(key(0.1), key(0.2)) == ["optimizer"] and differences(key(0.1), key(0.1)) == []

    def test_a_run_does_not_change_its_own_key(self, tmp_path):
        """An adaptive run writes its choices into its options; its key was taken before."""
        run = trainer(tmp_path, max_steps=10)
        before = run_key(run)
        run.train()
        assert run.cache.key == before and run.args.learning_rate


def truncated(path):
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def garbage(path):
    path.write_bytes(os.urandom(200))


def emptied(path):
    path.write_bytes(b"")


def without_metadata(path):
    save_file(load_file(path), path)


def with_other_metadata(path):
    save_file(load_file(path), path, {"facts": "{}"})


def without_a_tensor(path):
    with stage_cache.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors.pop("one")
    save_file(tensors, path, metadata)


DAMAGES = (truncated, flipped, garbage, emptied, without_metadata, with_other_metadata, without_a_tensor)


class TestDamaged:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_stage_is_made_anew_with_a_warning(self, tmp_path, warnings, damage):
        cache = StageCache(tmp_path, KEY)
        for name in ("first", "second"):
            cache.store(name, TENSORS, {"seconds": 1.0})
        damage(cache.path("second"))
        resumed = StageCache(tmp_path, KEY, True)
        made = []
        tensors, facts, seconds = resumed.stage("second", lambda: made.append(1) or (TENSORS, FACTS))
        assert made and seconds == 0 and facts == FACTS
        same(tensors, TENSORS)
        (warning,) = warnings
        assert "'second' on disk is damaged" in warning and "made anew" in warning
        resumed.stage("first", fail)
        StageCache(tmp_path, KEY, True).stage("second", fail)

    def test_no_flipped_bit_is_ever_taken_for_what_was_written(self, tmp_path, warnings):
        """Every byte of a small stage: header, names, facts and values."""
        cache = StageCache(tmp_path, KEY)
        tensors, facts = {"a": torch.tensor([1.0, 2.0])}, {"rate": 0.125, "name": "b"}
        cache.store("first", tensors, facts)
        whole = cache.path("first").read_bytes()
        for i in range(len(whole)):
            cache.path("first").write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            found = cache.load("first")
            if found is not None:  # padding, or the order of the header
                assert torch.equal(found[0]["a"], tensors["a"]) and found[1] == facts, whole[max(0, i - 9) : i + 9]
        assert len(warnings) > len(whole) // 2

    def test_half_a_stage_beside_its_place_is_no_stage(self, tmp_path, warnings):
        cache = StageCache(tmp_path, KEY)
        (cache.folder / "first.part").write_bytes(b"half")
        resumed = StageCache(tmp_path, KEY, True)
        assert resumed.load("first") is None and not warnings
        resumed.store("first", TENSORS, {})
        same(resumed.load("first")[0], TENSORS)
        assert not list(cache.folder.glob("*.part"))

    def test_a_run_over_damaged_stages_ends_as_one_without(self, tmp_path, warnings):
        whole = trainer(tmp_path / "whole", **FIXED)
        whole.train()
        first = trainer(tmp_path / "cut", **FIXED)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StageCache, "keep_only", lambda *_: None)
            first.train()
        paths = sorted(first.cache.folder.glob("*.safetensors"))
        assert [p.stem for p in paths] == ["layers", "proxies", "pseudo_labels", "subspaces", "training"]
        for path, damage in zip(paths, DAMAGES, strict=False):
            damage(path)
        second = trainer(tmp_path / "cut", **FIXED)
        second.train(resume_from_checkpoint=True)
        assert len(warnings) == len(paths)
        same(second.model.state_dict(), whole.model.state_dict())


class TestNoRoom:
    def refused(self, tmp_path, cause):
        """A second stage that cannot be written; the first one stays."""
        cache = StageCache(tmp_path, KEY)
        cache.store("first", TENSORS, FACTS)
        with pytest.raises(UnlearningError) as error:
            cache.stage("second", lambda: (TENSORS, {}))
        message = str(error.value)
        assert f"'second' cannot be kept in {str(cache.folder)!r}" in message and cause in message
        assert "make room or give another output_dir" in message and "resume_from_checkpoint=True" in message
        assert not list(cache.folder.glob("*.part"))
        resumed = StageCache(tmp_path, KEY, True)
        same(resumed.load("first")[0], TENSORS)
        assert resumed.load("second") is None

    def test_a_full_disk(self, tmp_path, monkeypatch):
        def full(tensors, path, metadata):
            if path.name == "second.part":
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save_file(tensors, path, metadata)

        monkeypatch.setattr(stage_cache, "save_file", full)
        self.refused(tmp_path, "No space left")

    def test_a_limit_on_the_size_of_files(self, tmp_path):
        """The file system itself refuses: what safetensors raises then is an error of its own."""
        cache = StageCache(tmp_path, KEY)
        cache.store("first", TENSORS, FACTS)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(UnlearningError, match=r"'second' cannot be kept in .*File too large.*make room"):
                cache.store("second", {"large": torch.zeros(100_000)}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(cache.folder.glob("*.part"))
        same(StageCache(tmp_path, KEY, True).load("first")[0], TENSORS)

    def test_a_folder_that_is_gone(self, tmp_path, monkeypatch):
        cache = StageCache(tmp_path, KEY)
        cache.folder.rename(tmp_path / "away")
        with pytest.raises(UnlearningError, match="'first' cannot be kept in"):
            cache.store("first", TENSORS, {})

    @pytest.mark.parametrize("taken", [FOLDER, "digest"])
    def test_a_file_where_the_folder_should_be(self, tmp_path, taken):
        place = StageCache(tmp_path, KEY).folder if taken == "digest" else tmp_path / FOLDER
        for path in (place / KEY_NAME, place):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        place.write_text("")
        with pytest.raises(UnlearningError, match=r"cannot be kept in .*output_dir"):
            StageCache(tmp_path, KEY)

    def test_a_full_disk_before_the_first_stage(self, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "makedirs", full)
        with pytest.raises(UnlearningError, match=r"cannot be kept in .*No space left.*output_dir"):
            StageCache(tmp_path, KEY)

    def test_a_run_that_finds_the_disk_full_goes_on_once_there_is_room(self, tmp_path, monkeypatch):
        def full(tensors, path, metadata):
            if path.name == "subspaces.part":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save_file(tensors, path, metadata)

        run = trainer(tmp_path / "cut", **FIXED)
        with monkeypatch.context() as patch:
            patch.setattr(stage_cache, "save_file", full)
            with pytest.raises(UnlearningError, match="'subspaces' cannot be kept"):
                run.train()
        whole = trainer(tmp_path / "whole", **FIXED)
        whole.train()
        monkeypatch.setattr("zspag_hf.methods.stages.make_proxies", None)
        second = trainer(tmp_path / "cut", **FIXED)
        second.train(resume_from_checkpoint=True)
        same(second.model.state_dict(), whole.model.state_dict())


def killed(*_):
    raise KeyboardInterrupt


class TestPrivacy:
    @pytest.fixture
    def trained(self, tmp_path):
        run = trainer(tmp_path, **FIXED)
        run.train()
        return run

    def test_nobody_else_may_look_into_the_folder(self, tmp_path):
        before = os.umask(0)
        try:
            cache = StageCache(tmp_path, KEY)
        finally:
            os.umask(before)
        for folder in (cache.root, cache.folder):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_names_and_key_tell_no_image(self, trained):
        """File names and key hold digests: no pixel, no index, no file name of an image."""
        names = sorted(path.name for path in trained.cache.folder.iterdir())
        assert names == [KEY_NAME, "training.safetensors"]
        key = (trained.cache.folder / KEY_NAME).read_text()
        assert len(key) < 10_000 and "[[" not in key

    def test_proxies_do_not_outlive_the_training(self, trained):
        """The last stage holds what a full evaluation needs, and no pixels."""
        tensors, _ = trained.cache.load("training")
        assert not any(tensor.dim() == 4 and "model/" not in name for name, tensor in tensors.items())

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_saving_the_result_deletes_it(self, trained, tmp_path, elsewhere):
        root = Path(trained.args.output_dir, FOLDER)
        assert root.is_dir()
        trained.save_model(str(tmp_path / "copy") if elsewhere else None)
        assert not root.exists() and not (tmp_path / "copy" / FOLDER).exists()

    def test_the_keys_of_checkpoints_are_deleted_with_it(self, tmp_path):
        """They hold a checksum of the forget images, and are for the owner alone until then."""
        run = trainer(tmp_path, **{**FIXED, "save_strategy": "steps", "save_steps": 1})
        run.train()
        keys = list(Path(run.args.output_dir).glob(f"checkpoint-*/{KEY_NAME}"))
        assert keys and all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)
        run.save_model()
        assert not any(key.exists() for key in keys)

    def test_a_save_before_the_evaluation_keeps_it(self, trained, tmp_path):
        trained.save_model(_internal_call=True)
        again = trainer(tmp_path, **FIXED)
        again.train(resume_from_checkpoint=True)
        same(again.model.state_dict(), trained.model.state_dict())

    def test_a_checkpoint_folder_of_another_run_is_not_whole_before_it_is_rewritten(self, tmp_path, monkeypatch):
        """Trainer writes its state last; an earlier run's must not stand in for it."""
        options = {**FIXED, "save_strategy": "steps", "save_steps": 1}
        trainer(tmp_path, **options).train()
        other = trainer(tmp_path, **{**options, "seed": 7})
        monkeypatch.setattr(other, "_save_optimizer_and_scheduler", killed)
        with pytest.raises(KeyboardInterrupt):
            other.train()
        assert other.cache.refusal(str(Path(other.args.output_dir, "checkpoint-1"))) is not None

    def test_nothing_of_it_is_pushed(self, tmp_path):
        options = {**FIXED, "save_strategy": "steps", "save_steps": 1}
        run = trainer(tmp_path, **options)
        run.train()
        run.save_model(_internal_call=True)
        folder = Path(run.args.output_dir)
        assert (folder / FOLDER).is_dir() and (folder / "checkpoint-1" / KEY_NAME).is_file()
        (folder / FOLDER / "model.safetensors").write_bytes(b"x")
        with staged(str(folder), "user/name") as public:
            found = [path.relative_to(public).as_posix() for path in Path(public).rglob("*")]
        assert "model.safetensors" in found
        assert not [name for name in found if FOLDER in name or KEY_NAME in name or "checkpoint" in name]
