import numpy as np
import pytest
import torch
import transformers as hf
from cases import MODELS, linear_classifier, processor
from PIL import Image
from sweep import sweep
from tiny_configs import image_processor as auto_processor
from torch import nn

from zspag_hf.errors import UnlearningError
from zspag_hf.evaluation.accepted import check_trainable
from zspag_hf.pipeline.classifier import PixelClassifier, to_pixels, to_unit

RESIZED = {"do_resize": True, "size": {"height": 8, "width": 8}}
PROCESSORS = {
    "mean_and_std": lambda: processor(),
    "not_normalised": lambda: processor(do_normalize=False),
    "not_rescaled": lambda: processor(do_rescale=False, image_mean=[99.0, 120.0, 130.0], image_std=[60.0, 50.0, 70.0]),
    "neither": lambda: processor(do_rescale=False, do_normalize=False),
    "other_factor": lambda: processor(rescale_factor=1 / 128, do_normalize=False),
    "resized": lambda: hf.ViTImageProcessor(**RESIZED),
    "cropped": lambda: hf.CLIPImageProcessor(
        size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8}, do_convert_rgb=True
    ),
    "efficientnet": lambda: hf.EfficientNetImageProcessor(**RESIZED),
    "efficientnet_no_top": lambda: hf.EfficientNetImageProcessor(**RESIZED, include_top=False),
    "efficientnet_offset": lambda: hf.EfficientNetImageProcessor(
        **RESIZED, rescale_offset=True, rescale_factor=1 / 127.5, do_normalize=False, include_top=False
    ),
    "efficientnet_all": lambda: hf.EfficientNetImageProcessor(
        **RESIZED, rescale_offset=True, rescale_factor=1 / 127.5, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.4, 0.3]
    ),
    "flipped_channels": lambda: hf.MobileViTImageProcessor(
        size={"shortest_edge": 9}, crop_size={"height": 8, "width": 8}
    ),
}


def pictures(n=3, size=(8, 8), mode="RGB"):
    channels = (3,) if mode == "RGB" else ()
    draw = np.random.default_rng(0).integers
    return [Image.fromarray(draw(0, 256, (*size, *channels), dtype=np.uint8), mode) for _ in range(n)]


def through_processor(images, image_processor, model):
    values = image_processor(images, return_tensors="np")["pixel_values"]
    with torch.no_grad():
        return model(pixel_values=torch.tensor(np.asarray(values), dtype=torch.float32)).logits


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_through_the_wrapper_equal_images_through_the_processor(vit, name):
    """The wrapper's whole promise: attacks in [0, 1] see the very function that the model computes."""
    image_processor, model = PROCESSORS[name](), vit.build(torch.float32)
    size = (8, 8) if not image_processor.do_resize else (17, 13)
    images = pictures(size=size)
    pixels = to_pixels(images, image_processor)
    assert pixels.shape == (3, 3, 8, 8) and pixels.dtype == torch.uint8
    logits = PixelClassifier(model, image_processor)(pixels.float() / 255)
    expected = through_processor(images, image_processor, model)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("case", sweep("vit", "vit_grey", "mobilevit", "efficientnet"))
def test_pixels_of_every_type_are_what_its_image_processor_gives(case):
    """Images of several shapes, through the processor that AutoImageProcessor picks."""
    model = case.build(torch.float32)
    image_processor = auto_processor(model.config.model_type, case.image_size, case.channels)
    modes = "RGB" if case.channels == 3 else "L"
    images = [picture for size in ((37, 23), (23, 37), (31, 40)) for picture in pictures(1, size, modes)]
    pixels = to_pixels(images, image_processor)
    assert pixels.shape == (3, case.channels, case.image_size, case.image_size)
    logits = PixelClassifier(model, image_processor).predict(pixels)
    expected = through_processor(images, image_processor, model)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


class SwapsAfterwards(hf.ViTImageProcessorPil):
    """As PP-LCNet's: red and blue change places once they are normalised."""

    def _preprocess(self, *args, **kwargs):
        batch = super()._preprocess(*args, **kwargs)
        batch["pixel_values"] = batch["pixel_values"][:, [2, 1, 0]]
        return batch


class TestRefusedProcessors:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: SwapsAfterwards(**RESIZED, image_mean=[0.4, 0.5, 0.6]),
                "SwapsAfterwards gives other values.* grey",
            ),
            (lambda: hf.MobileViTImageProcessorPil(do_normalize=True), "gives other values than its settings say"),
            (lambda: hf.Siglip2ImageProcessorPil(), r"gives an input of the shape \(1, \d+, 768\), no image"),
            (lambda: hf.ImageGPTImageProcessorPil(clusters=[[0, 0, 0], [1, 1, 1]]), "cannot be run without"),
        ],
        ids=["swaps", "ignores", "patches", "clusters"],
    )
    def test_what_attacks_would_see_otherwise(self, vit, make, message):
        with pytest.raises(UnlearningError, match=f"{message}.*Give a processing_class that"):
            PixelClassifier(vit.build(torch.float32), make())

    def test_a_wrong_mean_would_be_noticed(self, vit):
        """The check is no formality: the same settings with another mean do not pass."""
        classifier = PixelClassifier(vit.build(torch.float32), processor())
        with pytest.raises(UnlearningError, match="other values"):
            classifier.check(processor(image_mean=[0.51, 0.4, 0.3]))


