"""Errors on the command line: each with the command that helps, and no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dask_fleet.cli.failures import told
from dask_fleet.client.problems import error_from
from dask_fleet.model.errors import Conflict, FleetError, NotFound


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (NotFound("no such job"), "jobs list"),
        (NotFound("no such cluster"), "clusters list"),
        (NotFound("no such token; `dask-fleet tokens list` shows them"), ""),
        (NotFound("the server has no service 'x'; there is: flights."), ""),
        (Conflict("the job succeeded; POST its request with ?refresh=true", job_status="succeeded"), "--refresh"),
        (Conflict("a cluster named 'team' is there already: take another name"), ""),
    ],
)
def test_the_cure_is_of_what_went_wrong(error: FleetError, cure: str) -> None:
    _, told_cure = told(error)
    assert (cure in told_cure) if cure else not told_cure


def test_a_refused_token_is_one_line_and_a_cure() -> None:
    problem = b'{"code": "unauthorized", "status": 401, "detail": "send the header; the folder holds the token"}'
    what, cure = told(error_from(401, {"content-type": "application/problem+json"}, problem))
    assert (what, cure[:15]) == ("send the header; the folder holds the token.", "Set FLEET_TOKEN")


def test_the_package_runs_as_a_module() -> None:
    asked = [sys.executable, "-m", "dask_fleet", "--version"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout[:11]) == (0, "dask-fleet ")
