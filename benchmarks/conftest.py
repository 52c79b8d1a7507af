"""The frame of ``make bench``: each test holds one contest; table and gates are printed at the end."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gates, tables
from benchmarks.contest import Contest, Record, hold

RECORDS = pytest.StashKey[list[Record]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only", default="", metavar="WORDS", help="benchmarks with these words in their name")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORDS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--only").split()
    chosen = [item for item in items if all(word in item.name for word in wanted)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture
def contest(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Contest], None]:
    """Hold a contest and keep its record."""

    def run(entry: Contest) -> None:
        hold(entry, benchmark)
        keep(request.config, benchmark)

    return run


@pytest.fixture
def memory(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[str, str, Callable[[], float]], None]:
    """Keep what ``measure() -> MB`` finds for an op and a case."""

    def run(op: str, case: str, measure: Callable[[], float]) -> None:
        megabytes = benchmark.pedantic(measure, rounds=1)
        benchmark.extra_info.update({"op": op, "case": case, "extra MB": megabytes})
        keep(request.config, benchmark)

    return run


def keep(config: pytest.Config, benchmark: Any) -> None:
    config.stash[RECORDS].append(dict(benchmark.extra_info))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records = config.stash[RECORDS]
    if records:
        terminalreporter.section("kernels")
        terminalreporter.write_line(tables.kernels(records))
        terminalreporter.section("gates")
        terminalreporter.write_line(tables.gates(gates.judge(records)))
