"""How the promises are run: short in ``make test``, with their full numbers in ``make promises``."""

from __future__ import annotations

import os
from collections.abc import Callable

from dask_fleet.testing.served import ServedFleet

FULL = os.environ.get("PROMISES") == "full"

Serve = Callable[..., ServedFleet]
"""Makes a fleet of the tiny service: an honest one, or with ``twin=NAME`` one that is broken in that place."""

Starts = Callable[[], list[str]]
"""Reads the lines that started functions have written."""

Record = Callable[[str, str], None]
"""pytest's ``record_property``: figures are shown at the end of a run."""
