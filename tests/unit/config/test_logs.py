"""Logs: structured, on standard error, without tokens."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from dask_fleet.observability import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, ours = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = root.level, ours.level
    yield io.StringIO()
    for handler in [handler for handler in root.handlers if handler.get_name() == logs.ROOT]:
        root.removeHandler(handler)
    root.setLevel(before[0])
    ours.setLevel(before[1])


def test_json_lines_carry_ids_and_no_tokens(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream=stream)
    log = logging.getLogger("dask_fleet.x")
    log.debug("not shown")
    try:
        raise ValueError("Authorization: Bearer abc.def")
    except ValueError:
        log.exception("sent %s", "Bearer abc.def", extra={"action": "send", "job_id": "j1", "link": "/in?code=abc.def&x=1"})
    line = json.loads(stream.getvalue())
    assert line["action"] == "send"
    assert line["job_id"] == "j1"
    assert line["level"] == "error"
    assert line["message"] == "sent Bearer [redacted]"
    assert line["link"] == "/in?code=[redacted]&x=1"
    assert "abc.def" not in stream.getvalue()
    assert "ValueError" in line["exception"]


def test_our_own_tokens_are_known_anywhere() -> None:
    token = "fleet_" + "aB-_" * 10 + "abc"
    assert logs.redact(f"read {token} from the file") == "read [redacted] from the file"
    assert logs.redact("fleet_id is no token") == "fleet_id is no token"


def test_a_text_line_cannot_be_forged(stream: io.StringIO) -> None:
    logs.configure("debug", "text", stream=stream)
    logging.getLogger("dask_fleet.x").debug("a\nb", extra={"user": "eve\nERROR forged", "n": 1})
    (line,) = stream.getvalue().splitlines()
    assert "a\\nb" in line
    assert line.endswith('user="eve\\nERROR forged" n=1')


def test_configuring_again_replaces_and_other_libraries_stay_quiet(stream: io.StringIO) -> None:
    logs.configure("debug", "text", stream=io.StringIO())
    logs.configure("debug", "text", stream=stream)
    logging.getLogger("elsewhere").info("chatter")
    logging.getLogger("dask_fleet").info("once")
    assert stream.getvalue().count("once") == 1
    assert "chatter" not in stream.getvalue()
