"""What the SDK decides without a server: retries, errors, events, texts."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pydantic
import pytest

from dask_fleet.client.bars import bar_html, count_text
from dask_fleet.client.options import encode_params
from dask_fleet.client.problems import error_from, retry_after
from dask_fleet.client.rendering import job_html, job_text
from dask_fleet.client.results import NOTHING, checked_decode, decode, inline_value
from dask_fleet.client.retries import RetryPolicy
from dask_fleet.client.schema_text import schema_text
from dask_fleet.client.sse import EventParser
from dask_fleet.model.errors import (
    BadRequest,
    CapacityError,
    InternalError,
    InvalidParameters,
    JobFailed,
    LedgerUnavailable,
    RequestError,
    ResultCorrupt,
    SetupError,
    Unauthorized,
)


def test_waits_double_up_to_a_cap_and_jitter_halves_them_at_most() -> None:
    policy = RetryPolicy(patience_s=100, first_s=0.1, cap_s=1.0)
    delays = [policy.delay(n, elapsed_s=0, retry_after_s=None, jitter=1.0) for n in range(1, 7)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert policy.delay(1, elapsed_s=0, retry_after_s=None, jitter=0.0) == 0.05
    assert policy.delay(10_000, elapsed_s=0, retry_after_s=None, jitter=1.0) == 1.0


def test_patience_is_counted_over_all_tries() -> None:
    policy = RetryPolicy(patience_s=10)
    assert policy.delay(1, elapsed_s=0, retry_after_s=10, jitter=0) == 10
    assert policy.delay(1, elapsed_s=0.1, retry_after_s=10, jitter=0) is None
    assert policy.delay(3, elapsed_s=10, retry_after_s=None, jitter=0) is None


@pytest.mark.parametrize(
    ("status", "document", "cls"),
    [
        (422, {"code": "invalid_parameters"}, InvalidParameters),
        (400, {"code": "bad_request"}, BadRequest),
        (409, {"code": "job_failed"}, JobFailed),
        (503, {"code": "ledger_unavailable"}, LedgerUnavailable),
        (401, {}, Unauthorized),
        (418, {"code": "of_a_newer_server"}, RequestError),
        (500, {"code": "of_a_newer_server"}, InternalError),
        (502, None, CapacityError),
        (200, ["not an object"], InternalError),
    ],
)
def test_a_problem_becomes_the_exception_the_server_had(status: int, document: Any, cls: type) -> None:
    body = b"<html>bad gateway</html>" if document is None else json.dumps(document).encode()
    assert type(error_from(status, {}, body)) is cls


def test_members_of_a_problem_are_kept_and_cannot_clash() -> None:
    body = json.dumps({"code": "queue_full", "detail": "full", "retry_after_s": 3, "instance": "x", "queued": 7}).encode()
    error = error_from(429, {"retry-after": "2"}, body)
    assert error.detail == "full"
    assert error.extra == {"queued": 7}
    assert error.retry_after_s == 2.0


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": format_datetime(datetime(2000, 1, 1, tzinfo=UTC), usegmt=True)}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({}) is None


def test_events_are_parsed_as_the_standard_says() -> None:
    parser = EventParser()
    lines = [": alive", "", "event: started", "id: 4", 'data: {"run": 2,', 'data: "data": {"a": 1}}', "retry: 5", ""]
    lines += ["data: x", ""]
    events = [event for line in lines if (event := parser.feed(line)) is not None]
    (event,) = events
    assert (event.kind, event.event_id, event.run, event.data) == ("started", 4, 2, {"a": 1})


def test_progress_has_its_members_at_the_top() -> None:
    parser = EventParser()
    assert parser.feed("event: progress") is None
    parser.feed('data: {"run": 1, "attempt": 3, "done": 2, "total": 4, "text": "x"}')
    event = parser.feed("")
    assert event is not None
    assert (event.kind, event.event_id, event.attempt) == ("progress", None, 3)
    assert event.data == {"done": 2, "total": 4, "text": "x"}


class Colour(enum.Enum):
    RED = "red"


class Point(pydantic.BaseModel):
    when: date


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (2**53 + 1, "9007199254740993"),
        (Colour.RED, '"red"'),
        (datetime(2030, 1, 1, tzinfo=UTC), '"2030-01-01T00:00:00+00:00"'),
        (Point(when=date(2030, 1, 1)), '{"when":"2030-01-01"}'),
        (Pair(1, date(2030, 1, 1)), '{"left":1,"right":"2030-01-01"}'),
        (timedelta(days=1, seconds=2.5), '"P1DT2.5S"'),
        (-timedelta(seconds=1), '"-P0DT1S"'),
        (np.int64(3), "3"),
        (np.arange(3), "[0,1,2]"),
        ({"b", "a"}, '["a","b"]'),
        ((1, None, True), "[1,null,true]"),
    ],
)
def test_python_values_travel_as_json(value: Any, form: str) -> None:
    assert encode_params({"x": value}) == f'{{"x":{form}}}'.encode()


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="no circles"):
        encode_params({"x": circle})


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "int"),
        ({"type": ["string", "null"]}, "str | None"),
        ({"enum": ["EWR", 1]}, "'EWR' | 1"),
        ({"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]}, "list[float] | None"),
        ({"$ref": "#/$defs/Point"}, "Point"),
        ({"type": "string", "format": "date-time"}, "datetime"),
        ({"const": 3}, "3"),
        ({"$ref": "#/$defs/Loop"}, "Any"),
        ({}, "Any"),
        (True, "Any"),
    ],
)
def test_schemas_read_as_annotations(schema: Any, text: str) -> None:
    definitions = {"Point": {"type": "object", "title": "Point", "properties": {"x": {}}}, "Loop": {"$ref": "#/$defs/Loop"}}
    assert schema_text(schema, {"$defs": definitions}) == text


def test_iso_durations_are_read_back_exactly() -> None:
    adapter = pydantic.TypeAdapter(timedelta)
    for value in (timedelta(days=1, microseconds=1), -timedelta(days=2, seconds=3), timedelta(0)):
        text = json.loads(encode_params({"x": value}))["x"]
        assert adapter.validate_python(text) == value


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ({"result_media_type": "application/json", "result": {"a": [1, 2.5]}, "result_size": 15}, {"a": [1, 2.5]}),
        ({"result_media_type": "application/json", "result": None, "result_size": 4}, None),
        ({"result_media_type": "application/json", "result": None, "result_size": 5_000_000}, NOTHING),
        ({"result_media_type": "application/json", "result": 2**60 + 1, "result_size": 19}, 2**60 + 1),
        ({"result_media_type": "text/plain; charset=utf-8", "result": "x", "result_size": 1}, "x"),
        ({"result_media_type": "application/vnd.apache.arrow.stream", "result": [{"a": 1}], "result_size": 9}, NOTHING),
        ({"result_media_type": None, "result": None, "result_size": None}, NOTHING),
    ],
)
def test_a_small_result_comes_with_the_job(document: dict[str, Any], value: Any) -> None:
    assert inline_value(document) == value


def test_a_tagged_number_becomes_itself_again() -> None:
    document = {"result_media_type": "application/json", "result": [{"$float": "NaN"}, 1.0], "result_size": 26}
    number, one = inline_value(document)
    assert math.isnan(number)
    assert one == 1.0


def test_bytes_that_do_not_match_their_digest_are_refused() -> None:
    digest = hashlib.sha256(b"[1]").hexdigest()
    assert checked_decode("application/json", b"[1]", f'"{digest}"') == [1]
    assert checked_decode("application/json", b"[2]", f'"{digest}-json"') == [2]
    with pytest.raises(ResultCorrupt, match="changed on their way"):
        checked_decode("application/json", b"[2]", f'"{digest}"')


def test_a_result_nobody_here_can_read_says_so() -> None:
    with pytest.raises(SetupError, match="no installed codec reads"):
        decode("application/x-python-pickle", b"cos\nsystem\n")
    with pytest.raises(ResultCorrupt, match="cannot be read as application/json"):
        decode("application/json", b"{")


def test_what_a_job_shows_is_escaped_and_short() -> None:
    document = {
        "job_id": "j1",
        "status": "failed",
        "service": "math",
        "endpoint": "fibonacci",
        "params": {"text": "<script>" + "x" * 1000},
        "error": {"cause": "exception", "message": "<b>no</b>"},
    }
    assert "<script>" not in job_html(document)
    assert "<b>no</b>" not in job_html(document)
    assert len(job_text("Job", document)) < 200
    assert "<i>" not in bar_html("<i>", 1, 2, "<i>")
    assert bar_html("x", 1, 2, "t") == '<div>x <progress value="1" max="2"></progress> 1/2 t</div>'
    assert (count_text(0, None), count_text(2, None), count_text(2.5, 10)) == ("", "2", "2.5/10")
