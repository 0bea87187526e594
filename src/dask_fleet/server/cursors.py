"""Cursors of listings: opaque to callers, and good only for the listing that gave them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from dask_fleet.model.errors import NotFound
from dask_fleet.model.jobs import JobFilter

_TAG_BYTES = 12
_CURSOR_CHARS = 27
"""Twenty bytes in URL-safe base64, without padding."""


class Cursors:
    """Makes and reads the cursors of one ledger.

    A cursor is a position and a keyed hash over position and filter. So one that was mistyped, comes from another
    ledger or is used with other filters is refused instead of quietly listing something else.
    """

    def __init__(self, ledger_id: str) -> None:
        self._key = hashlib.sha256(b"dask-fleet cursor\0" + ledger_id.encode()).digest()

    def make(self, before_seq: int, where: JobFilter) -> str:
        """Return the cursor of the page that begins before `before_seq`."""
        position = before_seq.to_bytes(8, "big")
        return base64.urlsafe_b64encode(position + self._tag(position, where)).rstrip(b"=").decode("ascii")

    def read(self, cursor: str, where: JobFilter) -> int:
        """Return where the page begins.

        Raises
        ------
        NotFound
            If the cursor was not made here for this filter.
        """
        try:
            if len(cursor) != _CURSOR_CHARS:
                raise ValueError(cursor)
            data = base64.b64decode(cursor.encode("ascii") + b"=", altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise _unknown() from None
        position, tag = data[:8], data[8:]
        if not hmac.compare_digest(tag, self._tag(position, where)):
            raise _unknown()
        return int.from_bytes(position, "big")

    def _tag(self, position: bytes, where: JobFilter) -> bytes:
        message = position + msgspec.json.encode(where)
        return hmac.digest(self._key, message, "sha256")[:_TAG_BYTES]


def _unknown() -> NotFound:
    return NotFound("no such cursor: use next_cursor as it was given, with the same filters, or begin without one")
