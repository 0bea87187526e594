import datetime as dt
import decimal
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal, assert_index_equal, assert_series_equal

from dask_fleet.codecs.arrow import KIND_KEY, ArrowCodec
from dask_fleet.codecs.errors import ResultNotSerializable

codec = ArrowCodec()
MANY = 1 << 20

FRAMES = {
    "plain": pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [1.5, np.nan]}),
    "empty": pd.DataFrame({"a": pd.Series([], dtype="int64")}),
    "nothing at all": pd.DataFrame(),
    "named index": pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="key")),
    "two levels": pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["k", None])),
    "times": pd.DataFrame(
        {"t": pd.to_datetime(["2020-01-01", None]), "z": pd.to_datetime(["2020-01-01", "2020-06-01"], utc=True)}
    ),
    "categories": pd.DataFrame({"c": pd.Categorical(["a", "b", None], categories=["b", "a"])}),
    "nullable": pd.DataFrame({"i": pd.array([1, None], dtype="Int64"), "b": pd.array([True, None], dtype="boolean")}),
    "number columns": pd.DataFrame({2013: [1], 2014: [2]}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_come_back_as_they_were(name: str) -> None:
    frame = FRAMES[name]
    assert codec.takes(frame)
    assert_frame_equal(codec.decode(codec.encode(frame)), frame)


@pytest.mark.parametrize("series", [pd.Series([1, 2]), pd.Series([1.5], index=["x"], name="q"), pd.Series(["a"], name=3)])
def test_series_come_back_as_they_were(series: "pd.Series[float]") -> None:
    assert_series_equal(codec.decode(codec.encode(series)), series)


@pytest.mark.parametrize("index", [pd.Index([1, 2]), pd.Index(["a"], name="k"), pd.DatetimeIndex(["2020-01-01"], name="t")])
def test_indexes_come_back_as_they_were(index: "pd.Index[int]") -> None:
    assert_index_equal(codec.decode(codec.encode(index)), index, exact="equiv")


def test_arrow_tables_come_back_as_arrow_tables() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]}, metadata={"source": "here"})
    found = codec.decode(codec.encode(table))
    assert found.equals(table, check_metadata=True)
    assert codec.decode(codec.encode(table.to_batches()[0])).equals(table)


def test_any_reader_of_arrow_can_read_it() -> None:
    with pa.ipc.open_stream(codec.encode(FRAMES["plain"])) as reader:
        assert reader.schema.metadata[KIND_KEY] == b"dataframe"
        assert reader.read_all().column("a").to_pylist() == [1, 2]


def test_whatever_speaks_the_stream_interface_is_a_table() -> None:
    class Quacks:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return pa.table({"a": [1]}).__arrow_c_stream__(requested_schema)

    assert codec.takes(Quacks())
    assert codec.decode(codec.encode(Quacks())).to_pylist() == [{"a": 1}]
    assert not codec.takes({"a": 1})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"a": [1, "x"]}), "column a.*one type"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "Duplicate column names"),
        (pd.DataFrame({"a": [object()]}), "DataFrame has no Arrow form"),
        (pd.MultiIndex.from_tuples([(1, 2)]), "to_frame"),
    ],
)
def test_what_has_no_arrow_form_is_named(frame: object, message: str) -> None:
    with pytest.raises(ResultNotSerializable, match=message):
        codec.encode(frame)


def rendered(value: object) -> object:
    return json.loads(codec.to_json(value, max_bytes=MANY) or b"")


def test_the_rendering_is_a_list_of_records() -> None:
    assert rendered(FRAMES["plain"]) == [{"a": 1, "b": "x", "c": 1.5}, {"a": 2, "b": None, "c": None}]
    assert rendered(FRAMES["empty"]) == []
    assert rendered(FRAMES["nothing at all"]) == []
    assert rendered(FRAMES["named index"]) == [{"key": "x", "a": 1}, {"key": "y", "a": 2}]
    assert list(rendered(FRAMES["two levels"])[0]) == ["k", "index_1", "a"]  # type: ignore[index]
    assert rendered(FRAMES["times"]) == [
        {"t": "2020-01-01T00:00:00", "z": "2020-01-01T00:00:00+00:00"},
        {"t": None, "z": "2020-06-01T00:00:00+00:00"},
    ]
    assert rendered(FRAMES["categories"]) == [{"c": "a"}, {"c": "b"}, {"c": None}]
    assert rendered(FRAMES["number columns"]) == [{"2013": 1, "2014": 2}]
    assert rendered(pd.Series([1.5], index=["x"], name="q")) == [{"index": "x", "q": 1.5}]


def test_the_rendering_of_rarer_types() -> None:
    table = pa.table(
        {
            "decimal": pa.array([decimal.Decimal("1.10")]),
            "bytes": pa.array([b"\xff"]),
            "list": pa.array([[1.0, float("nan"), float("inf")]]),
            "duration": pa.array([dt.timedelta(seconds=1)], pa.duration("ns")),
            "ns": pa.array([1_577_836_800_000_000_001], pa.timestamp("ns")),
            "struct": pa.array([{"a": dt.date(2020, 1, 1)}]),
        }
    )
    assert rendered(table) == [
        {
            "decimal": "1.10",
            "bytes": "/w==",
            "list": [1.0, None, {"$float": "Infinity"}],
            "duration": "PT1S",
            "ns": "2020-01-01T00:00:00.000000001",
            "struct": {"a": "2020-01-01"},
        }
    ]


def test_a_rendering_over_several_pieces_is_whole() -> None:
    table = pa.table({"a": range(45_000)})
    assert rendered(table) == [{"a": number} for number in range(45_000)]


def test_no_rendering_above_the_limit() -> None:
    table = pa.table({"text": ["x" * 100] * 100})
    assert codec.to_json(table, max_bytes=2_000) is None
    assert codec.to_json(table, max_bytes=20_000) is not None
