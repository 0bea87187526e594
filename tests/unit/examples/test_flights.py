"""The flights example as plain functions, without Fleet; figures checked against counts made another way."""

from __future__ import annotations

import csv
import io
import runpy
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "flights" / "service.py"


@pytest.fixture(scope="module")
def flights() -> Any:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE)))


@pytest.fixture(scope="module")
def rows(flights: Any) -> list[dict[str, str]]:
    """January's flights, read with the standard library alone."""
    with zipfile.ZipFile(flights._data("flights.csv.zip")) as archive, archive.open("flights.csv") as file:
        return [row for row in csv.DictReader(io.TextIOWrapper(file, "utf-8")) if row["month"] == "1"]


def test_all_flights_are_there(flights: Any) -> None:
    assert len(flights.flights()) == 336_776
    assert flights.flights() is flights.flights()


def test_delay_by_carrier(flights: Any, rows: list[dict[str, str]]) -> None:
    table = flights.delay_by_carrier(month=1, origin="JFK").set_index("carrier")
    theirs = [row["dep_delay"] for row in rows if (row["origin"], row["carrier"]) == ("JFK", "B6")]
    delays = [float(delay) for delay in theirs if delay != "NA"]
    scheduled = len(theirs)
    jetblue = table.loc["B6"]
    assert jetblue["airline"] == "JetBlue Airways"
    assert jetblue["flights"] == scheduled
    assert jetblue["mean_delay"] == pytest.approx(sum(delays) / len(delays), abs=1e-4)
    assert jetblue["late"] == pytest.approx(sum(delay >= 15 for delay in delays) / len(delays), abs=1e-4)
    assert jetblue["cancelled"] == pytest.approx(1 - len(delays) / scheduled, abs=1e-4)
    assert flights.delay_by_carrier(month=1)["flights"].sum() == len(rows)


def test_busiest_routes(flights: Any, rows: list[dict[str, str]]) -> None:
    counted = Counter((row["origin"], row["dest"]) for row in rows)
    best = flights.busiest_routes(n=5, month=1)
    assert [route.flights for route in best] == [count for _, count in counted.most_common(5)]
    assert all(counted[route.origin, route.dest] == route.flights for route in best)
    everything = flights.busiest_routes(n=224)
    assert sum(route.flights for route in everything) == 336_776
    # The one flight from Newark to LaGuardia was cancelled.
    assert [route.mean_arrival_delay for route in everything if route.dest == "LGA"] == [None]


def test_rain_and_wind_delay(flights: Any) -> None:
    rain = flights.delay_vs_weather("precip")
    assert rain.loc[0, "highest"] == 0
    assert (rain["mean_delay"].iloc[1:] > 2 * rain.loc[0, "mean_delay"]).all()
    wind = flights.delay_vs_weather("wind_speed", "LGA", bins=4)
    assert len(wind) == 4
    assert wind["lowest"].is_monotonic_increasing
    assert (wind["highest"].iloc[:-1].to_numpy() < wind["lowest"].iloc[1:].to_numpy()).all()


def test_monthly_delays_is_a_dask_collection(flights: Any) -> None:
    lazy = flights.monthly_delays(carrier="UA")
    assert lazy.__dask_graph__()
    table = lazy.compute(scheduler="synchronous").set_index(["origin", "month"])
    united = flights.flights().query("carrier == 'UA' and origin == 'EWR' and month == 3")["dep_delay"]
    assert len(table) == 36
    assert table.loc[("EWR", 3), "mean"] == pytest.approx(united.mean())
    assert table.loc[("EWR", 3), "std"] == pytest.approx(united.std())
    assert table.loc[("EWR", 3), "count"] == united.count()


def test_delay_quantiles(flights: Any) -> None:
    quantiles = flights.delay_quantiles("EWR")
    delays = flights.flights().query("origin == 'EWR'")["dep_delay"].dropna()
    for name, value in quantiles.items():
        assert value == delays.quantile(float(name.rstrip("%")) / 100, interpolation="higher")


def test_delay_plot(flights: Any) -> None:
    figure = flights.delay_plot("LGA")
    target = io.BytesIO()
    figure.savefig(target, format="png")
    assert target.getvalue().startswith(b"\x89PNG")
    assert "LGA" in figure.axes[0].get_title()


def test_delay_difference_is_repeatable_and_covers_the_estimate(flights: Any) -> None:
    answer = flights.delay_difference("UA", "AA", month=1, samples=300, seed=7)
    assert answer == flights.delay_difference("UA", "AA", month=1, samples=300, seed=7)
    assert answer["low"] < answer["difference"] < answer["high"]
    swapped = flights.delay_difference("AA", "UA", month=1, samples=300, seed=7)
    assert swapped["difference"] == -answer["difference"]
    with pytest.raises(ValueError, match="carriers are 9E, AA"):
        flights.delay_difference("ZZ", "AA")
