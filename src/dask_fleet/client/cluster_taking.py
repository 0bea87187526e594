"""Takes a cluster from a server, or a place in one that there is: blocking steps, and what undoes them."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from distributed.versions import VersionMismatchWarning, get_versions

from dask_fleet.client import embedded
from dask_fleet.client.cluster_key import ClusterKey
from dask_fleet.client.control import ControlLink, link_to
from dask_fleet.config.settings import Settings
from dask_fleet.model.errors import ClusterFailed, FleetError, NotFound, RequestError, WaitTimeout

TELL_AFTER_S = 1
"""Who waits longer than that is told for what."""
POLL_S = 10
ABANDON_S = 5.0
"""How long to try to give back what nobody wants any more."""
ENDED = frozenset({"closing", "closed", "failed"})


class GivenUp(RuntimeError):
    """Nobody wants the cluster any more that is being taken."""


class Taken:
    """A cluster of a server, as its client knows it: asked for by `take`, given back by `give_back`.

    Whoever waits for a `take` in a thread may give it up at any moment, and the thread goes on: so `give_back` undoes what
    has been done by then, and `take` whatever it does afterwards. Of each thing that is had, the lock says which of them has
    it to undo.

    Parameters
    ----------
    settings
        The server; ``None`` for an embedded fleet.
    body
        What is asked for.
    join
        Name of the cluster that is to be joined, instead of taking one.
    """

    def __init__(self, settings: Settings | None, body: dict[str, Any], *, join: str | None = None) -> None:
        self.document: dict[str, Any] = {}
        """What the server said last."""
        self.body = body
        self._settings = settings
        self._join = join
        self._link: ControlLink | None = None
        self._fleet: embedded.EmbeddedFleet | None = None
        self._request_key = uuid.uuid4().hex
        self._may_exist = False
        self._lock = threading.Lock()
        self._undoing = threading.Lock()
        self._given_up = False
        self._pid = os.getpid()
        self.key: ClusterKey | None = None
        self.shutdown_on_close = False
        """Whether it is to end with the object that took it."""

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was taken here, and not in a process that this one was forked from."""
        return os.getpid() == self._pid

    def take(self, timeout_s: float | None, tell: Callable[[str], None]) -> None:
        """Ask for the cluster, and wait until it runs.

        Parameters
        ----------
        timeout_s
            How long to wait; ``None`` for ever.
        tell
            Called with what it waits for, if that takes more than `TELL_AFTER_S`.

        Raises
        ------
        FleetError
            What the server answered, `ClusterFailed` or `WaitTimeout`; see `FleetCluster`.
        """
        try:
            self._take(timeout_s, tell)
        finally:
            if self._given_up:
                self.give_back()

    def give_back(self) -> None:
        """Let nothing run of what `take` has asked for, whether it has been answered or not. Does not raise.

        A `take` that is under way in another thread ends with `GivenUp`, at its next step.
        """
        with self._lock:
            self._given_up = True
        with self._undoing:
            try:
                if not self._may_exist:
                    return
                if "cluster_id" not in self.document:  # the answer did not come: the same request finds what it has made
                    self.document = self.link.request(
                        "POST",
                        "/v1/clusters",
                        self.body,
                        headers={"Idempotency-Key": self._request_key},
                        patience_s=ABANDON_S,
                    )
                self.close()
                self._may_exist = False
            except (FleetError, OSError):
                return  # the server is away; what nobody uses is closed after the idle time-out
            finally:
                self.let_go()

    # ------------------------------------------------------------------ once it is there

    @property
    def link(self) -> ControlLink:
        """The way to the server.

        Raises
        ------
        RuntimeError
            If nothing was taken yet, or by another process.
        """
        if not self.is_of_this_process:
            raise RuntimeError("the cluster was taken by the process that this one was forked from; join it by its name")
        if self._link is None:
            raise RuntimeError("the cluster is not started: await it, or use it in a with statement")
        return self._link

    @property
    def path(self) -> str:
        """The cluster's page."""
        return f"/v1/clusters/{quote(self.document['cluster_id'], safe='')}"

    @property
    def why(self) -> str:
        """Why it has ended, or lost its scheduler."""
        return str(self.document.get("reason") or "no reason is known")

    def look(self, wait_s: int = 0, *, workers: bool = False, patience_s: float = ABANDON_S) -> None:
        """Ask how it is; wait until it runs (with `workers`: and they have joined) or has ended, at most `wait_s`."""
        query = f"?wait={wait_s}{'&workers=true' if workers else ''}" if wait_s else ""
        self._learn(self.link.request("GET", self.path + query, wait_s=wait_s, patience_s=patience_s))

    def scale(self, n_workers: int, leave: Iterable[str] = ()) -> None:
        """Ask for another number of workers; those that are named leave first."""
        names = sorted(leave)
        self._learn(
            self.link.request("PATCH", self.path, {"n_workers": n_workers, **({"leave": names} if names else {})})
        )

    def sign(self, *, joining: bool = False) -> None:
        """Have our certificate signed; ``document["certificate"]`` is it.

        Who is `joining` is refused (`VersionMismatch`) where Dask would fail between here and there. Who is renewing is in
        already, whatever the server runs by now.
        """
        assert self.key is not None
        asked = {"csr": self.key.csr, **({"versions": versions_here()} if joining else {})}
        self._learn(self.link.request("POST", f"{self.path}/certificate", asked))

    def story(self) -> list[dict[str, Any]]:
        """Return what has happened to it, oldest first."""
        return list(self.link.request("GET", f"{self.path}/events")["events"])

    def close(self) -> None:
        """Close it; one that is not there is closed."""
        with contextlib.suppress(NotFound):
            self.link.request("DELETE", self.path, patience_s=ABANDON_S)

    def let_go(self) -> None:
        """Have no use for its server any more. Twice is harmless."""
        with self._lock:
            fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.let_go()

    # ------------------------------------------------------------------ steps

    def _take(self, timeout_s: float | None, tell: Callable[[str], None]) -> None:
        if self._settings is None:
            self._settings = self._embedded()
        link = self._link = link_to(self._settings)
        self.key = ClusterKey()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._join is not None:
            self.document = link.request("GET", f"/v1/clusters/{quote(self._join, safe='')}")
        else:
            first_s = TELL_AFTER_S if timeout_s is None else min(TELL_AFTER_S, math.ceil(timeout_s))
            self._create(first_s)
        self._wait_until_it_runs(deadline, tell)
        if "certificate" not in self.document:
            self.sign(joining=True)
        self._still_wanted()
        if "versions" in self.document:
            _warn_of_versions(self.document["versions"])

    def _embedded(self) -> Settings:
        """Have an embedded fleet, and return where it is."""
        self._still_wanted()
        threads = self.body.get("threads_per_worker", 1)
        fleet = embedded.take_fleet(max(1, self.body["n_workers"]) * threads)  # a cold one takes a second
        with self._lock:
            self._fleet = fleet
        # From here on whoever gives up lets go of it, and twice is harmless.
        self._still_wanted()
        if not self.body.get("shared"):
            self.body.setdefault("memory_limit", embedded.memory_limit_bytes(threads))
        return fleet.settings

    def _still_wanted(self) -> None:
        if self._given_up:
            raise GivenUp("the cluster was closed before it ran")

    def _create(self, wait_s: int) -> None:
        assert self.key is not None
        with self._lock:
            self._still_wanted()
            self._may_exist = True
        try:
            document = self.link.request(
                "POST",
                "/v1/clusters",
                {**self.body, "csr": self.key.csr, "versions": versions_here()},
                headers={"Idempotency-Key": self._request_key, "Prefer": f"wait={wait_s}"},
                wait_s=wait_s,
            )
        except RequestError:
            self._may_exist = False  # it was refused: there is nothing to give back
            raise
        self.document = document

    def _wait_until_it_runs(self, deadline: float | None, tell: Callable[[str], None]) -> None:
        told = ""
        while self.document["status"] != "running" or self._is_joining():
            self._still_wanted()
            name = self.document["name"]
            if self.document["status"] in ENDED:
                raise ClusterFailed(f"cluster {name} is {self.document['status']}: {self.why}")
            waiting_for = self.document.get("waiting_for") or "its scheduler"
            if waiting_for != told:
                told = waiting_for
                tell(f"cluster {name} waits for {waiting_for}")
            wait_s = POLL_S if deadline is None else min(POLL_S, math.ceil(deadline - time.monotonic()))
            if wait_s <= 0:
                if self.document["status"] == "running" and self.document["workers"]:
                    return  # of use as it is
                given_back = "" if self._join is not None else " and is given back"
                raise WaitTimeout(f"cluster {name} does not run yet{given_back}; it waits for {waiting_for}")
            self.look(wait_s, workers=self._join is None, patience_s=30.0)

    def _is_joining(self) -> bool:
        """Whether a cluster of ours has workers yet to join that it can have now: a program may count on them."""
        document = self.document
        return self._join is None and (document.get("joining", 0) > 0 or document["workers"] == 0 < document["n_workers"])

    def _learn(self, document: dict[str, Any]) -> None:
        self.document = {**self.document, **document}


def versions_here() -> dict[str, str]:
    """Return the versions that Dask compares, as they are in this process."""
    packages = {name: str(version) for name, version in get_versions()["packages"].items() if version is not None}
    packages["python"] = ".".join(packages["python"].split(".")[:3])
    return packages


def _warn_of_versions(theirs: Mapping[str, str]) -> None:
    mine = versions_here()
    apart = [
        f"{name} {mine[name]} here and {other} there" for name, other in theirs.items() if mine.get(name, other) != other
    ]
    if apart:
        warnings.warn(VersionMismatchWarning(f"the cluster runs other versions: {', '.join(apart)}"), stacklevel=2)
