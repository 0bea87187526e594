"""Arrays, dataframes, bags and delayed functions."""

from __future__ import annotations

import operator
from pathlib import Path

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client, wait


def test_matrix_product(client: Client) -> None:
    x = da.arange(160_000, chunks=20_000).reshape(400, 400).rechunk((100, 100)).astype("f8")
    found = client.compute(x @ x.T).result()
    expected = np.arange(160_000, dtype="f8").reshape(400, 400)
    np.testing.assert_allclose(found, expected @ expected.T)


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_rechunk(client: Client, method: str) -> None:
    with dask.config.set({"array.rechunk.method": method}):
        x = da.arange(10_000, chunks=500).reshape(100, 100).rechunk((100, 10)).rechunk((10, 100)).rechunk((7, 100))
        np.testing.assert_array_equal(client.compute(x).result(), np.arange(10_000).reshape(100, 100))


def test_reductions(client: Client) -> None:
    x = da.arange(100_000, chunks=5_000)
    running = (x % 7).astype("i8").cumsum(axis=0)
    found = client.gather(client.compute([x.sum(), x.mean(), x.std(), x.max(), x.argmin(), running[-1]]))
    plain = np.arange(100_000)
    assert found[0] == plain.sum()
    assert found[1] == plain.mean()
    assert found[2] == pytest.approx(plain.std())
    assert found[3:] == [99_999, 0, (plain % 7).sum()]


def test_array_without_a_word_of_the_client(client: Client) -> None:
    assert client.asynchronous is False
    assert da.ones((1000, 1000), chunks=250).sum().compute() == 1_000_000.0
    (total,) = dask.compute(da.ones(10, chunks=2).sum())
    assert total == 10


def test_overlap_linalg_and_random(client: Client) -> None:
    steps = da.arange(1000, chunks=100).map_overlap(lambda block: np.gradient(block), depth=1, boundary="none", dtype="f8")
    np.testing.assert_array_equal(client.compute(steps).result(), np.ones(1000))
    q, r = da.linalg.qr(da.random.default_rng(7).random((400, 20), chunks=(100, 20)))
    q, r = client.gather(client.compute([q, r]))
    np.testing.assert_allclose(q.T @ q, np.eye(20), atol=1e-12)
    assert r.shape == (20, 20)


def frame() -> pd.DataFrame:
    n = np.arange(4_000)
    return pd.DataFrame({"key": n % 50, "value": n.astype("f8"), "name": pd.array([f"n{i % 7}" for i in n], "string")})


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_shuffle(client: Client, method: str) -> None:
    with dask.config.set({"dataframe.shuffle.method": method}):
        shuffled = dd.from_pandas(frame(), npartitions=6).shuffle("key", npartitions=5)
        parts = client.gather(client.compute([part.key.unique() for part in shuffled.partitions]))
        together = client.compute(shuffled).result()
    seen = [key for part in parts for key in part]
    assert sorted(seen) == list(range(50)), "each key is in one partition"
    pd.testing.assert_frame_equal(together.sort_values("value").reset_index(drop=True), frame())


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_merge_groupby_and_set_index(client: Client, method: str) -> None:
    left, right = frame(), pd.DataFrame({"key": np.arange(50), "weight": np.arange(50.0) / 2})
    with dask.config.set({"dataframe.shuffle.method": method}):
        weighted = dd.from_pandas(right, npartitions=3)
        merged = dd.from_pandas(left, npartitions=6).merge(weighted, on="key", shuffle_method=method)
        weights = client.compute(merged.groupby("name").weight.sum()).result()
        ordered = client.compute(dd.from_pandas(left, npartitions=6).set_index("key", shuffle_method=method)).result()
    expected = left.merge(right, on="key").groupby("name").weight.sum()
    pd.testing.assert_series_equal(weights.sort_index(), expected.sort_index(), check_index_type=False, check_names=False)
    assert list(ordered.index) == sorted(left.key)


def test_dataframe_statistics(client: Client) -> None:
    told = client.compute(dd.from_pandas(frame(), npartitions=6)[["key", "value"]].describe()).result()
    assert told.loc["count", "value"] == 4_000
    assert told.loc["max", "key"] == 49
    means = dd.from_pandas(frame(), npartitions=6).groupby("key").value.mean().compute()
    pd.testing.assert_series_equal(means.sort_index(), frame().groupby("key").value.mean())


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # of dask
def test_parquet_there_and_back(client: Client, tmp_path: Path) -> None:
    dd.from_pandas(frame(), npartitions=4).to_parquet(str(tmp_path))
    assert client.compute(dd.read_parquet(str(tmp_path)).value.sum()).result() == frame().value.sum()


def test_bag(client: Client) -> None:
    words = db.from_sequence(["a", "b", "a", "c"] * 25, npartitions=5)
    assert dict(client.compute(words.frequencies()).result()) == {"a": 50, "b": 25, "c": 25}
    assert words.foldby(lambda word: word, lambda n, _: n + 1, 0, operator.add, 0).compute(scheduler=client) == [
        ("a", 50), ("b", 25), ("c", 25)
    ]  # fmt: skip
    numbers = db.range(100, npartitions=7).map(lambda n: n * n).filter(lambda n: n % 2 == 0)
    assert numbers.sum().compute() == sum(n * n for n in range(0, 100, 2))


def test_bag_groupby(client: Client) -> None:
    grouped = db.range(60, npartitions=4).groupby(lambda n: n % 3, shuffle="tasks").map(lambda pair: (pair[0], sum(pair[1])))
    assert sorted(client.compute(grouped).result()) == [(rest, sum(range(rest, 60, 3))) for rest in range(3)]


def test_delayed(client: Client) -> None:
    double = dask.delayed(lambda n: 2 * n)
    parts = [double(n) for n in range(20)]
    assert client.compute(dask.delayed(sum)(parts)).result() == 380
    tree = parts
    while len(tree) > 1:
        tree = [dask.delayed(sum)(tree[n : n + 2]) for n in range(0, len(tree), 2)]
    assert tree[0].compute() == 380


def test_persist(client: Client) -> None:
    kept = client.persist(da.arange(1_000, chunks=100) + 1)
    wait(kept)
    assert all(where for where in client.who_has(kept).values())
    assert int(kept.sum().compute()) == sum(range(1, 1_001))
    bag = db.range(10, npartitions=2).persist()
    assert bag.sum().compute() == 45
    (frame_kept,) = dask.persist(dd.from_pandas(frame(), npartitions=3))
    assert len(frame_kept) == 4_000


def test_nested_compute(client: Client) -> None:
    def nested(n: int) -> int:
        return int(da.arange(n, chunks=max(1, n // 3)).sum().compute())

    assert client.gather(client.map(nested, range(3, 15), pure=False)) == [n * (n - 1) // 2 for n in range(3, 15)]


def test_a_wide_and_a_deep_graph(client: Client) -> None:
    assert client.submit(sum, client.map(lambda n: n + 1, range(1_000))).result() == 500_500
    value = dask.delayed(0)
    for _ in range(100):
        value = dask.delayed(operator.add)(value, 1)
    assert client.compute(value).result() == 100
