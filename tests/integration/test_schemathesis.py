"""Schemathesis on the OpenAPI document of a real server: whatever it makes up, the answers are those we describe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from dask_fleet.testing.served import ServedFleet

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 12
"""For each operation and mode: what is made from the schema, and what goes against it."""
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    target = Path(__file__).with_name("service_http.py")
    with ServedFleet([target], tmp_path_factory.mktemp("schemathesis") / "data", args=("--nworkers", "1")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def job_ids(fleet: ServedFleet) -> list[str]:
    """Return jobs in several states, so that pages of jobs are asked for more than what is not there."""
    answers = [
        fleet.post("http/double", {"n": 1}, wait=20),
        fleet.post("http/text", {"letters": "é", "repeat": 200_000}, wait=20),
        fleet.post("http/fails", {}, wait=20),
    ]
    return [answer.json()["job_id"] for answer in answers]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_as_described(fleet: ServedFleet, job_ids: list[str], mode: GenerationMode) -> None:
    sent = {"Authorization": f"Bearer {fleet.token}"}
    schema = schemathesis.openapi.from_url(f"{fleet.url}/openapi.json", headers=sent)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 2 * 6 + 16 + 7
    failures: list[str] = []
    for operation in operations:
        calls = 0

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            nonlocal calls
            if "job_id" in case.path_parameters and calls % 2 == 0:
                case.path_parameters["job_id"] = job_ids[calls // 2 % len(job_ids)]
            calls += 1
            # Waiting for made-up times is tested elsewhere.
            if str(case.query.get("wait", "")).isdigit():
                case.query["wait"] = 0
            case.headers.pop("Prefer", None)
            case.call_and_validate(headers=sent, checks=CHECKS, timeout=TIMEOUT_S)

        try:
            ask()
        except Unsatisfiable:
            # An operation without parameters takes no wrong ones.
            assert mode is GenerationMode.NEGATIVE, operation.label
            assert operation.path in {"/healthz", "/readyz"}
            continue
        except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001 - all operations are to be seen at once
            failures.append(f"{operation.label}: {_told(exc)}")
        assert calls, operation.label
    close_clusters(fleet)
    assert not failures, "\n\n".join(failures)


def close_clusters(fleet: ServedFleet) -> None:
    """Close those that could be had as they were made up: while they have the slot, no job ends, and no stream of one."""
    for cluster in fleet.request("GET", "/v1/clusters").json()["clusters"]:
        closed = fleet.request("DELETE", f"/v1/clusters/{cluster['cluster_id']}", headers={"Prefer": "wait=30"})
        assert closed.status == 200, closed.body


def test_the_server_is_well_after_all_that(fleet: ServedFleet) -> None:
    answer = fleet.post("http/double", {"n": 4}, wait=20)
    assert answer.json()["result"] == 8
    assert "Traceback" not in fleet.logs()


def _told(exc: BaseException) -> str:
    if isinstance(exc, BaseExceptionGroup):
        return "; ".join(_told(inner) for inner in exc.exceptions)
    return f"{type(exc).__name__}: {exc}"
