"""The SDK against a real fleet: values come back as they were returned, and waiting survives what happens to the server."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dask_fleet import AsyncClient, Client, as_completed
from dask_fleet.model.errors import Conflict, InvalidParameters, JobCancelled, JobExpired, JobFailed, NotFound
from dask_fleet.testing.served import ServedFleet

SERVICE = '''
"""What the SDK's tests call."""

import random
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from dask_fleet import Service, cancelled, progress

service = Service("sdk")


@service.endpoint
def table(rows: int = 3) -> pd.DataFrame:
    "A table with a date column."
    return pd.DataFrame({"i": range(rows), "t": pd.date_range("2026-01-01", periods=rows), "s": ["ä"] * rows})


@service.endpoint
def array(n: int) -> np.ndarray:
    return np.arange(n, dtype=">i2").reshape(-1, 2)


@service.endpoint
def value(kind: Literal["nan", "none", "text", "bytes", "large", "big"]):
    return {"nan": [float("nan"), float("-inf")], "none": None, "text": "ä" * 3, "bytes": bytes(range(256)),
            "large": "x" * 1_000_000, "big": 2**100}[kind]


@service.endpoint
def add_days(day: date, by: timedelta = timedelta(days=1)) -> date:
    return day + by


@service.endpoint(pure=False)
def roll() -> int:
    return random.randrange(10**12)


@service.endpoint
def fail(text: str):
    raise LookupError(text)


@service.endpoint(timeout="60s")
def until(path: str, steps: int = 0) -> str:
    "Report progress, then wait until a file appears."
    for step in range(steps):
        progress(step + 1, steps, f"step {step + 1}")
    while not Path(path).exists():
        if cancelled():
            return "cancelled"
        time.sleep(0.01)
    return "there"
