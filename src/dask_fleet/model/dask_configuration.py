"""What this package itself reads of Dask's configuration, as a cluster brings it along. Dask is not needed for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dask_fleet.model.durations import parse_bytes

_MEMORY = "distributed.worker.memory."
_PARTS = {_MEMORY + name for name in ("target", "spill", "pause", "terminate")}
_MAX_SPILL = _MEMORY + "max-spill"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with dotted keys, so that setting one value does not replace its whole section.

    >>> flat({"distributed": {"scheduler": {"bandwidth": 1}}, "array.chunk-size": "1MiB"})
    {'distributed.scheduler.bandwidth': 1, 'array.chunk-size': '1MiB'}
    """
    return dict(_flat("", config))


def check_memory(config: Mapping[str, Any]) -> None:
    """Check the thresholds of workers' memory, which Dask takes as they come and then does not understand.

    Raises
    ------
    ValueError
        In words that go behind "config must be".
    """
    for spelt, value in _flat("", config):
        name = spelt.replace("_", "-")  # Dask takes either
        if name in _PARTS and not _is_part(value):
            raise ValueError(
                f"Dask's configuration, in which {name} is a part of the memory limit above 0 and up to 1, such as 0.7, or "
                f"false for never; not {str(value)[:40]!r}"
            )
        if name == _MAX_SPILL and value is not False and not _is_size(value):
            raise ValueError(
                f"Dask's configuration, in which {name} is a size such as '10GiB', or false for no limit; "
                f"not {str(value)[:40]!r}"
            )


def memory_part(config: Mapping[str, Any], name: str) -> float | None:
    """Return a threshold of workers' memory, such as ``terminate``: infinite if it is off, ``None`` if it is not set."""
    value: Any = flat(config).get(_MEMORY + name)
    if not _is_part(value):
        return None
    return float("inf") if value is False else float(value)


def _is_part(value: Any) -> bool:
    return value is False or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1)


def _is_size(value: Any) -> bool:
    try:
        return parse_bytes(int(value) if isinstance(value, float) else value) > 0
    except (ValueError, OverflowError):
        return False


def _flat(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(name, value)
        else:
            yield name, value
