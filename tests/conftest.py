import os

import pytest
import torch

from eigendamage_ext import ops

torch.set_num_threads(1)  # faster on small tensors, and torch's own sums round alike on every machine


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not (torch.cuda.is_available() and ops.build_info()["cuda"]):
        if os.environ.get("EIGENDAMAGE_REQUIRE_CUDA") == "1":
            pytest.fail("EIGENDAMAGE_REQUIRE_CUDA=1, but there is no GPU or no CUDA build")
        pytest.skip("needs a GPU and a CUDA build")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
