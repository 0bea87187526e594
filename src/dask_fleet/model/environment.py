"""Which variables a cluster may set in its worker processes."""

from __future__ import annotations

import re
from typing import Any

MAX_VARIABLES = 200
MAX_CHARS = 65_536
"""Of all names and values: what a system passes to a program is limited, and this is in each record of a cluster."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
_OURS = ("FLEET_", "WORKER_OF_FLEET")
_TOO_LATE = ("PYTHON", "LD_", "MALLOC_")


def checked_environment(value: Any) -> dict[str, str]:
    """Return the variables, if a worker process can have them.

    Raises
    ------
    TypeError
        If it is no mapping of names to texts.
    ValueError
        If there are too many, or one cannot be set; in words that go behind "must be".
    """
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in (*value, *value.values())):
        raise TypeError("no mapping of names to texts")
    if len(value) > MAX_VARIABLES or sum(map(len, (*value, *value.values()))) > MAX_CHARS:
        raise ValueError(f"at most {MAX_VARIABLES} variables of together {MAX_CHARS} characters")
    for name, text in value.items():
        if not _NAME.match(name) or "\0" in text:
            raise ValueError(f"variables of letters, digits and '_', with values without NUL, which {name[:40]!r} is not")
        if name.startswith(_OURS):
            raise ValueError(f"other variables than {name}: those with {' and '.join(_OURS)} are the fleet's own")
        if name.startswith("DASK_"):
            raise ValueError(f"other variables than {name}, which Dask has read already: give its setting in config instead")
        if name.startswith(_TOO_LATE):
            raise ValueError(f"other variables than {name}, which is read when a process starts: set it for the agent")
    return dict(value)
