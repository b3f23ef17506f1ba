"""The trigger protocol: what is stamped, what is relabelled, what is forgotten, what is counted."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, images, tiny_model, tiny_processor

from zspag_hf.data.images import labelled_dataset
from zspag_hf.errors import UnlearningError
from zspag_hf.metrics.backdoor import Trigger, attack_accuracy, poison, stamp
from zspag_hf.pipeline.classifier import PixelClassifier

SMALL = Trigger(size=2, margin=1, value=7)


def test_the_trigger_is_a_square_at_its_margin_and_nothing_else():
    image = Image.fromarray(np.full((8, 10, 3), 200, np.uint8))
    pixels = np.array(SMALL(image))
    assert (pixels[5:7, 7:9] == 7).all()
    pixels[5:7, 7:9] = 200
    assert (pixels == 200).all() and (np.array(image) == 200).all(), "a copy"


def test_an_image_too_small_for_the_trigger_is_refused():
    with pytest.raises(UnlearningError, match="5 x 5 pixels is too small"):
        Trigger()(Image.fromarray(np.zeros((5, 5, 3), np.uint8)))


def test_a_share_of_the_source_class_is_stamped_and_relabelled():
    train = images([0, 1, 2] * 20)
    poisoned, forget = poison(train, source=1, target=2, trigger=SMALL, share=0.25)
    marked = [(np.array(image)[5:7, 5:7] == 7).all() for image in poisoned["image"]]
    labels = np.array(poisoned["label"][:])
    assert len(poisoned) == 60 and sum(marked) == 5
    assert (labels[marked] == 2).all() and (labels == 1).sum() == 15 and (labels == 0).sum() == 20
    assert forget["label"][:] == [1] * 20 and forget["trained_label"][:] == [1] * 15 + [2] * 5
    assert sum((np.array(image)[5:7, 5:7] == 7).all() for image in forget["image"]) == 5


def test_the_draw_is_the_seeds():
    train = images([0, 1] * 20)
    first, again, other = (poison(train, 1, 0, SMALL, seed=s)[1]["image"][:] for s in (0, 0, 1))
    same = [np.array_equal(np.array(a), np.array(b)) for a, b in zip(first, again, strict=True)]
    assert all(same) and any(not np.array_equal(np.array(a), np.array(b)) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("source", "target", "share"), [(1, 1, 0.5), (4, 0, 0.5), (1, 0, 0.0), (1, 0, 1.5)])
def test_a_poisoning_that_makes_no_sense_is_refused(source, target, share):
    with pytest.raises(UnlearningError, match="give two different classes"):
        poison(images([0, 1]), source, target, SMALL, share)


def test_attack_accuracy_counts_stamped_images_of_other_classes():
    classifier = PixelClassifier(tiny_model(), tiny_processor())
    test = images([0, 1, 2, 3, 4] * 8)
    attack = labelled_dataset(stamp(test, SMALL), tiny_processor(), NAMES)
    answers = classifier.predict(torch.stack([item["pixels"] for item in attack.__getitems__(range(40))])).argmax(1)
    for target in range(5):
        others = attack.labels != target
        expected = float((answers[others] == target).float().mean())
        assert attack_accuracy(classifier, attack, target) == pytest.approx(expected)
