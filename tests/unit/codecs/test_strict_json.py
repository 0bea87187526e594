"""Scenario 21: bodies made to hurt. Each is refused with a clear message, quickly, and the process lives."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.promises.form import FULL, Record

from dask_fleet.codecs.strict_json import MAX_DEPTH, MAX_NAMES, MAX_NODES, loads
from dask_fleet.model.errors import BadJSON

MIB = 1 << 20

HOSTILE: dict[str, tuple[bytes, str]] = {
    # not JSON at all
    "empty": (b"", "empty"),
    "only white space": (b" \t\r\n", "empty"),
    "a word": (b"hello", "byte 0"),
    "truncated object": (b'{"a": 1', "byte 7"),
    "truncated text": (b'{"a": "', "malformed JSON at byte 6"),
    "truncated literal": (b"tru", "byte 0"),
    "truncated escape": (b'"\\u12', "byte"),
    "trailing comma in object": (b'{"a":1,}', "byte 7"),
    "trailing comma in array": (b"[1,]", "byte 3"),
    "two values": (b'{"a":1}{"a":1}', "byte 7"),
    "single quotes": (b"{'a':1}", "byte 1"),
    "name without quotes": (b"{a:1}", "byte 1"),
    "number as name": (b"{1:1}", "byte 1"),
    "comment": (b'{"a":1 /* no */}', "byte"),
    "capital literal": (b"True", "byte 0"),
    "form feed as space": (b"\x0c{}", "byte 0"),
    "no-break space": ("\u00a0{}".encode(), "byte 0"),
    "vertical tab after": (b"{}\x0b", "byte 2"),
    "unclosed array": (b"[", "byte 1"),
    "closed too often": (b"[]]", "byte 2"),
    "wrong bracket": (b"[}", "byte 1"),
    "colon missing": (b'{"a" 1}', "byte"),
    "form data": (b"a=1&b=2", "byte 0"),
    "unknown escape": (b'"\\x41"', "byte"),
    # numbers
    "NaN": (b'{"x": NaN}', "NaN is not JSON"),
    "Infinity": (b"[Infinity]", "Infinity is not JSON"),
    "-Infinity": (b"[-Infinity]", "-Infinity is not JSON"),
    "1e400": (b"[1e400]", "too large"),
    "-1e400": (b"[-1E+400]", "too large"),
    "400 digits and a point": (b"9" * 400 + b".0", "too large"),
    "1e9999999999": (b"1e9999999999", "too large"),
    "leading zero": (b"[01]", "byte 2"),
    "leading plus": (b"[+1]", "byte 1"),
    "hexadecimal": (b"[0x10]", "byte 2"),
    "point without digits": (b"[1.]", "byte 2"),
    "no digit before the point": (b"[.5]", "byte 1"),
    "exponent without digits": (b"[1e]", "byte 2"),
    "minus alone": (b"[-]", "byte 1"),
    "5,000 digits": (b"[" + b"9" * 5_000 + b"]", "more than 1000 digits"),
    "a million digits": (b"9" * MIB, "more than 1000 digits"),
    "a million digits behind the point": (b"0." + b"9" * MIB, "more than 1000 characters"),
    "arabic digits": ("[\u0661]".encode(), "byte 1"),
    # names
    "duplicate name": (b'{"a":1,"a":2}', "'a' is given twice"),
    "duplicate by escape": (b'{"a":1,"\\u0061":2}', "'a' is given twice"),
    "duplicate deep inside": (b'[{"x":{"b":1,"c":2,"b":1}}]', "'b' is given twice"),
    "duplicate with half a pair": (b'{"\\ud800":1,"\\ud800":2}', "twice"),
    # text
    "lone high surrogate": (b'"\\ud800"', "byte 1 holds .ud800, half of a surrogate pair"),
    "lone low surrogate": (b'"\\uDC00"', "half"),
    "pair the wrong way round": (b'"\\udc00\\ud800"', "half"),
    "half before an escape": (b'"\\ud83d\\u0041"', "half"),
    "half in a name": (b'{"\\ud800":1}', "half"),
    "half behind a pair": (b'"\\ud83d\\ude00\\ud83d"', "half"),
    "half behind a backslash": (b'"\\\\\\ud800"', "half"),
    "surrogate as raw UTF-8": (b'"\xed\xa0\x80"', "not UTF-8: see byte 1"),
    "NUL raw": (b'"a\x00b"', "byte"),
    "NUL escaped": (b'{"a":"\\u0000"}', "NUL"),
    "NUL escaped in a name": (b'{"\\u0000":1}', "NUL"),
    "NUL after": (b"{}\x00", "byte 2"),
    "newline in text": (b'"a\nb"', "byte"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "not UTF-8"),
    "UTF-16 without mark": ('{"a":1}'.encode("utf-16-le"), "byte"),
    "UTF-32": ('{"a":1}'.encode("utf-32-be"), "byte"),
    "latin-1": ('"é"'.encode("latin-1"), "not UTF-8: see byte 1"),
    "overlong slash": (b'"\xc0\xaf"', "not UTF-8"),
    "beyond unicode": (b'"\xf4\x90\x80\x80"', "not UTF-8"),
    "cut in a character": ('"é'.encode()[:-1], "not UTF-8"),
    # size
    "65 deep": (b"[" * 65 + b"]" * 65, "more than 64 deep"),
    "65 objects deep": (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 deep"),
    "100,000 arrays deep": (b"[" * 100_000 + b"]" * 100_000, "more than 64 deep"),
    "99,000 deep, unclosed": (b"[" * 99_000, "more than 64 deep"),
    "deep behind text with brackets": (b'["]]]]\\"]]",' + b"[" * 70 + b"]" * 71, "more than 64 deep"),
    "deep then a million closings": (b"[" * 70 + b"]" * (MIB - 70), "more than 64 deep"),
    "a million openings": (b"[" * MIB, "more than 100,000 values"),
    "a million objects deep": (b'{"a":' * (MIB // 5), "more than 100,000 values"),
    "100,001 numbers": (b"[" + b"1," * 99_999 + b"1]", "more than 100,000 values"),
    "100,001 texts": (b"[" + b'",",' * 99_999 + b'""]', "more than 100,000 values"),
    "half a million empty arrays": (b"[" + b"[]," * (MIB // 3 - 1) + b"[]]", "more than 100,000 values"),
    "75,000 names": (b"{" + b",".join(b'"%x":0' % n for n in range(75_000)) + b"}", "more than 50,000 members"),
    "a million colons": (b":" * MIB, "more than 50,000 members"),
    "a million quotes": (b'"' * MIB, "byte|more than"),
    "a million commas": (b"," * MIB, "byte|more than"),
    "a million backslashes": (b"\\" * MIB, "byte"),
    "a megabyte of space": (b" " * MIB, "empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_quickly(name: str) -> None:
    body, message = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(BadJSON, match=message) as caught:
        loads(body)
    # The wide margin only tells linear from quadratic: 50 ms of a calm machine are looked for below.
    assert time.process_time() - started < 0.5
    assert len(caught.value.detail) < 400
    caught.value.detail.encode("utf-8")


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"{}", {}),
        (b" \r\n\t{ } \n", {}),
        (b'{"n": 5}', {"n": 5}),
        (b'"\\ud83d\\ude00 \\u00e9"', "\U0001f600 é"),
        (b'"\\\\u0000 \\\\ud800"', "\\u0000 \\ud800"),
        ('"\u2028\ufffd"'.encode(), "\u2028\ufffd"),
        (b"9007199254740993", 9007199254740993),
        (b"1" * 1000, int("1" * 1000)),
        (b"1e308", 1e308),
        (b"1e-400", 0.0),
        (b"[" * 64 + b"]" * 64, None),
        (b'{"a":"' + b"[" * 500 + b'"}', {"a": "[" * 500}),
        (b'{"a":"' + b"," * 200_000 + b'"}', {"a": "," * 200_000}),
        (b'"' + b'\\"[' * 1000 + b'"', '"[' * 1000),
    ],
)
def test_fair_bodies_are_read(body: bytes, value: object) -> None:
    found = loads(body)
    assert found == value or value is None
    assert type(found) is type(value) or value is None


def test_colons_in_texts_are_no_members() -> None:
    assert loads(b'["' + b":" * MAX_NAMES + b'",{"a":":"}]') == [":" * MAX_NAMES, {"a": ":"}]
    most = b"{" + b",".join(b'"%x":0' % n for n in range(MAX_NAMES)) + b"}"
    assert len(loads(most)) == MAX_NAMES
    with pytest.raises(BadJSON, match="more than 50,000 members"):
        loads(most[:-1] + b',"":0}')


def test_the_number_of_values_is_counted_exactly() -> None:
    assert len(loads(b"[" + b"1," * (MAX_NODES - 2) + b"1]")) == MAX_NODES - 1
    with pytest.raises(BadJSON):
        loads(b"[" + b"1," * (MAX_NODES - 1) + b"1]")
    assert len(loads(b"[" + b"[ ]," * (MAX_NODES - 2) + b"{\n}]")) == MAX_NODES - 1
    with pytest.raises(BadJSON):
        loads(b"[" + b"[ ]," * (MAX_NODES - 1) + b"{\n}]")


def test_limits_can_be_narrower() -> None:
    assert loads(b"[[1,2]]", max_depth=2, max_nodes=4) == [[1, 2]]
    with pytest.raises(BadJSON, match="2 deep"):
        loads(b"[[[1]]]", max_depth=2)
    with pytest.raises(BadJSON, match="3 values"):
        loads(b"[[1,2]]", max_nodes=3)


def test_minus_zero_is_zero() -> None:
    assert math.copysign(1, loads(b"-0.0")) == 1
    assert math.copysign(1, loads(b"[-0e5]")[0]) == 1
    assert loads(b"-0") == 0


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def nodes(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(nodes, inner))


texts = st.text(alphabet=st.sampled_from('[]{},:"\\ aé\U0001f600\n'), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda children: st.lists(children, max_size=5) | st.dictionaries(texts, children, max_size=5),
    max_leaves=30,
)


@settings(deadline=None)
@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_whatever_python_writes_is_read_the_same(value: object, ascii_only: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert loads(body) == value


@settings(deadline=None)
@given(values)
def test_depth_and_number_of_values_are_measured_exactly(value: object) -> None:
    body = json.dumps(value).encode()
    deep, many = depth(value), nodes(value)
    assert loads(body, max_depth=max(deep, 1), max_nodes=many) == value
    if deep > 1:
        with pytest.raises(BadJSON, match="deep"):
            loads(body, max_depth=deep - 1)
    if many > 1:
        with pytest.raises(BadJSON, match="values"):
            loads(body, max_nodes=many - 1)


tokens = st.lists(
    st.sampled_from(
        [
            b"[",
            b"]",
            b"{",
            b"}",
            b",",
            b":",
            b'"',
            b"\\",
            b"\\u",
            b"d800",
            b"0000",
            b"1",
            b"1e400",
            b"NaN",
            b" ",
            b'"a":',
            b"\x00",
            b"\xff",
            b"true",
            b"-",
            b".",
            b"e",
        ]
    ),
    max_size=60,
).map(b"".join)


@pytest.mark.slow
def test_every_hostile_body_is_refused_within_50_ms(record_property: Record) -> None:
    took_s: dict[str, float] = {}
    for name, (body, _) in HOSTILE.items():
        tries = []
        for _ in range(5):  # the best of them: the others had company
            started = time.process_time()
            with pytest.raises(BadJSON):
                loads(body)
            tries.append(time.process_time() - started)
        took_s[name] = min(tries)
    slowest = max(took_s, key=lambda name: took_s[name])
    record_property("figures", f"{len(HOSTILE)} bodies, the slowest {took_s[slowest] * 1e3:.1f} ms: {slowest}")
    assert took_s[slowest] < 0.05


@pytest.mark.promise
@settings(max_examples=10_000 if FULL else 300, deadline=None)
@given(tokens | st.binary(max_size=80))
def test_any_bytes_give_a_json_value_or_bad_json(body: bytes) -> None:
    try:
        value = loads(body)
    except BadJSON:
        return
    assert depth(value) <= MAX_DEPTH
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    assert json.loads(body) == value
