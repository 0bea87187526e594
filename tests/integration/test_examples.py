"""The examples as a user meets them: served by the command of the README, asked over HTTP."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from dask_fleet.testing.served import ServedFleet

EXAMPLES = Path(__file__).parents[2] / "examples"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    targets = [EXAMPLES / name / "service.py" for name in ("flights", "fibonacci")]
    with ServedFleet(targets, tmp_path_factory.mktemp("examples"), args=["--nworkers", "2"]) as fleet:
        yield fleet


def test_a_table_as_json_and_as_arrow(fleet: ServedFleet) -> None:
    answer = fleet.post("flights/delay_by_carrier", {"month": 1, "origin": "JFK"}, wait=30)
    assert answer.status == 200, answer.body
    document = answer.json()
    assert document["status"] == "succeeded"
    stored = fleet.request("GET", f"/v1/jobs/{document['job_id']}/result", headers={"Accept": ARROW})
    assert stored.headers["content-type"].startswith(ARROW)
    table = pa.ipc.open_stream(stored.body).read_all()
    jetblue = next(row for row in table.to_pylist() if row["carrier"] == "B6")
    assert jetblue["airline"] == "JetBlue Airways"
    assert jetblue["mean_delay"] == pytest.approx(8.5383)
    again = fleet.post("flights/delay_by_carrier", {"origin": "JFK", "month": 1})
    assert again.status == 200
    assert again.json()["job_id"] == document["job_id"]
    assert again.json()["attempt"] == 1


def test_a_dataclass_travels_as_json(fleet: ServedFleet) -> None:
    document = fleet.post("flights/busiest_routes", {"n": 1}, wait=30).json()
    assert document["result"] == [
        {"origin": "JFK", "dest": "LAX", "flights": 11262, "miles": 2475, "mean_arrival_delay": -0.48}
    ]


@pytest.mark.parametrize(
    ("endpoint", "params", "rows"),
    [("delay_vs_weather", {"measure": "precip"}, 5), ("monthly_delays", {"carrier": "UA"}, 36)],
)
def test_a_join_and_a_dask_collection(fleet: ServedFleet, endpoint: str, params: dict[str, str], rows: int) -> None:
    document = fleet.post(f"flights/{endpoint}", params, wait=60).json()
    assert document["status"] == "succeeded", document
    stored = fleet.request("GET", f"/v1/jobs/{document['job_id']}/result", headers={"Accept": ARROW})
    assert pa.ipc.open_stream(stored.body).read_all().num_rows == rows


def test_compute_inside_a_function(fleet: ServedFleet) -> None:
    document = fleet.post("flights/delay_quantiles", wait=60).json()
    assert document["status"] == "succeeded", document
    assert document["result"]["50%"] == -2.0


def test_a_plot_is_a_png(fleet: ServedFleet) -> None:
    import matplotlib.image

    document = fleet.post("flights/delay_plot", {"origin": "JFK"}, wait=60).json()
    picture = fleet.request("GET", f"/v1/jobs/{document['job_id']}/result", headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    height, width, _ = matplotlib.image.imread(io.BytesIO(picture.body)).shape
    assert width > height > 200


def test_a_slow_one_reports_progress_and_can_be_cancelled(fleet: ServedFleet) -> None:
    job = fleet.post("flights/delay_difference", {"carrier": "UA", "other": "B6", "samples": 1_000_000}).json()
    progress = fleet.until(lambda: fleet.job(job["job_id"])["progress"], "progress of the bootstrap")
    assert progress["total"] == 1_000_000
    assert progress["text"] == "samples drawn"
    assert fleet.request("DELETE", f"/v1/jobs/{job['job_id']}").status in {200, 202}
    assert fleet.job(job["job_id"], wait=30)["status"] == "cancelled"


def test_wrong_parameters_are_named(fleet: ServedFleet) -> None:
    answer = fleet.post("flights/delay_by_carrier", {"month": 13, "origin": "BOS"})
    assert answer.status == 422
    assert answer.json()["code"] == "invalid_parameters"
    assert "month" in answer.body.decode()
    assert "origin" in answer.body.decode()


def test_fibonacci_is_exact_at_any_size(fleet: ServedFleet) -> None:
    answer = fleet.post("math/fibonacci", {"n": 100_000}, wait=30)
    assert answer.status == 200, answer.body
    result = fleet.request("GET", f"/v1/jobs/{_job_id(answer.body)}/result")
    assert len(result.body.strip()) == 20_899
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        current, following = 0, 1
        for _ in range(100_000):
            current, following = following, current + following
        assert int(result.body) == current
    finally:
        sys.set_int_max_str_digits(limit)


def _job_id(body: bytes) -> str:
    # json.loads would refuse the integer of 20,899 digits that may stand in the document.
    return body.partition(b'"job_id":"')[2][:32].decode()
