"""MixUnlearn: its losses by hand, what each gradient reaches, its masks, and where a run is gone on with."""

import math
import os

import children
import pytest
import torch
from cases import MODELS
from safetensors.torch import load_file, save_file
from tiny import images, tiny_model, trainer
from transformers import TrainerCallback

from zspag_hf import UnlearningError
from zspag_hf.methods.mixblock import MiddleFeatures, MixBlock
from zspag_hf.methods.mixunlearn import (
    OMEGA,
    SHARPNESS,
    TAU_GEN,
    TAU_MIX,
    TAU_REAL,
    Draws,
    MixUnlearn,
    distance,
    kept_name,
    log_sum,
    mix_loss,
    mixed,
    sharpened,
)

RETAIN = images([0, 1, 3, 4] * 6, seed=2)
FIXED = {"learning_rate": 0.02, "max_steps": 12, "per_device_train_batch_size": 8, "retain": RETAIN}


def make(folder, family="vit", method="mixunlearn", **options):
    return trainer(folder, family, model=tiny_model(family), **{**FIXED, "method": method, **options})


def cosine_distance(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def softmax(row):
    powers = [math.exp(x) for x in row]
    return [x / sum(powers) for x in powers]


LOGITS = [[1.0, -0.5, 0.25], [0.1, 0.7, -1.2]]
KEPT = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
GONE = [[0.05, 0.05, 0.9], [0.2, 0.1, 0.7]]
HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


class TestLosses:
    """Two samples, written out."""

    @pytest.mark.parametrize(("share", "tau"), [(0.3, 1.0), (0.8, 0.25)])
    def test_the_mixed_loss_is_the_papers_with_a_mean_outside(self, share, tau):
        outputs = [softmax(row) for row in LOGITS]
        below = sum(
            math.exp(share * cosine_distance(out, target) / tau) for out, target in zip(outputs, GONE, strict=True)
        )
        above = [
            math.exp((1 - share) * cosine_distance(out, target)) for out, target in zip(outputs, KEPT, strict=True)
        ]
        expected = sum(math.log(one / below) for one in above) / 2
        found = mix_loss(double(LOGITS), double(KEPT), double(GONE), HALF, share, tau)
        assert float(found) == pytest.approx(expected, abs=1e-12)

    def test_the_log_sum_has_the_gradient_of_the_plain_one_without_rows_of_weight_0(self):
        terms = torch.tensor([0.5, 3.0, -1.0, 900.0], dtype=torch.float64, requires_grad=True)
        weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0], dtype=torch.float64)
        found = log_sum(terms, weights)
        plain = terms[:3].exp().sum().log()
        assert found.item() == pytest.approx(plain.item(), abs=1e-12)
        mine, expected = (torch.autograd.grad(loss, terms)[0] for loss in (found, plain))
        assert torch.allclose(mine, expected, atol=1e-14)
        assert log_sum(torch.tensor([900.0, 900.0]), torch.ones(2)).isfinite(), "no sum outside of log space"

    def test_sharpening_is_a_power_and_a_quotient(self):
        p = double(LOGITS).softmax(1) ** (1 / SHARPNESS)
        assert torch.allclose(sharpened(double(LOGITS)), p / p.sum(1, keepdim=True))

    def test_the_parts_of_a_batch_add_up_to_both_losses(self, tmp_path):
        job = make(tmp_path, method="mixup_unlearn")
        job.train()
        method, model, draws = job.method, job.model, Draws(job.run, 12)
        n, run = 6, job.run
        inputs = {
            "pixels": run.retained.pixels[:n],
            "targets": run.plan.targets[:n],
            "weights": torch.full((n,), 1 / n),
        }
        inputs |= {"proxy_pixels": run.forget.pixels[:n], "proxy_targets": run.plan.proxies.targets[:n]}
        found = sum(method.compute_loss(job.run, model, part).item() for part in method.parts(inputs))
        kept, gone = (inputs[name].float() / 255 for name in ("pixels", "proxy_pixels"))
        share = draws.share
        mixture = share * gone + (1 - share) * kept
        logits = {name: job.run.classifier.predict(x) for name, x in (("kept", kept), ("gone", gone), ("mix", mixture))}
        near = ((1 - share) * distance(logits["mix"], inputs["targets"])).exp()
        expected = (
            (near / (share * distance(logits["mix"], inputs["proxy_targets"]) / TAU_MIX).exp().sum()).log().mean()
        )
        near = distance(logits["kept"], inputs["targets"]).exp()
        real = (near / (distance(logits["gone"], inputs["proxy_targets"]) / TAU_REAL).exp().sum()).log().mean()
        assert found == pytest.approx(float(expected + OMEGA * real), abs=1e-5)

    def test_a_retained_target_has_no_share_of_the_forgotten_class(self, tmp_path):
        job = make(tmp_path, max_steps=1)
        job.train()
        assert (job.run.plan.targets[:, 2] == 0).all() and torch.allclose(job.run.plan.targets.sum(1), torch.ones(24))
        assert (job.run.plan.proxies.targets[:, 2] > 0).any()


