"""The base of all frames."""

from __future__ import annotations

import msgspec


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """A message between two of our processes: an array whose first element names it."""
