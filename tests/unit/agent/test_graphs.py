"""How large a graph is, and whether it may leave its process."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import pandas as pd
import pytest

from dask_fleet.agent import graphs
from dask_fleet.agent.graphs import Size


class Handed(Exception):
    """What Dask handed to the scheduler."""


def handed(collection: Any) -> Any:
    def scheduler(dsk: Any, _keys: Any, **_: Any) -> Any:
        raise Handed(dsk)

    with pytest.raises(Handed) as told:
        dask.compute(collection, scheduler=scheduler)
    return told.value.args[0]


def fan(n: int) -> Any:
    return dask.delayed(sum)([dask.delayed(int)(i) for i in range(n)])


def test_the_width_is_that_of_the_widest_level() -> None:
    chain: Any = 0
    for _ in range(5):
        chain = dask.delayed(int)(chain)
    graph = {f"{key}": value for key, value in graphs.as_graph(handed(fan(7))).items()}
    assert graphs.size_of(graph) == Size(8, 7)
    assert graphs.size_of({"a": 1, "b": (int, "a"), "c": (int, "a"), "d": (sum, ["b", "c"])}) == Size(4, 2)
    assert graphs.size_of(graphs.as_graph(handed(chain))).width == 1


def test_up_to_the_limit_it_stays() -> None:
    size, graph = graphs.large(handed(fan(9)), 10)
    assert size is None
    assert len(graph) == 10  # made once: the threaded scheduler takes it as it is
    assert graphs.large(handed(fan(10)), 10)[0] == Size(11, 10)


def test_a_graph_far_beyond_the_limit_is_not_made() -> None:
    expression = handed(da.ones((1000, 1000), chunks=10).sum())
    size, left = graphs.large(expression, 100)
    assert size is not None
    assert size.tasks >= 10_000
    assert size.width >= 10_000
    assert left is expression


def test_what_meets_on_the_disk_of_its_host_stays() -> None:
    frame = dd.from_pandas(pd.DataFrame({"a": range(1000)}), npartitions=100).shuffle("a")
    assert graphs.large(handed(frame), 10)[0] is None
    # What a job returned is optimised again for its cluster, and then shuffled over the network.
    assert graphs.large(handed(frame), 10, again=True)[0] is not None
    bag = db.range(1000, npartitions=100).groupby(lambda x: x % 3)
    assert graphs.large(handed(bag), 10)[0] is None
    assert graphs.large(handed(bag), 10, again=True)[0] is None


def test_what_cannot_be_looked_into_is_counted() -> None:
    class Odd:
        def walk(self) -> Any:
            raise RuntimeError("not today")

        def __dask_graph__(self) -> Any:
            return {"a": 1, "b": (int, "a"), "c": 1}

    assert graphs.large(Odd(), 2)[0] == Size(3, 2)
