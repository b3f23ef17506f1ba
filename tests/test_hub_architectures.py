"""Every model type that ``AutoModelForImageClassification`` maps unlearns, or is refused with the reason and a mend."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import MODELS
from sweep import sweep
from tiny_configs import UNMAPPED, image_processor
from tiny_runs import FIXED, case_trainer, leak, saved
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as MAPPED

from zspag_hf.errors import UnlearningError
from zspag_hf.hub.architectures import REFUSED_TYPES, check_architecture
from zspag_hf.hub.models import load_classifier
from zspag_hf.methods.base import Method
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.layers import constrained_layers

HUB = [case for case in MODELS if case.on_hub]
SHORT = FIXED | {"max_steps": 3, "proxies_per_class": 2, "attack_steps": 4, "tilt": "none"}  # influence: test_influence
DEFAULT = ("clip", "levit_teacher", "segformer")


def forget_loss(trainer) -> float:
    plan = trainer.run.plan
    return float(F.cross_entropy(trainer.run.classifier.predict(plan.pixels), plan.targets))


@pytest.mark.parametrize("case", sweep("vit", "resnet", among=[case.name for case in HUB]))
def test_a_type_unlearns_under_the_hard_constraint_and_reloads_equal(case, tmp_path):
    trainer = case_trainer(case, tmp_path, count=4, **SHORT)
    model, run = trainer.model, trainer.run
    assert model.config.architectures == [type(model).__name__], "the class that was saved"
    assert type(trainer.processing_class).__name__ == type(image_processor(model.config.model_type, 8)).__name__
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.train()
    after, constrained = model.state_dict(), {f"{name}.weight" for name in run.layers}
    for key, value in before.items():
        if key not in constrained:
            assert torch.equal(after[key], value), key
    moved = [key for key in constrained if not torch.equal(after[key], before[key])]
    assert len(moved) >= len(constrained) / 2
    assert leak(trainer) < 1e-5

    now = forget_loss(trainer)
    trainer.save_model()
    again = AutoModelForImageClassification.from_pretrained(trainer.args.output_dir)
    assert type(again) is type(model)
    pixels = run.forget.pixels
    reloaded = PixelClassifier(again, AutoImageProcessor.from_pretrained(trainer.args.output_dir)).predict(pixels)
    torch.testing.assert_close(reloaded, run.classifier.predict(pixels), atol=1e-6, rtol=1e-6)
    model.load_state_dict(before)
    assert now < forget_loss(trainer)


@pytest.mark.parametrize("case", sweep(among=DEFAULT))
def test_a_type_forgets_within_the_proxy_budget_by_default(case, tmp_path):
    trainer = case_trainer(case, tmp_path, count=10, max_steps=10, attack_steps=10)

    def forgotten():
        pixels, ids = trainer.run.forget.pixels, trainer.run.forget_ids
        return trainer.run.classifier.predict(pixels).softmax(1)[:, ids].mean()

    before = forgotten()
    trainer.train()
    assert before > 0.2 and forgotten() < before / 2
    assert trainer.report.choice["whole_proxy_kl"] <= trainer.report.choice["proxy_budget"]


@pytest.mark.parametrize("case", sweep("vit", "levit"))
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


@pytest.mark.parametrize("case", sweep("levit", among=("cvt", "levit")))
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


@pytest.mark.slow
def test_every_mapped_type_and_every_class_of_it_has_a_tiny_model_or_is_refused():
    models = [case.make() for case in HUB]
    tiny, classes = {model.config.model_type for model in models}, {type(model).__name__ for model in models}
    assert tiny | set(REFUSED_TYPES) == set(MAPPED) and not tiny & set(REFUSED_TYPES)
    assert all(kind not in MAPPED or kind in tiny for kind in UNMAPPED)
    for kind, mapped in MAPPED.items():
        assert not isinstance(mapped, tuple) or set(mapped) <= classes, kind


def test_a_refused_type_is_told_by_its_config_with_a_reason_and_a_mend(tmp_path):
    for kind, (why, mend) in REFUSED_TYPES.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        for refuse in (lambda: load_classifier(tmp_path), lambda kind=kind: check_architecture(kind)):
            with pytest.raises(UnlearningError) as error:
                refuse()
            assert str(error.value) == f"a model of the type {kind!r} cannot be unlearned: {why}. {mend}"
        assert mend.split()[0] in ("Give", "Wrap"), kind


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_outputs_that_are_no_distribution_are_refused(problem, vit, tmp_path):
    folder = saved(vit, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": problem}))
    with pytest.raises(UnlearningError, match=problem):
        load_classifier(folder)
    check_architecture("vit", "single_label_classification")
    check_architecture("vit")
