"""One stand-in for the server's clusters, for all tests of a test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.client.cluster_server import PLAN, Remote, standing_in


@pytest.fixture(scope="session")
def standing() -> Iterator[Remote]:
    with standing_in() as remote:
        yield remote


@pytest.fixture
def server(standing: Remote) -> Iterator[Remote]:
    standing.set(**PLAN)
    yield standing
    standing.set(**PLAN)
    for name, known in standing.state()["clusters"].items():
        if known["status"] != "closed":
            standing.end(name, "the test is over")