'''


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    folder = tmp_path_factory.mktemp("sdk")
    (folder / "sdk_service.py").write_text(SERVICE)
    with ServedFleet([folder / "sdk_service.py"], folder / "data", args=["--nworkers", "2"]) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Client]:
    monkeypatch.chdir(tmp_path)
    with Client(fleet.url, fleet.token) as client:
        yield client


def test_a_table_comes_back_as_the_same_table(client: Client) -> None:
    expected = pd.DataFrame({"i": range(3), "t": pd.date_range("2026-01-01", periods=3), "s": ["ä"] * 3})
    pd.testing.assert_frame_equal(client.sdk.table().result(60), expected)
    large = client.sdk.table(rows=50_000)
    frame = large.result(60)
    assert len(frame) == 50_000
    assert frame["t"].iloc[-1] == pd.Timestamp("2026-01-01") + pd.Timedelta(days=49_999)
    assert large.document["result_size"] > 256 << 10, "this went through the result store"


def test_other_values_come_back_as_they_were(client: Client, tmp_path: Path) -> None:
    array = client.sdk.array(6).result(60)
    np.testing.assert_array_equal(array, np.arange(6).reshape(-1, 2))
    assert array.dtype == np.dtype(">i2")
    number, infinity = client.sdk.value("nan").result(60)
    assert math.isnan(number)
    assert infinity == -math.inf
    assert client.sdk.value("none").result(60) is None
    assert client.sdk.value("text").result(60) == "äää"
    assert client.sdk.value("bytes").result(60) == bytes(range(256))
    assert client.sdk.value("big").result(60) == 2**100
    large = client.sdk.value("large")
    assert large.result(60) == "x" * 1_000_000
    assert large.save(tmp_path / "large.txt") == 1_000_000
    assert large.read("application/json") == b'"' + b"x" * 1_000_000 + b'"'


def test_python_values_are_understood_as_parameters(client: Client) -> None:
    assert client.sdk.add_days(date(2026, 1, 31)).result(60) == "2026-02-01"
    assert client.sdk.add_days(pd.Timestamp("2026-01-31").date(), by=pd.Timedelta(days=2)).result(60) == "2026-02-02"


def test_equal_calls_are_one_job_and_calls_that_are_not_pure_are_not(client: Client) -> None:
    assert client.sdk.array(2).job_id == client.submit("sdk", "array", {"n": 2}).job_id
    rolls = client.gather([client.sdk.roll(), client.sdk.roll()])
    assert rolls[0] != rolls[1]
    again = client.submit("sdk", "roll", idempotency_key="one")
    assert again.result(60) == client.submit("sdk", "roll", idempotency_key="one").result(60)


def test_a_failure_arrives_with_its_traceback(client: Client) -> None:
    job = client.sdk.fail("<b>no</b>")
    with pytest.raises(JobFailed, match="LookupError: <b>no</b>") as caught:
        job.result(60)
    assert "raise LookupError(text)" in "".join(caught.value.__notes__)
    assert [attempt["status"] for attempt in job.attempts()] == ["failed"]
    job.retry()
    assert job.wait(60) == "failed"
    assert job.document["run"] == 2
    done = client.sdk.array(2)
    done.wait(60)
    with pytest.raises(Conflict):
        done.retry()


def test_refusals_name_what_is_wrong(client: Client) -> None:
    with pytest.raises(InvalidParameters) as caught:
        client.sdk.table(rows="many")
    assert "rows" in str(caught.value.extra["errors"])
    with pytest.raises(InvalidParameters):
        client.sdk.table(colums=3)
    with pytest.raises(NotFound):
        client.job("a" * 32)
    with pytest.raises(AttributeError, match="Did you mean 'table'"):
        client.sdk.tabel  # noqa: B018


def test_progress_and_events_are_seen_as_they_happen(client: Client, tmp_path: Path) -> None:
    job = client.sdk.until(str(tmp_path / "go"), steps=3)
    kinds = []
    for event in job.events():
        kinds.append(event.kind)
        if event.kind == "progress" and event.data["done"] == 3:
            assert event.data["text"] == "step 3"
            job.refresh_status()
            assert job.progress == {"done": 3, "total": 3, "text": "step 3"}
            (tmp_path / "go").touch()
    assert kinds[0] == "accepted"
    assert kinds[-1] == "succeeded"
    assert "progress" in kinds
    assert job.result(60) == "there"
    assert [event.kind for event in job.events()] == ["accepted", "started", "succeeded"]


def test_a_running_job_is_cancelled_and_a_waiting_one_expires(client: Client, tmp_path: Path) -> None:
    running = client.map(client.sdk.until.options(tags="cancel-me"), [str(tmp_path / name) for name in ("a", "b")])
    late = client.sdk.until.options(deadline=0.2)(str(tmp_path / "c"))  # both workers are taken
    assert late.wait(20) == "expired", [client.status(), *(job.refresh_status() for job in running)]
    with pytest.raises(JobExpired):
        late.result()
    assert {job.job_id for job in client.jobs(tag="cancel-me")} == {job.job_id for job in running}
    for job in running:
        job.cancel()
    for job in as_completed(running):
        with pytest.raises(JobCancelled):
            job.result(60)


def test_many_calls_come_back_in_order(client: Client) -> None:
    jobs = client.map("sdk.array", range(2, 202, 2))
    arrays = client.gather(jobs)
    assert [array.size for array in arrays] == list(range(2, 202, 2))
    assert len(list(client.jobs(endpoint="sdk.array", limit=1000))) >= 100


def test_the_asynchronous_client(fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    async def story() -> None:
        async with AsyncClient(fleet.url, fleet.token) as client:
            frame = await (await client.sdk.table(rows=2))
            assert len(frame) == 2
            jobs = await client.map(client.sdk.array, [2, 4])
            assert [job.job_id async for job in as_completed(jobs)]
            assert (await client.status())["agents"]

    asyncio.run(story())


def test_waiting_goes_on_over_a_restart_of_the_server(client: Client, fleet: ServedFleet, tmp_path: Path) -> None:
    job = client.sdk.until(str(tmp_path / "go"))
    fleet.until(lambda: job.refresh_status() == "running", "the job to run")
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(job.result(60)), name="waiter")
    waiter.start()
    fleet.kill9()
    fleet.restart()
    (tmp_path / "go").touch()
    waiter.join(60)
    assert got == ["there"]
    assert [attempt["status"] for attempt in job.attempts()] == ["succeeded"], "the agent went on with it"


def test_a_server_in_this_folder_is_found_without_any_setting(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("FLEET_URL", "FLEET_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".fleet").symlink_to(fleet.data_dir)
    with Client() as client:
        assert client.url == fleet.url
        assert client.sdk.array(2).result(60).shape == (1, 2)
