import pytest
import torch
from cases import LAYERS, MODELS, FlatClassifier, Recorder, output_rows
from sweep import sweep
from tiny_configs import NUM_LABELS
from torch import nn

from zspag_hf.pipeline.layers import LAYER_TYPES, as_layer, constrained_layers, head_name, reads_images


@pytest.fixture(params=sweep("vit", "regnet", "siglip"))
def case(request):
    return request.param


def layers_of(case):
    classifier = case.classifier()
    return classifier, constrained_layers(classifier.model, lambda: classifier(case.pixels(2)))


def product(layer, x):
    """Rows times matrix, groups side by side: ``(n, out)``."""
    out = layer.rows(x) @ layer.matrix(layer.weight).mT
    return out.movedim(0, 1).flatten(1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("layer_case", LAYERS, ids=lambda case: case.name)
class TestSingleLayer:
    def test_rows_times_matrix_is_the_output(self, layer_case):
        module, x = layer_case.build()
        torch.testing.assert_close(product(as_layer("it", module), x), output_rows(module, module(x)))

    def test_shapes(self, layer_case):
        module, x = layer_case.build()
        layer = as_layer("it", module)
        rows, matrix = layer.rows(x), layer.matrix(module.weight)
        assert rows.shape[0] == matrix.shape[0] == layer.groups
        assert rows.shape[2] == matrix.shape[2] == layer.d_in
        assert layer.weight is module.weight

    def test_rows_of_an_image_are_contiguous_and_equal_in_number(self, layer_case):
        module, x = layer_case.build()
        layer = as_layer("it", module)
        alone = torch.cat([layer.rows(image[None]) for image in x], dim=1)
        torch.testing.assert_close(layer.rows(x), alone, rtol=0, atol=0)

    def test_writing_to_the_matrix_writes_the_weight(self, layer_case):
        module, x = layer_case.build()
        layer = as_layer("it", module)
        with torch.no_grad():
            before = module.weight.clone()
            layer.matrix(module.weight).mul_(2)
            torch.testing.assert_close(module.weight, 2 * before)
            layer.matrix(module.weight)[0, 0] = 0
        assert product(layer, x)[:, 0].abs().max() == 0
        assert output_rows(module, module(x))[:, 0].abs().max() < 1e-12


def test_rows_times_matrix_is_the_output_of_every_layer_of_every_model(case):
    classifier, layers = layers_of(case)
    with Recorder({name: layer.module for name, layer in layers.items()}) as seen, torch.no_grad():
        classifier(case.pixels(3))
    for name, layer in layers.items():
        expected = output_rows(layer.module, seen.outputs[name][0])
        assert expected.abs().max() > 0, name
        assert (product(layer, seen.inputs[name][0]) - expected).abs().max() <= 1e-10 * expected.abs().max(), name


def test_every_linear_layer_and_convolution_is_listed_except_the_silent_ones(case):
    classifier, layers = layers_of(case)
    modules = {name for name, module in classifier.model.named_modules() if isinstance(module, LAYER_TYPES)}
    assert set(case.silent) <= modules
    assert set(layers) == modules - set(case.silent)


def test_layers_are_listed_in_the_order_of_the_forward_pass(case):
    classifier, layers = layers_of(case)
    reached = []
    for name, layer in layers.items():
        layer.module.register_forward_pre_hook(lambda _m, _x, name=name: reached.append(name))
    classifier(case.pixels(2))
    assert list(layers) == list(dict.fromkeys(reached))


def test_hooks_are_gone_afterwards_and_after_a_failing_forward(vit):
    def hooks():
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())

    def fail():
        raise RuntimeError("stop")

    classifier, _ = layers_of(vit)
    model = classifier.model
    assert hooks() == 0
    with pytest.raises(RuntimeError, match="stop"):
        constrained_layers(model, fail)
    assert hooks() == 0


ROWS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])  # two images of two rows


def changed(*rows):
    other = ROWS.clone()
    other[list(rows)] += 1
    return other


def test_a_weight_that_is_tied_to_one_that_reads_a_table_is_not_listed():
    class Table(FlatClassifier):
        def forward(self, pixel_values):
            x = self.layers[1](pixel_values.flatten(1)) + self.layers[2](torch.ones(len(pixel_values), 4))
            return self.layers[3](x)

    model = Table(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    pixels = torch.rand(2, 1, 2, 2)
    assert list(constrained_layers(model, lambda: model(pixels))) == ["layers.1", "layers.3"]
    model.layers[2].weight = model.layers[1].weight
    assert list(constrained_layers(model, lambda: model(pixels))) == ["layers.3"]


class TestReadsImages:
    """Of two images, the last was changed."""

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            (ROWS, changed(2, 3), True),
            (ROWS, changed(3), True),
            (ROWS, ROWS, False),  # a table
            (ROWS, changed(0, 1, 2, 3), False),  # something over both images
            (ROWS, changed(1, 3), False),  # tokens first, images second
            (0 * ROWS, 0 * ROWS, True),  # dead on these images
            (ROWS[:3], changed(2)[:3], False),  # no equal parts
        ],
    )
    def test_by_what_changes(self, before, after, expected):
        assert reads_images(before, after, 2) is expected

    def test_rounding_is_no_change(self):
        assert reads_images(ROWS, changed(3) + torch.tensor([1e-6, 0])[:, None].repeat_interleave(2, 0), 2)

    def test_two_equal_images_will_do(self, vit):
        classifier, pixels = vit.classifier(), vit.pixels(1).repeat(2, 1, 1, 1)
        assert list(constrained_layers(classifier.model, lambda: classifier(pixels))) == list(layers_of(vit)[1])

    def test_a_module_that_reads_a_table_once_is_not_listed(self):
        class Twice(FlatClassifier):
            def forward(self, pixel_values):
                x = self.layers[1](torch.ones(len(pixel_values), 4)) + self.layers[1](pixel_values.flatten(1))
                return self.layers[2](x)

        model = Twice(nn.Linear(4, 4), nn.Linear(4, 3))
        assert list(constrained_layers(model, lambda: model(torch.rand(2, 1, 2, 2)))) == ["layers.2"]


class TiedClassifier(FlatClassifier):
    """Two modules with one weight, a third with the same values in a weight of its own."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
        first, second, third = self.layers[1], self.layers[3], self.layers[5]
        second.weight = first.weight
        third.weight = nn.Parameter(first.weight.detach().clone())


def test_a_tied_weight_is_listed_once_with_its_sharer():
    model = TiedClassifier()
    layers = constrained_layers(model, lambda: model(torch.rand(2, 1, 2, 2)))
    assert list(layers) == ["layers.1", "layers.5", "layers.6"]
    assert layers["layers.1"].sharers == (model.layers[3],)
    assert layers["layers.5"].sharers == ()


def test_the_head_is_the_classification_layer(case):
    _, layers = layers_of(case)
    head = head_name(layers, NUM_LABELS)
    assert head == list(layers)[-1]
    assert layers[head].module.out_features == NUM_LABELS


def test_the_head_is_the_last_reached_layer_of_its_width():
    model = FlatClassifier(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 7))
    layers = constrained_layers(model, lambda: model(torch.rand(2, 1, 2, 2)))
    assert head_name(layers, 3) == "layers.2"
    assert head_name(layers, 11) is None


def test_the_table_holds_every_layer_type():
    kinds = {type(case.build()[0]) for case in LAYERS}
    assert set(LAYER_TYPES) <= kinds
    assert len({case.name for case in MODELS}) == len(MODELS)
