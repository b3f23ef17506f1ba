"""Forget images beside proxies: what is paired with what."""

import torch

from zspag_hf.parallel.batches import KeptProxies, TargetDataset, proxies_like


def test_proxies_are_paired_by_epoch_alone():
    numbers = torch.arange(7)
    data = TargetDataset(numbers, numbers, KeptProxies(numbers.float(), numbers.float(), numbers), seed=1)
    first = [float(data[i]["proxy_pixels"]) for i in range(5)]
    data.set_epoch(1)
    second = [float(data[i]["proxy_pixels"]) for i in range(5)]
    data.set_epoch(0)
    assert first != second and first == [float(data[i]["proxy_pixels"]) for i in range(5)]
    assert len(set(first)) == 5, "no proxy twice in an epoch that needs fewer than there are"


def test_a_proxy_for_an_images_features_is_of_a_class_drawn_from_its_target():
    targets = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]).repeat(500, 1)
    labels = torch.tensor([2, 0, 2, 3, 0, 2])
    chosen = labels[proxies_like(targets, labels, torch.Generator().manual_seed(0))]
    assert (chosen[1::2] == 3).all()
    assert 0.4 < (chosen[::2] == 0).float().mean() < 0.6 and (chosen[::2] != 3).all()


def test_a_class_without_proxies_gives_its_share_to_the_others():
    targets = torch.tensor([[0.9, 0.0, 0.1], [1.0, 0.0, 0.0]])
    assert proxies_like(targets, torch.tensor([2, 2]), torch.Generator().manual_seed(0)).lt(2).all()


def test_what_is_paired_depends_on_seed_and_epoch_alone():
    proxies = KeptProxies(torch.rand(6, 1, 2, 2), torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6, 5))
    make = lambda seed: TargetDataset(torch.zeros(9, 1, 2, 2), torch.full((9, 3), 1 / 3), proxies, seed)  # noqa: E731
    same, other = make(1), make(2)
    goals = torch.stack([item["feature_targets"] for item in make(1)])
    torch.testing.assert_close(goals, torch.stack([item["feature_targets"] for item in same]))
    same.set_epoch(1)
    assert not torch.equal(goals, torch.stack([item["feature_targets"] for item in same]))
    assert not torch.equal(goals, torch.stack([item["feature_targets"] for item in other]))
