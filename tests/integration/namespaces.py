"""Two hosts in one machine: network namespaces with a wire between them that can be cut, each direction by itself."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()
_NOBODY = "02:00:00:00:00:66"
"""An Ethernet address that nobody has: what is sent there is dropped without a word, as by a firewall."""


class Side:
    """One of the two hosts."""

    def __init__(self, name: str, address: str, device: str) -> None:
        self.name = name
        self.address = address
        self.device = device
        self.prefix = ("ip", "netns", "exec", name)
        """Before a command, to run it on this host."""
        self._to = ""
        self._ethernet = ""

    def wire_to(self, other: Side) -> None:
        self._to = other.address
        self._ethernet = _ip("-n", other.name, "-br", "link", "show", "dev", other.device).split()[2]

    def cut(self) -> None:
        """Drop all that this side sends to the other from now on."""
        self._neighbour(_NOBODY)

    def heal(self) -> None:
        """Let it through again."""
        self._neighbour(self._ethernet)

    def _neighbour(self, ethernet: str) -> None:
        _ip("-n", self.name, "neigh", "replace", self._to, "lladdr", ethernet, "dev", self.device, "nud", "permanent")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread, and the processes it starts, be on this host: their new sockets are."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(path: str) -> None:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(descriptor, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {path}")
            finally:
                os.close(descriptor)

        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(f"/run/netns/{self.name}")
            try:
                yield
            finally:
                enter(f"/proc/self/fd/{before}")
        finally:
            os.close(before)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Side, Side]]:
    """Two hosts with a wire; each pair is a world of its own, so several tests may have one at a time.

    Raises
    ------
    OSError
        If that cannot be had here; says why.
    """
    if shutil.which("ip") is None:
        raise OSError("the program `ip` (package iproute2) is not there")
    if os.geteuid() != 0:
        raise OSError("only root can make network namespaces")
    tag = f"{os.getpid() % 100_000}-{next(_numbers)}"
    left, right = Side(f"fleet-a{tag}", "10.231.77.1", "wire-a"), Side(f"fleet-b{tag}", "10.231.77.2", "wire-b")
    made: list[str] = []
    try:
        for side in (left, right):
            _ip("netns", "add", side.name)
            made.append(side.name)
            _ip("-n", side.name, "link", "set", "lo", "up")
        _ip("-n", left.name, "link", "add", left.device, "type", "veth", "peer", right.device, "netns", right.name)
        for side in (left, right):
            _ip("-n", side.name, "address", "add", f"{side.address}/24", "dev", side.device)
            _ip("-n", side.name, "link", "set", side.device, "up")
        for side, other in ((left, right), (right, left)):
            side.wire_to(other)
            side.heal()
        yield left, right
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=20)
            assert not Path("/run/netns", name).exists()


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
