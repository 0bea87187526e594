"""Named resources as text."""

from __future__ import annotations

import pytest

from dask_fleet.config.resources import parse_resources, resources_text


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ("", {}), ("GPU=2", {"GPU": 2.0}), ("GPU=2 licence=0.5", {"GPU": 2.0, "licence": 0.5}),
        ("GPU=2, a.b-c=1e3,", {"GPU": 2.0, "a.b-c": 1000.0}), ({"GPU": 1}, {"GPU": 1.0}),
    ],
)  # fmt: skip
def test_what_can_be_written(given: object, there: dict[str, float]) -> None:
    assert parse_resources(given) == there
    assert parse_resources(resources_text(there)) == there


@pytest.mark.parametrize(
    "given", ["GPU", "GPU=", "GPU=x", "GPU=0", "GPU=-1", "GPU=inf", "GPU=nan", "=1", "GPU=1 GPU=2", 5, None, {"GPU": True}]
)
def test_what_cannot(given: object) -> None:
    with pytest.raises(ValueError, match="GPU=2"):
        parse_resources(given)
