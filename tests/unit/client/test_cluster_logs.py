"""``dask-fleet clusters logs`` of clusters in every state: what there is, and why there is no more."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from tests.unit.client.cluster_server import Remote, until

from dask_fleet import FleetCluster
from dask_fleet.cli.main import main
from dask_fleet.client.cluster_questions import Questions
from dask_fleet.client.cluster_shown import NO_ANSWER


@pytest.fixture
def told(server: Remote, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the command prints on both streams, and its exit code."""
    monkeypatch.setenv("FLEET_URL", server.url)
    monkeypatch.setenv("FLEET_TOKEN", server.options["token"])

    def run(*args: str) -> tuple[str, str, int]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["clusters", *args])
        said = capsys.readouterr()
        return said.out, said.err, int(ended.value.code or 0)

    return run


def test_of_one_that_runs(server: Remote, told: Any) -> None:
    with FleetCluster(n_workers=1, name="runs", quiet=True, **server.options):
        out, err, code = told("logs", "runs")
        assert code == 0, err
        assert "--- Cluster\nnow opened" in out
        assert "--- Scheduler\n" in out
        assert "--- tls://" in out


def test_of_one_that_waits(server: Remote, told: Any) -> None:
    server.set(hold=True)
    made: list[FleetCluster] = []
    taking = threading.Thread(
        target=lambda: made.append(FleetCluster(n_workers=0, name="waits", quiet=True, **server.options))
    )
    taking.start()
    until(lambda: "waits" in server.state()["clusters"], "it to be asked for")
    out, err, code = told("logs", "waits", "--timeout", "200ms")
    assert code == 1
    assert out == "--- Cluster\nnow 1 opened agent a\n"
    assert "cluster waits is pending and waits for free slots in the pool 'default'" in err
    assert "wait for longer with --timeout" in err
    out, err, code = told("logs", "waits", "--timeout", "0s", "--json")
    assert (code, json.loads(out), json.loads(err)["code"]) == (1, {"Cluster": "now 1 opened agent a"}, "wait_timeout")
    server.set(hold=False)
    taking.join()
    with made[0]:
        assert told("logs", "waits")[2] == 0


def test_of_one_that_has_ended(server: Remote, told: Any) -> None:
    FleetCluster(n_workers=0, name="ended", shutdown_on_close=False, quiet=True, **server.options).close()
    server.end("ended", "idle for 20 min")
    out, err, code = told("logs", "ended")
    assert code == 1
    assert "opened" in out
    assert "cluster ended is closed (idle for 20 min), and the logs of scheduler and workers ended with it" in err
    assert "dask-fleet clusters create" in err
    _, err, code = told("logs", "nobody")
    assert code == 1
    assert "no such cluster" in err


def test_of_one_whose_scheduler_is_silent(server: Remote, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(_: Questions, question: Any) -> None:
        question.close()
        await asyncio.Event().wait()

    with FleetCluster(n_workers=0, name="silent", quiet=True, **server.options):
        monkeypatch.setattr(Questions, "ask", ask)
        out, err, code = told("logs", "silent", "--timeout", "100ms")
    assert code == 1
    assert "opened" in out
    assert f"--- Scheduler\n{NO_ANSWER}" in out
    assert "the scheduler of cluster silent does not answer" in err


def test_a_time_out_of_a_cluster_does_not_say_that_it_goes_on(server: Remote, told: Any) -> None:
    server.set(hold=True)
    out, err, code = told("create", "never", "--timeout", "100ms")
    assert (out, code) == ("", 1)
    assert "is given back; it waited for free slots in the pool 'default'" in err
    assert "it goes on" not in err
    assert server.state()["clusters"]["never"]["status"] == "closed"
