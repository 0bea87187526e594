"""What a cluster's configuration says about memory to the agent, which ends processes instead of Dask's nanny."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_TERMINATE = "distributed.worker.memory.terminate"
_NEVER = 1e9


class Thresholds(msgspec.Struct, frozen=True):
    """Parts of the memory limit. Spilling and pausing are Dask's own to do; only the end is the agent's."""

    terminate: float | None = None
    """Where the process is ended; ``None`` leaves it to the agent, an absurdly large one never does."""

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Thresholds:
        """Read them from a cluster's Dask configuration, nested or with dotted keys; what makes no sense is not set."""
        value = _look_up(config, _TERMINATE)
        if value is False:
            return cls(_NEVER)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
            return cls(float(value))
        return cls()


def _look_up(config: Mapping[str, object], name: str) -> object:
    """Return what `name` is in there, however it is nested."""
    if name in config:
        return config[name]
    for end in range(len(name)):
        if name[end] == "." and isinstance(section := config.get(name[:end]), Mapping):
            return _look_up(section, name[end + 1 :])
    return None
