"""Memory that kernels take beyond their operands and result."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cases import MEMORY, Case
from benchmarks.memory import in_process_of_its_own


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone starts a peak over")
@pytest.mark.parametrize("case", MEMORY, ids=str)
def test_extra_memory(memory: Callable[[str, str, Callable[[], float]], None], case: Case) -> None:
    memory("memory", str(case), lambda: in_process_of_its_own(case))