class TestMixBlock:
    def test_its_masks_sum_to_one_and_mix_pixels(self):
        block = MixBlock(5, seed=0).double()
        block.value.weight.data *= 300
        one, other = torch.randn(2, 3, 5, 4, 4, dtype=torch.float64)
        masks = block.float()(one, other, 0.3, (8, 8))
        assert masks.shape == (3, 2, 8, 8) and masks.min() > 0 and masks.flatten(1).std(1).min() > 1e-3
        assert torch.allclose(masks.sum(1), torch.ones(3, 8, 8), atol=1e-6)
        gone, kept = torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)
        assert torch.equal(mixed(gone, kept, masks), masks[:, 1:].expand(3, 3, 8, 8))

    def test_its_mask_is_the_attention_of_automix(self):
        block = MixBlock(4, seed=1)
        block.query.weight.data *= 50
        block.value.weight.data *= 50
        one, other = torch.randn(2, 1, 4, 2, 2)
        cells = [
            torch.cat([x.flatten(2)[0].T, torch.full((4, 1), share)], 1) for x, share in ((one, 0.3), (other, 0.7))
        ]
        query, key = (x @ block.query.weight.T for x in cells)
        value = cells[1] @ block.value.weight.T
        expected = ((query @ key.T / math.sqrt(2)).softmax(1) @ value).view(2, 2).sigmoid()
        assert torch.allclose(block(one, other, 0.3, (2, 2))[0, 1], expected, atol=1e-6)

    @pytest.mark.parametrize("name", ["vit", "deit", "resnet", "convnext", "swin", "mobilevit", "levit", "pvt"])
    def test_middle_features_are_a_map_for_each_image(self, name):
        case = next(case for case in MODELS if case.name == name)
        classifier, pixels = case.classifier(torch.float32), case.pixels(3, torch.float32)
        names = [n for n, m in classifier.model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
        features = MiddleFeatures(classifier, names, pixels)
        found = features(pixels)
        assert found.shape[:2] == (3, features.width) and min(found.shape[2:]) >= 2
        changed = pixels.clone()
        changed[2] = 1 - changed[2]
        assert torch.allclose(features(changed)[:2], found[:2], atol=1e-5)
        assert not torch.allclose(features(changed)[2], found[2], atol=1e-3)

    def test_the_cells_lie_where_the_image_has_them(self):
        case = next(case for case in MODELS if case.name == "vit")
        classifier = case.classifier(torch.float32)
        features = MiddleFeatures(classifier, ["vit.layers.0.attention.q_proj"], case.pixels(2, torch.float32))
        pixels = case.pixels(1, torch.float32)
        corner = pixels.clone()
        corner[:, :, :4, 4:] = 1 - corner[:, :, :4, 4:]  # the upper right of its patches
        change = (features(corner) - features(pixels)).abs().sum(1)[0]
        assert change[0, 1] > 1e-3 and change.sum() == change[0, 1]


def behind_the_generator(monkeypatch, callback):
    """A callback of the trainer's would come before the plan's."""
    prepare = MixUnlearn.prepare

    def with_one_more(method, run):
        plan = prepare(method, run)
        plan.callbacks.append(callback)
        return plan

    monkeypatch.setattr(MixUnlearn, "prepare", with_one_more)


class TestGenerator:
    def test_its_step_changes_nothing_but_itself_and_makes_the_models_loss_larger(self, tmp_path, monkeypatch):
        job = make(tmp_path, "resnet", max_steps=1)
        seen = {}

        class Probe(TrainerCallback):
            def on_train_begin(self, args, state, control, **_):
                generator = job.method.generator
                weights = torch.full((8,), 1 / 8)
                draws = Draws(job.run, 12)
                kept, targets = job.run.retained.pixels[:8].float() / 255, job.run.plan.targets[:8]

                def loss():
                    gone = generator.pixels[draws.rows].float() / 255
                    masks = generator.masks(gone, kept, draws.generator_share)
                    logits = generator.average(mixed(gone, kept, masks))
                    theirs = generator.targets[draws.rows]
                    return mix_loss(logits, targets, theirs, weights, draws.generator_share, TAU_GEN).item()

                before, held = loss(), {k: v.clone() for k, v in job.model.state_dict().items()}
                for _ in range(5):
                    generator.step(kept, targets, weights, draws)
                seen["losses"] = before, loss()
                seen["same"] = all(torch.equal(held[k], v) for k, v in job.model.state_dict().items())
                everything = [*job.model.parameters(), *generator.average.parameters()]
                seen["grads"] = [p.grad for p in everything if p.grad is not None]

        behind_the_generator(monkeypatch, Probe())
        job.train()
        assert seen["losses"][1] > seen["losses"][0] and seen["same"] and not seen["grads"]

    def test_the_models_loss_gives_the_generator_no_gradient(self, tmp_path):
        job = make(tmp_path, max_steps=1)
        job.train()
        assert all(p.grad is None for p in job.method.generator.mix_block.parameters())

    @pytest.mark.slow
    def test_it_moves_every_fourth_step_and_the_average_follows_the_model(self, tmp_path, monkeypatch):
        job, moved, gaps = make(tmp_path, max_steps=9), [], []

        class Look(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                generator = job.method.generator
                self.before = [p.clone() for p in generator.mix_block.parameters()]
                self.average = [p.clone() for p in generator.average.model.parameters()]

            def on_step_end(self, args, state, control, **_):
                generator = job.method.generator
                pairs = zip(self.before, generator.mix_block.parameters(), strict=True)
                if any(not torch.equal(a, b) for a, b in pairs):
                    moved.append(state.global_step - 1)
                triples = zip(self.average, generator.average.model.parameters(), job.model.parameters(), strict=True)
                gaps.extend((new - (0.999 * old + 0.001 * mine)).abs().max().item() for old, new, mine in triples)

        behind_the_generator(monkeypatch, Look())
        job.train()
        assert moved == [0, 4, 8] and max(gaps) < 1e-6

    def test_a_model_without_maps_is_refused_with_the_way_out(self, easy):
        with pytest.raises(UnlearningError, match="method='mixup_unlearn'"):
            MiddleFeatures(easy, ["layers.1"], torch.rand(2, 1, 4, 4, dtype=torch.float64))


def weights_to(folder, name):
    """In a process group: the weights that a run ends with, written by the first process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    retain = images([0, 1, 3, 4] * 6 + [0], seed=2)  # the last batch has one row
    batch = {"per_device_train_batch_size": 8 // size, "max_steps": 10}
    job = make(folder / f"{name}{size}", "resnet", name, **{**FIXED, "retain": retain, **batch})
    job.train()
    head = job.run.head
    tensors = job.model.state_dict() | {"moved": job.run.layers[head].weight - job.original[f"{head}.weight"]}
    if name == "mixunlearn":
        tensors |= {f"mix_block/{key}": value for key, value in job.method.generator.mix_block.state_dict().items()}
    if os.environ.get("RANK", "0") == "0":
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}{size}.safetensors")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("name", ["mixunlearn", "mixup_unlearn"])
@pytest.mark.slow
def test_two_processes_end_as_one_does(tmp_path, name):
    for size in (1, 2):
        children.run_group(size, weights_to, tmp_path, name)
    one, two = (load_file(tmp_path / f"{name}{size}.safetensors") for size in (1, 2))
    assert one["moved"].abs().max() > 1e-3
    for key, value in one.items():
        assert torch.allclose(two[key].float(), value.float(), atol=2e-6), key


class TestCheckpoints:
    @pytest.mark.slow
    def test_what_belongs_to_deleted_checkpoints_is_deleted_and_all_of_it_in_the_end(self, tmp_path):
        seen = []

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                seen.append(sorted(path.stem for path in job.run.stages.folder.glob("generator-*.safetensors")))

        job = make(tmp_path, save_strategy="steps", save_steps=3, save_total_limit=1)
        job.add_callback(Look())
        job.train()
        assert seen[4] == [kept_name(3)] and seen[-2] == [kept_name(9)]
        job.save_model()
        assert not list(tmp_path.rglob("generator-*"))

    @pytest.mark.slow
    def test_a_checkpoint_whose_generator_is_gone_is_refused(self, tmp_path):
        class Cut(BaseException):
            pass

        class CutAt(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if state.global_step == 5:
                    raise Cut

        options = {"save_strategy": "steps", "save_steps": 4}
        job = make(tmp_path, **options)
        job.add_callback(CutAt())
        with pytest.raises(Cut):
            job.train()
        job.run.stages.path(kept_name(4)).unlink()
        with pytest.raises(UnlearningError, match=r"step 4 .* Leave resume_from_checkpoint out"):
            make(tmp_path, **options).train(resume_from_checkpoint=True)
