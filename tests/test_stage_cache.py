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

from zspag_hf import UnlearningError
from zspag_hf.trainer import stage_cache
from zspag_hf.trainer.publishing import copy_public
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
FIXED = {"method": "zspag_paper", "proxy_policy": "quota", "subspace_merge": "gram", "max_steps": 3}
STAGES = ["layers", "proxies", "pseudo_labels", "second_best_proxies", "subspaces", "trained_labels"]  # of such a run
RETAIN = images([0, 1, 3, 4], seed=2)


@pytest.fixture
def warnings(monkeypatch):
    """What the cache warns of, as a list."""
    told = []
    monkeypatch.setattr(stage_cache.logger, "warning", told.append)
    return told


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that nothing happened to."""
    run = trainer(tmp_path_factory.mktemp("whole"), **FIXED)
    run.train()
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def killed(*_, **__):
    raise KeyboardInterrupt


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
        again, facts, seconds = StageCache(tmp_path, KEY, True).stage("first", fail)
        assert seconds > 0 and facts == FACTS
        same(again, TENSORS)

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

    def test_tensors_are_read_one_by_one_from_disk(self, tmp_path):
        cache = StageCache(tmp_path, KEY)
        cache.store("first", TENSORS, {})
        held = cache.on_disk("first")
        assert set(held) == set(TENSORS) and len(held) == len(TENSORS)
        same(dict(held), TENSORS)

    def test_a_run_that_would_end_in_the_same_way_again_is_discarded(self, tmp_path):
        """And another one's stages stay."""
        cache, other = StageCache(tmp_path, KEY), StageCache(tmp_path, KEY | {"images": "c"})
        for one in (cache, other):
            one.store("first", TENSORS, {})
        cache.discard()
        assert not cache.folder.exists() and other.load("first")
        other.discard()
        assert not cache.root.exists()


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
    def key(folder, optimizer=None, **options):
        made = trainer(folder, **options)
        return run_key(made.run, made.completed_method, optimizer)

    @pytest.fixture(scope="class")
    def usual(self, tmp_path_factory):
        return self.key(tmp_path_factory.mktemp("usual"))

    @pytest.mark.parametrize(
        "changes",
        [
            [
                ("images", {"forget": images([2] * 12, seed=9)}),
                ("images", {"forget": images([2] * 11)}),
                ("classes", {"forget": images([3] * 12), "forget_classes": ["dog"]}),
                ("forget_views", {"forget_views": 2}),
            ],
            [
                ("seed", {"seed": 1}),
                ("data_seed", {"data_seed": 3}),
                ("max_steps", {"max_steps": 7}),
                ("global_batch_size", {"per_device_train_batch_size": 5}),
                ("gradient_accumulation_steps", {"gradient_accumulation_steps": 2}),
                ("max_grad_norm", {"max_grad_norm": 0.5}),
                ("bf16", {"bf16": True}),
            ],
            [
                ("learning_rate", {"learning_rate": 0.1}),
                ("attack_eps", {"attack_eps": 0.4}),
                ("proxies_per_class", {"proxies_per_class": 5}),
                ("proxy_budget", {"proxy_budget": 0.02}),
                ("energy_threshold", {"energy_threshold": 0.99}),
                ("depth_weight", {"depth_weight": 0.0}),
                ("scope", {"scope": "head"}),
            ],
        ],
        ids=["request", "run", "method"],
    )
    def test_what_the_weights_depend_on_is_named(self, tmp_path, usual, changes):
        for named, change in changes:
            assert named in differences(usual, self.key(tmp_path, **change)), change

    def test_the_method_and_its_recipe(self, tmp_path, usual):
        plain = self.key(tmp_path, method="finetune", retain=RETAIN)
        assert "method" in differences(usual, plain)
        other = self.key(tmp_path, method="finetune", retain=RETAIN, weight_decay=0.1)
        assert differences(plain, other) == ["weight_decay"]
        fewer = self.key(tmp_path, method="finetune", retain=images([0, 1, 3], seed=2))
        assert differences(plain, fewer) == ["retained images"]

    def test_another_model(self, tmp_path, usual):
        model = tiny_model()
        with torch.no_grad():
            model.classifier.bias[0] += 1e-6
        assert differences(usual, self.key(tmp_path, model=model)) == ["model"]
        assert "model" in differences(usual, self.key(tmp_path, family="resnet"))

    def test_another_normalisation(self, tmp_path, usual, monkeypatch):
        """The images are kept as pixels: the model reads others where its processor scales them otherwise."""
        other = tiny_processor()
        other.image_std = [0.3] * 3
        monkeypatch.setattr("tiny.tiny_processor", lambda: other)
        assert differences(usual, self.key(tmp_path)) == ["processing"]

    def test_what_they_do_not_depend_on_is_left_out(self, tmp_path, usual, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for change in (
            {"output_dir": "elsewhere"},
            {"per_device_eval_batch_size": 3},
            {"logging_steps": 1},
            {"save_strategy": "epoch"},
            {"test": images([0, 1, 2])},
        ):
            assert differences(usual, self.key(tmp_path, **change)) == [], change

    def test_the_optimizer_that_is_passed(self, tmp_path, monkeypatch):
        def key(lr):
            model = tiny_model()
            made = trainer(
                tmp_path, model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=lr), None), **FIXED
            )
            with pytest.raises(KeyboardInterrupt):
                made.train()
            return made.run.stages.key

        monkeypatch.setattr("zspag_hf.methods.stages.make_proxies", killed)
        assert differences(key(0.1), key(0.2)) == ["optimizer"] and differences(key(0.1), key(0.1)) == []

    def test_a_run_does_not_change_its_own_key(self, tmp_path):
        """The default run writes its choices into its own copies; its key was taken before."""
        made = trainer(tmp_path, scope="head", max_steps=10)
        before = run_key(made.run, made.completed_method)
        made.train()
        assert made.run.stages.key == before and made.args.learning_rate == made.method.learning_rate > 0


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
            read = cache.load("first")
            if read is not None:  # padding, or the order of the header
                assert torch.equal(read[0]["a"], tensors["a"]) and read[1] == facts, whole[max(0, i - 9) : i + 9]
        assert len(warnings) > len(whole) // 2

    def test_half_a_stage_beside_its_place_is_no_stage(self, tmp_path, warnings):
        cache = StageCache(tmp_path, KEY)
        (cache.folder / "first.part").write_bytes(b"half")
        resumed = StageCache(tmp_path, KEY, True)
        assert resumed.load("first") is None and not warnings
        resumed.store("first", TENSORS, {})
        same(resumed.load("first")[0], TENSORS)
        assert not list(cache.folder.glob("*.part"))

    def test_a_run_over_damaged_stages_ends_as_one_without(self, tmp_path, warnings, whole):
        first = trainer(tmp_path, **FIXED)
        first.train()
        paths = sorted(first.run.stages.folder.glob("*.safetensors"))
        assert [p.stem for p in paths] == STAGES
        for path, damage in zip(paths, DAMAGES, strict=False):
            damage(path)
        second = trainer(tmp_path, **FIXED)
        second.train(resume_from_checkpoint=True)
        assert len(warnings) == len(paths)
        same(second.model.state_dict(), whole)


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

    def test_a_run_that_finds_the_disk_full_goes_on_once_there_is_room(self, tmp_path, monkeypatch, whole):
        def full(tensors, path, metadata):
            if path.name == "subspaces.part":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save_file(tensors, path, metadata)

        first = trainer(tmp_path, **FIXED)
        with monkeypatch.context() as patch:
            patch.setattr(stage_cache, "save_file", full)
            with pytest.raises(UnlearningError, match="'subspaces' cannot be kept"):
                first.train()
        monkeypatch.setattr("zspag_hf.methods.stages.make_proxies", None)
        second = trainer(tmp_path, **FIXED)
        second.train(resume_from_checkpoint=True)
        same(second.model.state_dict(), whole)


