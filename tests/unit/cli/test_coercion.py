"""name=value on the command line: the schema decides what a text means."""

from __future__ import annotations

from typing import Any

import pytest

from dask_fleet.cli.coercion import coerce, listed_values, parse_assignments
from dask_fleet.model.errors import BadRequest

INT: dict[str, Any] = {"type": "integer"}
ROOT: dict[str, Any] = {"$defs": {"Airport": {"enum": ["EWR", "JFK"]}}}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", INT, 5),
        ("9007199254740993", INT, 9007199254740993),
        ("5.5", INT, "5.5"),  # the server says what is wrong with it
        ("5", {"type": "string"}, "5"),
        ("5", {"type": "number"}, 5),
        ("1e3", {"type": "number"}, 1000.0),
        ("nan", {"type": "number"}, "nan"),
        ("yes", {"type": "boolean"}, True),
        ("off", {"type": "boolean"}, False),
        ("null", {"anyOf": [INT, {"type": "null"}]}, None),
        ("null", {"type": "string"}, "null"),
        ("7", {"anyOf": [{"type": "string"}, INT]}, 7),
        ("JFK", {"anyOf": [{"$ref": "#/$defs/Airport"}, {"type": "null"}]}, "JFK"),
        ("null", {"anyOf": [{"$ref": "#/$defs/Airport"}, {"type": "null"}]}, None),
        ("3", {"enum": ["3", 3]}, "3"),
        ("3", {"enum": [1, 3]}, 3),
        ("true", {"const": True}, True),
        ("[1, 2]", {"type": "array", "items": INT}, [1, 2]),
        ("1,2", {"type": "array", "items": INT}, [1, 2]),
        ("a, b", {"type": "array", "items": {"type": "string"}}, ["a", "b"]),
        ('{"x": 1}', {"type": "object"}, {"x": 1}),
        ("2026-01-01", {"type": "string", "format": "date"}, "2026-01-01"),
        ("5", {}, "5"),
    ],
)
def test_text_becomes_what_the_schema_asks_for(text: str, schema: dict[str, Any], value: Any) -> None:
    found = coerce(text, schema, ROOT)
    assert (found, type(found)) == (value, type(value))


def test_words_become_parameters() -> None:
    schema = {"properties": {"month": INT, "name": {"type": "string"}, "days": {"type": "array", "items": INT}}}
    words = ["month=1", "name=a=b", "days=1", "days=2", 'raw:={"x": [1]}', "unknown=text"]
    assert parse_assignments(words, schema) == {
        "month": 1,
        "name": "a=b",
        "days": [1, 2],
        "raw": {"x": [1]},
        "unknown": "text",
    }


@pytest.mark.parametrize("word", ["month", "=1", ":=1", "x:={"])
def test_a_word_that_is_no_parameter_is_named(word: str) -> None:
    with pytest.raises(BadRequest, match=r"is no parameter|is not JSON"):
        parse_assignments([word], {})


def test_listed_values_are_offered() -> None:
    assert listed_values({"anyOf": [{"$ref": "#/$defs/Airport"}, {"type": "null"}]}, ROOT) == ["EWR", "JFK"]
    assert listed_values({"type": "boolean"}, ROOT) == ["true", "false"]
    assert listed_values(INT, ROOT) == []
