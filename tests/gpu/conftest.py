"""Tests that need a GPU: `pytest -m gpu`. QAT_GPU_TESTS_ON=cpu rehearses them where there is none.

A rehearsal shows that the tests themselves are sound; that a GPU computes what they ask for it
cannot show.
"""

import os

import pytest

KIND = os.environ.get("QAT_GPU_TESTS_ON", "cuda")


def pytest_collection_modifyitems(items):
    import torch

    missing = KIND == "cuda" and not torch.cuda.is_available()
    for item in items:
        if missing and item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.skip(reason="PyTorch sees no CUDA device"))


@pytest.fixture(scope="session")
def device():
    """The device that is tested."""
    import torch

    return torch.device(KIND, 0) if KIND == "cuda" else torch.device(KIND)


@pytest.fixture
def cuda(device):
    """A device of CUDA's; what a CPU has no meaning for is skipped in a rehearsal."""
    if device.type != "cuda":
        pytest.skip("has no meaning on a CPU")
    return device
