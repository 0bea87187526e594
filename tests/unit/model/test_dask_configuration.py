"""What is read of Dask's configuration without Dask."""

from __future__ import annotations

import pytest

from dask_fleet.model.dask_configuration import check_memory, flat, memory_part


@pytest.mark.parametrize(
    ("nested", "expected"),
    [
        ({}, {}),
        ({"a.b": 1}, {"a.b": 1}),
        ({"a": {"b": {"c": 1}, "d": [1]}, "e": {}}, {"a.b.c": 1, "a.d": [1], "e": {}}),
    ],
)
def test_a_nested_configuration_becomes_flat(nested: dict[str, object], expected: dict[str, object]) -> None:
    assert flat(nested) == expected


@pytest.mark.parametrize("name", ["target", "spill", "pause", "terminate"])
def test_thresholds_of_memory(name: str) -> None:
    for value in (False, 1, 0.7, 1e-9):
        check_memory({"distributed.worker": {"memory": {name: value}}})
        check_memory({f"distributed.worker.memory.{name}": value})
    for wrong in (True, None, 0, 0.0, -0.5, 1.5, 95, "0.7", "lots", "2GiB", [0.7], {}, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"memory.{name} is a part .* such as 0.7, or false"):
            check_memory({"distributed": {"worker.memory": {name: wrong}}})


def test_the_size_of_what_is_spilt() -> None:
    for value in (False, 1, "10GiB", 1e10):
        check_memory({"distributed.worker.memory.max-spill": value})
    for wrong in (True, 0, "", "much", -1, None, 1e400):
        with pytest.raises(ValueError, match="max-spill is a size such as"):
            check_memory({"distributed.worker.memory": {"max_spill": wrong}})


def test_where_a_worker_is_ended() -> None:
    assert memory_part({"distributed": {"worker.memory.terminate": 0.9}}, "terminate") == 0.9
    assert memory_part({"distributed.worker.memory.terminate": False}, "terminate") == float("inf")
    assert memory_part({"distributed.worker.memory.spill": 0.9}, "terminate") is None
