"""Problem documents: what a caller is told of an error, and what never."""

from __future__ import annotations

import json
import logging

import pytest

from dask_fleet.model.errors import (
    BodyTooLarge,
    FleetError,
    MethodNotAllowed,
    NotFound,
    QueueFull,
    ResultCorrupt,
    Unauthorized,
    error_classes,
)
from dask_fleet.server.problems import internal_problem, problem_bytes, problem_response, response_for


def test_document_has_the_members_of_rfc_9457_and_ours() -> None:
    document = json.loads(problem_bytes(NotFound("no such job", hint=["a"]), instance="urn:x"))
    assert document == {
        "type": "urn:dask-fleet:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": "no such job",
        "code": "not_found",
        "instance": "urn:x",
        "hint": ["a"],
    }


def test_extra_members_cannot_replace_the_standard_ones() -> None:
    error = NotFound("x")
    error.extra = {"status": 200, "code": "fine", "more": 1}
    document = json.loads(problem_bytes(error))
    assert (document["status"], document["code"], document["more"]) == (404, "not_found", 1)


@pytest.mark.parametrize("error_class", error_classes().values(), ids=lambda cls: cls.code)
def test_every_error_class_becomes_an_answer(error_class: type[FleetError]) -> None:
    response = problem_response(error_class("why"))
    assert response.status_code == error_class.status
    assert 400 <= response.status_code < 600
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert int(response.headers["content-length"]) == len(response.body)


def test_headers_that_go_with_an_error() -> None:
    assert problem_response(QueueFull(retry_after_s=0.2)).headers["retry-after"] == "1"
    assert problem_response(QueueFull(retry_after_s=9.1)).headers["retry-after"] == "10"
    assert problem_response(Unauthorized()).headers["www-authenticate"].startswith("Bearer")
    assert problem_response(MethodNotAllowed(allow=["GET", "HEAD"])).headers["allow"] == "GET, HEAD"
    assert problem_response(BodyTooLarge()).headers["connection"] == "close"
    assert "www-authenticate" not in problem_response(NotFound()).headers


def test_an_extra_that_is_not_json_able_does_not_hide_the_error() -> None:
    assert json.loads(problem_bytes(NotFound("x", odd=object())))["code"] == "not_found"


def test_unexpected_exceptions_leak_nothing_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    error, instance = internal_problem(RuntimeError("password=hunter2"), path="/v1/jobs")
    text = problem_bytes(error, instance=instance).decode()
    assert "hunter2" not in text
    assert "RuntimeError" not in text
    request_id = json.loads(text)["request_id"]
    assert request_id in instance
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])
    assert record.__dict__["request_id"] == request_id


def test_faults_of_ours_are_logged_and_those_of_callers_are_not(caplog: pytest.LogCaptureFixture) -> None:
    assert response_for(ResultCorrupt("bad"), path="/x").status_code == 500
    assert response_for(NotFound("none"), path="/x").status_code == 404
    assert response_for(KeyError("x"), path="/x").status_code == 500
    assert [record.message for record in caplog.records] == [
        "request failed",
        "unexpected exception while answering a request",
    ]
