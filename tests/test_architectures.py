"""Every model type that ``AutoModelForImageClassification`` maps unlearns, or is refused with the reason and a mend."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import MODELS
from tiny_configs import UNMAPPED, image_processor
from tiny_runs import FIXED, case_trainer, leak, saved
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as MAPPED

from zspag_hf.errors import UnlearningError
from zspag_hf.hub.architectures import REFUSED, check_architecture
from zspag_hf.hub.models import load_classifier
from zspag_hf.methods.base import Method
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.layers import constrained_layers

HUB = [case for case in MODELS if case.on_hub]
ADAPTIVE = ("clip", "dinov2", "focalnet", "levit_teacher", "mobilevit", "perceiver", "segformer")


def model_type(case) -> str:
    return case.make().config.model_type


def forget_loss(run) -> float:
    return float(F.cross_entropy(run.classifier.predict(run.plan.pixels), run.plan.targets))


@pytest.mark.parametrize("case", HUB, ids=lambda case: case.name)
def test_a_type_unlearns_under_the_hard_constraint_and_reloads_equal(case, tmp_path):
    run = case_trainer(case, tmp_path, **FIXED)
    assert type(run.model) is type(case.make())
    assert type(run.processing_class).__name__ == type(image_processor(run.model.config.model_type, 8)).__name__
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.train()
    after, constrained = run.model.state_dict(), {f"{name}.weight" for name in run.layers}
    for key, value in before.items():
        if key not in constrained:
            assert torch.equal(after[key], value), key
    moved = [key for key in constrained if not torch.equal(after[key], before[key])]
    assert len(moved) >= len(constrained) / 2
    assert leak(run) < 1e-5

    now = forget_loss(run)
    run.save_model()
    again = AutoModelForImageClassification.from_pretrained(run.args.output_dir)
    assert type(again) is type(run.model)
    pixels = run.forget.pixels
    reloaded = PixelClassifier(again, AutoImageProcessor.from_pretrained(run.args.output_dir)).predict(pixels)
    torch.testing.assert_close(reloaded, run.classifier.predict(pixels), atol=1e-6, rtol=1e-6)
    run.model.load_state_dict(before)
    assert now < forget_loss(run)


@pytest.mark.parametrize("case", [c for c in MODELS if c.name in ADAPTIVE], ids=lambda case: case.name)
def test_a_type_forgets_within_the_proxy_budget_by_default(case, tmp_path):
    run = case_trainer(case, tmp_path, count=10, max_steps=20)
    before = run.classifier.predict(run.forget.pixels).softmax(1)[:, run.forget_ids].mean()
    run.train()
    after = run.classifier.predict(run.forget.pixels).softmax(1)[:, run.forget_ids].mean()
    assert before > 0.2 and after < before / 2
    assert run.report.choice["proxy_kl"] <= run.report.choice["proxy_budget"]


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_the_gradient_of_an_image_does_not_depend_on_its_batch(case):
    """Attacks and remainders of batches come with one image, for which torch's batch norm needs care."""
    classifier, pixels = case.classifier(), case.pixels(3)
    layers = constrained_layers(classifier.model, lambda: classifier(pixels))
    weights = [layer.weight for layer in layers.values()]

    def gradients(x):
        x.requires_grad_()
        return torch.autograd.grad(classifier(x)[0, 1], [x, *weights], allow_unused=True)

    alone, batched = gradients(pixels[:1].clone()), gradients(pixels.clone())
    for one, other in zip([alone[0], *alone[1:]], [batched[0][:1], *batched[1:]], strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9 * float(1 + other.abs().max()))


@pytest.mark.parametrize("case", [c for c in MODELS if c.name in ("cvt", "levit")], ids=lambda case: case.name)
def test_a_training_batch_of_one_image_has_the_gradient_of_that_image_twice(case):
    classifier, pixels, targets = case.classifier(), case.pixels(1), torch.tensor([[0.5, 0, 0.1, 0.2, 0.2]]).double()
    layers = constrained_layers(classifier.model, lambda: classifier(case.pixels(2)))

    def gradients(times):
        inputs = {"pixels": pixels.repeat(times, 1, 1, 1), "targets": targets.repeat(times, 1)}
        inputs["weights"] = torch.full((times,), 1 / times)
        loss = Method().compute_loss(SimpleNamespace(classifier=classifier), classifier.model, inputs)
        return torch.autograd.grad(loss, [layer.weight for layer in layers.values()], allow_unused=True)

    for one, other in zip(gradients(1), gradients(2), strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9 * float(1 + other.abs().max()))


def test_every_mapped_type_has_a_tiny_model_or_is_refused():
    tiny = {model_type(case) for case in HUB}
    assert tiny | set(REFUSED) == set(MAPPED)
    assert not tiny & set(REFUSED)
    assert all(kind not in MAPPED or kind in tiny for kind in UNMAPPED)


def test_every_class_of_a_type_that_has_several_has_a_tiny_model():
    classes = {type(case.make()).__name__ for case in HUB}
    for kind, mapped in MAPPED.items():
        if isinstance(mapped, tuple):
            assert set(mapped) <= classes, kind


@pytest.mark.parametrize("kind", REFUSED)
class TestRefused:
    def test_by_its_config_before_anything_is_loaded(self, kind, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UnlearningError, match=f"'{kind}' cannot be unlearned"):
            load_classifier(str(tmp_path))

    def test_with_a_reason_and_a_mend(self, kind):
        with pytest.raises(UnlearningError) as error:
            check_architecture(kind)
        why, mend = REFUSED[kind]
        assert str(error.value).endswith(f"{why}. {mend}")
        assert mend.split()[0] in ("Give", "Wrap")


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_outputs_that_are_no_distribution_are_refused(problem, vit, tmp_path):
    folder = saved(vit, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": problem}))
    with pytest.raises(UnlearningError, match=problem):
        load_classifier(folder)
    check_architecture("vit", "single_label_classification")
    check_architecture("vit")
