import io
import json

import numpy as np
import pytest

from dask_fleet.codecs.errors import ResultNotSerializable
from dask_fleet.codecs.npy import NPYCodec

codec = NPYCodec()

ARRAYS = {
    "integers": np.arange(6).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(5.5),
    "empty": np.zeros((0, 3)),
    "text": np.array(["a", "éé"]),
    "bytes": np.array([b"a", b"bb"]),
    "times": np.array(["2020-01-01", "NaT"], dtype="M8[s]"),
    "durations": np.array([90, 1], dtype="m8[s]"),
    "complex": np.array([[1 + 2j]]),
    "records": np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "strided": np.arange(10)[::3],
    "big endian": np.array([1, 2], dtype=">i8"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_as_they_were(name: str) -> None:
    array = ARRAYS[name]
    assert codec.takes(array)
    found = codec.decode(codec.encode(array))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("integers", [[0, 1, 2], [3, 4, 5]]),
        ("scalar", 5.5),
        ("empty", []),
        ("bytes", ["a", "bb"]),
        ("times", ["2020-01-01T00:00:00", None]),
        ("durations", [90.0, 1.0]),
        ("complex", [[[1.0, 2.0]]]),
        ("records", [[1, 2.5]]),
    ],
)
def test_renderings(name: str, lists: object) -> None:
    assert json.loads(codec.to_json(ARRAYS[name], max_bytes=1000) or b"") == lists


def test_nan_is_rendered_with_its_tag() -> None:
    assert codec.to_json(np.array([np.nan, 1]), max_bytes=100) == b'[{"$float":"NaN"},1.0]'


def test_a_large_array_is_not_even_looked_at_for_a_rendering() -> None:
    assert codec.to_json(np.broadcast_to(np.float64(0), (10**6, 10**6)), max_bytes=1000) is None


def test_objects_and_masks_are_refused() -> None:
    with pytest.raises(ResultNotSerializable, match=r"dtype object holds Python objects \(such as int\)"):
        codec.encode(np.array([1, "a"], dtype=object))
    with pytest.raises(ResultNotSerializable, match="holds Python objects"):
        codec.encode(np.array([(1, "a")], dtype=[("a", "i4"), ("b", "O")]))
    with pytest.raises(ResultNotSerializable, match="mask"):
        codec.encode(np.ma.masked_array([1, 2], mask=[True, False]))


def test_a_pickle_is_never_read() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        codec.decode(buffer.getvalue())
