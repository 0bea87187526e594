"""The one shape of every table that says which state an event leads to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TypeVar

from dask_fleet.model.errors import InvalidTransition

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class Transitions(Mapping[tuple[S, E], S]):
    """From a state and an event to the state after it. What is not in the table cannot happen.

    Parameters
    ----------
    noun
        What has the states, for messages: ``run``, ``cluster``.
    table
        All that can happen. It is copied: a table never changes.
    """

    __slots__ = ("_noun", "_table")

    def __init__(self, noun: str, table: Mapping[tuple[S, E], S]) -> None:
        self._noun = noun
        self._table = dict(table)

    def next(self, state: S, event: E) -> S:
        """Return the state after `event`.

        Raises
        ------
        InvalidTransition
            If the table has no such transition.
        """
        try:
            return self._table[state, event]
        except KeyError:
            raise InvalidTransition(f"a {state} {self._noun} cannot take the event {event!s}") from None

    def __getitem__(self, transition: tuple[S, E]) -> S:
        return self._table[transition]

    def __iter__(self) -> Iterator[tuple[S, E]]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
