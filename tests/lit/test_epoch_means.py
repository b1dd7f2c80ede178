import torch

from qat.lit.epoch_means import EpochMeans


def test_batches_count_by_their_images():
    means = EpochMeans()
    means.add({"loss": torch.tensor(1.0), "acc": torch.tensor(0.5)}, 4)
    means.add({"loss": torch.tensor(4.0), "acc": torch.tensor(1.0)}, 2)
    assert means.take() == {"loss": 2.0, "acc": 4 / 6}
    assert means.take() == {}


def test_sums_go_on_after_a_restore():
    torch.manual_seed(0)
    batches = [({"loss": torch.rand(()), "acc": torch.rand(())}, n) for n in (3, 5, 2, 7)]
    whole, first, second = EpochMeans(), EpochMeans(), EpochMeans()
    for batch in batches:
        whole.add(*batch)
    for batch in batches[:2]:
        first.add(*batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[2:]:
        second.add(*batch)
    assert second.take() == whole.take()


def test_a_fresh_state_restores_to_a_fresh_one():
    means = EpochMeans()
    means.load_state_dict(EpochMeans().state_dict())
    assert means.take() == {}


def test_gradients_are_not_kept():
    means = EpochMeans()
    means.add({"loss": torch.ones((), requires_grad=True) * 2}, 1)
    assert not means._sums.requires_grad
