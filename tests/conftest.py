import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

from eigendamage_ext import ops

torch.set_num_threads(1)  # faster on small tensors, and torch's own sums round alike on every machine


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not (torch.cuda.is_available() and ops.build_info()["cuda"]):
        if os.environ.get("EIGENDAMAGE_REQUIRE_CUDA") == "1":
            pytest.fail("EIGENDAMAGE_REQUIRE_CUDA=1, but there is no GPU or no CUDA build")
        pytest.skip("needs a GPU and a CUDA build")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of each device in turn. Convolutions on a GPU are exact to float32, as products are anyway."""
    name: str = request.param
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield name
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def default_device(device: str) -> Iterator[str]:
    """Each device in turn, where all tensors go that a test makes."""
    with contextlib.nullcontext() if device == "cpu" else torch.device(device):  # it hides the direct calls
        yield device


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