class TestPrivacy:
    def test_nobody_else_may_look_into_the_folder(self, tmp_path):
        before = os.umask(0)
        try:
            cache = StageCache(tmp_path, KEY)
        finally:
            os.umask(before)
        for folder in (cache.root, cache.folder):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_names_and_key_tell_no_image_and_saving_the_result_elsewhere_deletes_all(self, tmp_path):
        """File names and key hold digests: no pixel, no index, no file name of an image."""
        run = trainer(tmp_path, **FIXED)
        run.train()
        folder = run.run.stages.folder
        assert sorted(path.name for path in folder.iterdir()) == [KEY_NAME, *(f"{n}.safetensors" for n in STAGES)]
        key = (folder / KEY_NAME).read_text()
        assert len(key) < 10_000 and "[[" not in key
        run.save_model(str(tmp_path / "copy"))
        assert not Path(run.args.output_dir, FOLDER).exists() and not (tmp_path / "copy" / FOLDER).exists()

    def test_a_save_before_the_evaluation_keeps_it_and_nothing_of_it_is_pushed(self, tmp_path, whole):
        """Nor of checkpoints, whose keys hold a checksum of the images, and are for the owner alone until the end."""
        options = {**FIXED, "save_strategy": "steps", "save_steps": 1}
        run = trainer(tmp_path, **options)
        run.train()
        run.save_model(_internal_call=True)
        folder, public = Path(run.args.output_dir), tmp_path / "public"
        keys = list(folder.glob(f"checkpoint-*/{KEY_NAME}"))
        assert len(keys) == 3 and all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)
        (folder / FOLDER / "model.safetensors").write_bytes(b"x")
        public.mkdir()
        copy_public(str(folder), str(public), "user/name")
        uploaded = [path.relative_to(public).as_posix() for path in public.rglob("*")]
        assert "model.safetensors" in uploaded
        assert not [name for name in uploaded if FOLDER in name or KEY_NAME in name or "checkpoint" in name]
        again = trainer(tmp_path, **options)
        again.train(resume_from_checkpoint=True)
        same(again.model.state_dict(), whole)
        again.save_model()
        assert not (folder / FOLDER).exists() and not any(key.exists() for key in keys)

    def test_a_checkpoint_folder_of_another_run_is_not_whole_before_it_is_rewritten(self, tmp_path, monkeypatch):
        """Trainer writes its state last; an earlier run's must not stand in for it."""
        options = {**FIXED, "save_strategy": "steps", "save_steps": 1}
        trainer(tmp_path, **options).train()
        other = trainer(tmp_path, **{**options, "seed": 7})
        monkeypatch.setattr(other, "_save_optimizer_and_scheduler", killed)
        with pytest.raises(KeyboardInterrupt):
            other.train()
        assert other.run.stages.refusal(str(Path(other.args.output_dir, "checkpoint-1"))) is not None
