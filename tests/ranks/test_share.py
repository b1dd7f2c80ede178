"""Shares of batches: each image once, and their weighted means average to the batch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.data.sampler import EpochBatchSampler, FixedBatchSampler
from qat.errors import SpecError
from qat.ranks.share import check_shares, share, weight

counts = st.integers(1, 60)
sizes = st.integers(1, 5)


@given(batch=counts, size=sizes)
def test_the_mean_over_ranks_is_that_over_the_batch(batch, size):
    losses = torch.rand(batch, dtype=torch.float64).tolist()
    means = []
    for rank in range(size):
        own = share(losses, rank, size)
        means.append(weight(batch, rank, size) * (sum(own) / len(own) if own else 0.0))
    assert sum(means) / size == pytest.approx(sum(losses) / batch, rel=1e-12)


@given(length=counts, batch_size=st.integers(1, 20), size=sizes, epoch=st.integers(0, 3))
def test_ranks_share_the_batches_of_one_process(length, batch_size, size, epoch):
    def batches(**ranks):
        sampler = EpochBatchSampler(length, batch_size, seed=3, **ranks)
        sampler.set_position(epoch, 0)
        return list(sampler), [sampler.size_of(number) for number in range(len(sampler))]

    whole, lengths = batches()
    assert [len(batch) for batch in whole] == lengths
    shares = [batches(rank=rank, ranks=size)[0] for rank in range(size)]
    assert {len(own) for own in shares} == {len(whole)}
    for number, batch in enumerate(whole):
        # interleaved again they are the batch, in its order
        joined = [None] * len(batch)
        for rank, own in enumerate(shares):
            joined[rank::size] = own[number]
        assert joined == batch


@given(length=counts, batch_size=st.integers(1, 20), size=sizes)
def test_an_evaluation_counts_every_sample_once(length, batch_size, size):
    samplers = [FixedBatchSampler(length, batch_size, rank=r, ranks=size) for r in range(size)]
    given_ = [list(sampler) for sampler in samplers]
    assert [len(own) for own in given_] == [len(sampler) for sampler in samplers]
    assert all(batch for own in given_ for batch in own)
    assert sorted(i for own in given_ for batch in own for i in batch) == list(range(length))


@given(images=counts, batch_size=st.integers(1, 30), size=sizes, keeps_last=st.booleans())
def test_shares_of_one_image_are_refused_with_a_batch_size_that_works(
    images, batch_size, size, keeps_last
):
    sizes_ = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    if not keeps_last and len(sizes_) > 1 and sizes_[-1] < batch_size:
        sizes_.pop()
    smallest = min(len(range(rank, n, size)) for n in sizes_ for rank in range(size))
    if size == 1 or smallest >= 2:
        check_shares(images, batch_size, size, keeps_last=keeps_last)
        return
    with pytest.raises(SpecError, match=f"{size} processes") as refused:
        check_shares(images, batch_size, size, keeps_last=keeps_last)
    cure = str(refused.value).partition("; use ")[2]
    if images < 2 * size:
        assert cure == f"at most {max(1, images // 2)} processes"
    else:
        better = int(cure.removeprefix("data.batch_size=").split(",")[0].split()[0])
        check_shares(images, better, size)
