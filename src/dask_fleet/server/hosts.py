"""For which names this server answers: an allow-list on ``Host``, against DNS rebinding."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from dask_fleet.model.errors import BadRequest, HostNotAllowed

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?\Z")
_MAX_REMEMBERED = 256


class HostCheck:
    """Admits requests whose ``Host`` is a loopback name, one of `allowed_hosts`, or the address dialled, with any port.

    A name may begin with ``*.``, as in certificates: it stands for one label.

    A page of another site can make a browser send requests to a local port under a name that the
    attacker's DNS points there; it cannot choose the ``Host`` header, which is why this header is looked
    at before anything else.
    """

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        self._names = frozenset(_plain(name.encode()) for name in (*LOOPBACK_NAMES, *allowed_hosts))
        # Raw values that passed: the same few come again and again, and a set look-up is all they then
        # cost.
        self._passed: set[bytes] = set()

    def allow(self, names: Iterable[str]) -> None:
        """Admit further names."""
        self._names = self._names.union(_plain(name.encode()) for name in names)

    def check(self, scope: Any) -> bytes:
        """Return the value of the one ``Host`` header of an ASGI scope.

        Raises
        ------
        BadRequest
            If there is none, more than one, or one that is no host.
        HostNotAllowed
            If the name is not on the list.
        """
        value: bytes | None = None
        for name, content in scope["headers"]:
            if name == b"host":
                if value is not None:
                    raise BadRequest("the request has more than one Host header")
                value = content
        if value is None:
            raise BadRequest("the request has no Host header")
        if value not in self._passed:
            self._examine(value, scope)
        return value

    def _examine(self, value: bytes, scope: Any) -> None:
        found = _HOST.match(value)
        if found is None:
            raise BadRequest("the Host header is malformed")
        if not self._admits(_plain(found[1]), scope):
            raise HostNotAllowed(
                f"this server does not answer for the host {found[1].decode('ascii')[:253]!r}; "
                "if it should, add the name to the setting allowed-hosts"
            )
        if len(self._passed) < _MAX_REMEMBERED:
            self._passed.add(value)


    def _admits(self, name: bytes, scope: Any) -> bool:
        if name in self._names or b"*." + name.partition(b".")[2] in self._names:
            return True
        # The very address that the connection came in on: no DNS has led here, so there is nothing to rebind.
        server = scope.get("server")
        return server is not None and name.strip(b"[]") == str(server[0]).encode()


def _plain(name: bytes) -> bytes:
    """Return a name as it is compared: lower case, without the root's dot."""
    return name.lower().removesuffix(b".")
