"""The Fibonacci example as a plain function."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "fibonacci" / "service.py"


@pytest.fixture(scope="module")
def fibonacci() -> Callable[[int], int]:
    function: Callable[[int], int] = runpy.run_path(str(EXAMPLE))["fibonacci"]
    return function


def test_the_recurrence(fibonacci: Callable[[int], int]) -> None:
    current, following = 0, 1
    for n in range(600):
        assert fibonacci(n) == current
        current, following = following, current + following


def test_a_large_one_by_cassini(fibonacci: Callable[[int], int]) -> None:
    """F(n-1) F(n+1) - F(n)² = (-1)ⁿ: holds for the exact numbers only."""
    for n in (99_998, 99_999):
        assert fibonacci(n - 1) * fibonacci(n + 1) - fibonacci(n) ** 2 == (-1) ** n
