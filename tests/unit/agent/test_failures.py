"""Exceptions as bounded text."""

from __future__ import annotations

from dask_fleet.agent.failures import of_exception, of_invalid_parameters
from dask_fleet.model.errors import InvalidParameters
from dask_fleet.model.failure import MAX_MESSAGE_CHARS, MAX_TRACEBACK_CHARS, Cause
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import Outcome, encode_prefixed


def caught(raiser: object) -> BaseException:
    try:
        raiser()  # type: ignore[operator]
    except BaseException as exc:  # noqa: BLE001
        return exc
    raise AssertionError


def test_type_message_and_chain() -> None:
    def raiser() -> None:
        try:
            {}["month"]
        except KeyError as exc:
            raise ValueError("no such month") from exc

    failure = of_exception(caught(raiser))
    assert (failure.cause, failure.type, failure.message) == (Cause.EXCEPTION, "ValueError", "no such month")
    assert "KeyError" in failure.traceback


def test_an_exception_whose_str_raises() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    def raiser() -> None:
        raise Hostile

    failure = of_exception(caught(raiser))
    assert "Hostile" in failure.message
    assert failure.type.endswith("Hostile")


def test_texts_are_bounded() -> None:
    def raiser(depth: int = 0) -> None:
        raise ValueError("x" * 10_000_000)

    failure = of_exception(caught(raiser))
    assert len(failure.message) <= MAX_MESSAGE_CHARS + 1
    assert len(failure.traceback) <= MAX_TRACEBACK_CHARS + 1


def test_endless_recursion_is_told() -> None:
    def raiser() -> None:
        raiser()

    assert of_exception(caught(raiser)).type == "RecursionError"


def test_text_that_is_no_utf_8_can_still_be_sent() -> None:
    def raiser() -> None:
        raise FileNotFoundError(2, "No such file", "caf\udce9.csv")

    refused = InvalidParameters("no \udce9", errors=[{"loc": ["a"], "msg": "no \udce9", "type": "value_error"}])
    for failure in (of_exception(caught(raiser)), of_invalid_parameters(refused)):
        assert encode_prefixed(Outcome(1, 1, 1, AttemptState.FAILED, "w", 1, failure=failure))
        assert "\\udce9" in failure.message