def test_processors_of_the_table_differ():
    """Otherwise the test above would pass with the normalisation left out."""
    pixels = torch.rand(1, 3, 2, 2)
    inputs = {
        name: PixelClassifier(linear_classifier().model, make()).normalize(pixels) for name, make in PROCESSORS.items()
    }
    for name in set(PROCESSORS) - {"not_normalised", "flipped_channels"}:
        assert not torch.allclose(inputs[name], inputs["not_normalised"], atol=0.05), name


def test_grey_images_stay_grey():
    case = next(case for case in MODELS if case.name == "vit_grey")
    image_processor, model = processor(channels=1), case.build(torch.float32)
    images = pictures(mode="L")
    pixels = to_pixels(images, image_processor)
    assert pixels.shape == (3, 1, 8, 8)
    with torch.no_grad():
        logits = PixelClassifier(model, image_processor)(pixels.float() / 255)
        values = (pixels.float() / 255 - image_processor.image_mean[0]) / image_processor.image_std[0]
        torch.testing.assert_close(logits, model(pixel_values=values).logits, rtol=1e-4, atol=1e-4)


def test_pixels_are_the_images_where_nothing_is_resized():
    images = pictures()
    expected = torch.tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    assert torch.equal(to_pixels(images, processor()), expected)


def test_to_unit():
    assert torch.equal(to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8), "cpu"), torch.tensor([0.0, 0.2, 1.0]))
    pixels = torch.rand(2, dtype=torch.float64)
    assert torch.equal(to_unit(pixels, "cpu"), pixels)


def test_normalize_keeps_gradients(vit):
    """d value / d pixel = 1 / std for every pixel."""
    pixels = vit.pixels(2).requires_grad_()
    classifier = vit.classifier()
    classifier.normalize(pixels).sum().backward()
    expected = 1 / torch.tensor(processor().image_std, dtype=torch.float64)
    torch.testing.assert_close(pixels.grad, expected.view(1, 3, 1, 1).expand_as(pixels), rtol=1e-6, atol=0)


class TestPredict:
    def test_uint8_and_float_agree(self, vit):
        classifier = vit.classifier(torch.float32)
        pixels = (vit.pixels(5) * 255).to(torch.uint8)
        logits = classifier.predict(pixels)
        assert logits.dtype == torch.float32 and logits.shape == (5, classifier.num_labels)
        assert torch.equal(logits, classifier.predict(pixels.float() / 255))

    def test_batch_size_does_not_matter(self, vit):
        classifier, pixels = vit.classifier(), vit.pixels(5)
        torch.testing.assert_close(classifier.predict(pixels, batch_size=2), classifier.predict(pixels))

    @pytest.mark.parametrize("training", [True, False])
    def test_runs_in_eval_mode_and_keeps_the_mode(self, training):
        """Dropout and batch statistics would change the answer; running statistics must not move."""
        case = next(case for case in MODELS if case.name == "resnet")
        classifier, pixels = case.classifier(), case.pixels(4)
        with torch.no_grad():
            expected = classifier(pixels).float()
        state = {name: value.clone() for name, value in classifier.model.state_dict().items()}
        classifier.model.train(training)
        torch.testing.assert_close(classifier.predict(pixels), expected)
        assert classifier.model.training is training
        assert all(torch.equal(value, state[name]) for name, value in classifier.model.state_dict().items())

    def test_leaves_no_graph(self, vit):
        assert not vit.classifier().predict(vit.pixels(2)).requires_grad


def test_the_wrapper_trains_the_same_model(vit):
    """Same object, and nothing of the wrapper ends up in the parameters or in the saved state."""
    model = vit.build()
    classifier = PixelClassifier(model, processor())
    assert classifier.model is model
    assert {id(p) for p in classifier.parameters()} == {id(p) for p in model.parameters()}
    assert set(classifier.state_dict()) == {f"model.{name}" for name in model.state_dict()}


def test_every_floating_point_parameter_must_be_in_single_precision(vit):
    check_trainable(vit.build(torch.float32))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = vit.build(torch.float32)
        model.classifier.bias = nn.Parameter(model.classifier.bias.to(dtype))
        with pytest.raises(UnlearningError, match=r"classifier\.bias.*" + str(dtype)):
            check_trainable(model)
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False)
    check_trainable(model)
