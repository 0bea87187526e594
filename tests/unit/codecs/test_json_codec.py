import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel

from dask_fleet.codecs.errors import ResultNotSerializable
from dask_fleet.codecs.json import JSONCodec

codec = JSONCodec()


def through(value: object) -> object:
    return codec.decode(codec.encode(value))


names = st.text(max_size=4) | st.sampled_from(["$", "$float", "$bytes"])
results = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(7**5_000),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(names, children, max_size=3),
    max_leaves=20,
)


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@settings(deadline=None)
@given(results)
def test_what_is_stored_comes_back_the_same(value: object) -> None:
    data = codec.encode(value)
    assert same(codec.decode(data), value)
    assert codec.encode(value) == data, "encoding must not change the value"
    json.loads(data, parse_int=float, parse_constant=pytest.fail)  # JSON for everybody: no NaN in it


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: float
    tags: tuple[str, ...] = ()


class Model(BaseModel):
    mean: float = Field(serialization_alias="average")
    when: dt.date


class Names(RootModel[list[str]]):
    pass


class Record(NamedTuple):
    a: int
    b: float


class Struct(msgspec.Struct):
    a: int


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (Record(1, math.nan), [1, {"$float": "NaN"}]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ({Colour.RED: 1}, {"red": 1}),
        ({2013: 1, -5: 2}, {"2013": 1, "-5": 2}),
        ({dt.date(2013, 1, 1): 1}, {"2013-01-01": 1}),
        ({np.int64(7): 1}, {"7": 1}),
        (Point(math.inf, ("a",)), {"x": {"$float": "Infinity"}, "tags": ["a"]}),
        (Model(mean=math.nan, when=dt.date(2020, 1, 2)), {"average": {"$float": "NaN"}, "when": "2020-01-02"}),
        (Names(["a"]), ["a"]),
        ([Model(mean=1, when=dt.date(2020, 1, 2))], [{"average": 1.0, "when": "2020-01-02"}]),
        (Struct(1), {"a": 1}),
        (dt.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC), "2020-01-02T03:04:05.000006+00:00"),
        (dt.timedelta(hours=1, microseconds=1), "PT3600.000001S"),
        (dt.timedelta(seconds=-90), "-PT90S"),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PurePosixPath("/a/b"), "/a/b"),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.deque([1]), [1]),
        (np.float32(1.5), 1.5),
        (np.float64("nan"), {"$float": "NaN"}),
        (np.int8(-1), -1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.datetime64("2020-01-02"), "2020-01-02"),
        (np.datetime64("NaT"), None),
        ({"a": np.array([[1.0, np.nan]])}, {"a": [[1.0, {"$float": "NaN"}]]}),
        ([pd.NaT, pd.NA, pd.Timestamp("2020-01-02")], [None, None, "2020-01-02T00:00:00"]),
        ({"$float": "NaN"}, {"$": {"$float": "NaN"}}),
        ({"$float": "NaN", "b": 1}, {"$float": "NaN", "b": 1}),
    ],
)
def test_forms(value: object, stored: object) -> None:
    assert json.loads(codec.encode(value)) == stored


def test_whole_numbers_of_any_size_are_exact() -> None:
    number = 3**70_000  # 33,399 digits: Python itself refuses to write it
    found = through({"small": 5, "large": [number, -number], "text": "5"})
    assert found == {"small": 5, "large": [number, -number], "text": "5"}


def cycle() -> list[object]:
    found: list[object] = []
    found.append({"again": found})
    return found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((number for number in [1]), r"^generator cannot be kept as a result: return list"),
        ({1, 2}, r"^set .*sorted"),
        ({"a": [0, {"b": object()}]}, r"^object at \['a'\]\[1\]\['b'\] cannot .* an endpoint can return JSON values"),
        (cycle(), "holds itself"),
        (lambda: 1, "^function .*return what it gives"),
        ({"a": b"x"}, r"^bytes at \['a'\] .*base64"),
        ({"t": pd.DataFrame({"a": [1]})}, r"^pandas.*DataFrame at \['t'\].*return the table alone"),
        ({(1, 2): 3}, "a key of the dict is a tuple"),
        ({1.5: 3}, "a key of the dict is a float"),
        ({None: 3}, "a key of the dict is a NoneType"),
        ({1: "a", "1": "b"}, "the same text"),
        (["\ud800"], "surrogate"),
        (1j, "^complex .*real and imaginary"),
        (json, "^module cannot"),
        (int, "^type cannot"),
        ([10**100_001], "100,000 digits"),
    ],
)
def test_what_cannot_be_kept_is_named(value: object, message: str) -> None:
    with pytest.raises(ResultNotSerializable, match=message):
        codec.encode(value)


def test_json_is_the_stored_form() -> None:
    assert codec.to_json({"a": 1}, max_bytes=1000) is None
