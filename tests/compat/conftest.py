"""One cluster for all programs of a test process; each program gets a client of its own and must leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from distributed import Client
from tests.compat.take import LOCAL, WORKERS, Served, local_cluster, served


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers need not find the programs: they travel by value, as those of a notebook do."""
    for item in items:
        module = sys.modules.get(getattr(getattr(item, "module", None), "__name__", ""))
        if module is not None and module.__name__.startswith("tests.compat."):
            cloudpickle.register_pickle_by_value(module)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if LOCAL:
        pytest.skip("about a fleet")
    with served(tmp_path_factory.mktemp("compat") / "data") as made:
        yield made


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    if LOCAL:
        with local_cluster() as made:
            yield made
    else:
        with request.getfixturevalue("fleet").cluster() as made:
            yield made


@pytest.fixture
def client(cluster: Any) -> Iterator[Client]:
    with Client(cluster) as made:
        made.wait_for_workers(WORKERS, timeout=60)
        yield made
