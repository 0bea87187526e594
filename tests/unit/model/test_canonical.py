import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_fleet.model.canonical import canonical_bytes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=15,
)


def shuffled(value: object) -> object:
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    if isinstance(value, list):
        return [shuffled(item) for item in value]
    return value


@settings(deadline=None)
@given(json_values)
def test_order_of_names_does_not_matter_and_nothing_is_lost(value: object) -> None:
    data = canonical_bytes(value)
    assert canonical_bytes(shuffled(value)) == data
    assert json.loads(data) == value
    assert canonical_bytes(json.loads(data)) == data


def test_spelling() -> None:
    value = {"b": [1, 1.5, True, None], "é": 'ü\n"\\/', "a": {"z": 1e16, "Z": -0.5}}
    assert canonical_bytes(value) == '{"a":{"Z":-0.5,"z":1e+16},"b":[1,1.5,true,null],"é":"ü\\n\\"\\\\/"}'.encode()


def test_names_are_ordered_by_code_point_not_by_utf_16() -> None:
    assert canonical_bytes({"\U00010000": 1, "\uffff": 2}) == b'{"\xef\xbf\xbf":2,"\xf0\x90\x80\x80":1}'


def test_neighbouring_integers_beyond_a_double_differ() -> None:
    assert canonical_bytes(2**53) != canonical_bytes(2**53 + 1)
    assert canonical_bytes(10**999) == b"1" + b"0" * 999


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], "\ud800", {"a": "\udfff"}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_bytes(value)


def test_what_is_no_json_value_is_refused() -> None:
    with pytest.raises(TypeError):
        canonical_bytes({"a": {1, 2}})
