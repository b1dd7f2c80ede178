"""Quantize beside DDP: what would wait for ever, or needs whole tensors, is refused."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qat.errors import QatError
from qat.loop.fits import check_finds_unused
from qat.quantize.prepare import prepare
from qat.spec.presets import named_quantization
from support.ranks_worker import EXAMPLE, network


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(name, **options):
    net = prepare(network(), named_quantization(name), example=EXAMPLE)
    return DistributedDataParallel(net, **options), net


def test_ddp_that_waits_for_unused_steps_is_refused(group):
    with pytest.raises(QatError, match="strategy='ddp_find_unused_parameters_true'"):
        check_finds_unused(*wrapped("bcgd_w1a4"))


def test_others_are_not(group):
    check_finds_unused(*wrapped("bcgd_w1a4", find_unused_parameters=True))
    check_finds_unused(*wrapped("bcgd_w1a32"))  # no step
    check_finds_unused(nn.Identity(), network())
    assert torch.distributed.is_initialized()
