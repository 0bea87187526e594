"""One site with two shared processes; what kills or counts makes processes of its own within it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.clusters.site import OnLoop, WorkerProcess, site


@pytest.fixture(scope="session")
def here() -> Iterator[OnLoop]:
    with site() as made:
        yield made


@pytest.fixture(scope="session")
def shared(here: OnLoop) -> list[WorkerProcess]:
    """Two processes with two threads each, that all tests share."""
    return [here.do(here.site.process(2)) for _ in range(2)]
