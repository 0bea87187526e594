"""Exceptions as bounded text."""

from __future__ import annotations

from dask_fleet.agent.failures import of_exception
from dask_fleet.model.failure import MAX_MESSAGE_CHARS, MAX_TRACEBACK_CHARS, Cause


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
