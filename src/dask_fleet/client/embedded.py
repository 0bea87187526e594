"""A fleet of this process's own: ``dask-fleet serve`` on loopback, for clusters where no server is configured.

It is a process, not an import. It ends when this process does, however that ends, and some minutes after the last cluster
on it was closed; its folder goes with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dask_fleet.config.cpus import available_cpus
from dask_fleet.config.discovery import PRELOAD_LATER, SERVER_FILE, TOKEN_FILE
from dask_fleet.config.memory import available_memory
from dask_fleet.config.secret import Secret
from dask_fleet.config.settings import Settings
from dask_fleet.model.errors import ConnectionFailed

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
IDLE_S = 300.0
"""A notebook's next cluster starts at once; after that, an idle fleet's memory is worth more."""
_POLL_S = 0.005
_MIN_SLOTS = 16
_PREFIX = "dask-fleet-embedded-"


def default_workers(threads_per_worker: int | None) -> int:
    """Return how many workers a cluster on this machine has if nobody says: together one thread for each CPU."""
    return max(1, available_cpus() // (threads_per_worker or 1))


def memory_limit_bytes(threads_per_worker: int) -> int:
    """Return the memory of a worker on this machine: its threads' share, as Dask's ``LocalCluster`` has it."""
    return max(1 << 20, int(available_memory() * min(1.0, threads_per_worker / available_cpus())))


class EmbeddedFleet:
    """A server and its agent, as a process.

    Parameters
    ----------
    slots
        Threads that all its clusters may have together.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pid = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getuid()}-{self._pid}-"))
        self._clusters = 0
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = Settings()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises
        ------
        ConnectionFailed
            If it does not come up; with what it said.
        """
        data_dir = self._folder / "data"
        # A file of its own, so that neither fleet.yaml nor FLEET_* of this place decide.
        config = self._folder / "fleet.yaml"
        config.write_text(
            f"host: 127.0.0.1\nport: 0\ndata-dir: {json.dumps(str(data_dir))}\nledger: memory\nresult-store: memory\n"
            f"nworkers: 1\nnthreads: {self.slots}\nmemory-limit: none\ndrain-timeout: 0s\norphan-timeout: 5s\n"
            "log-level: warning\n"
        )
        command = [sys.executable, "-P", "-c", "from dask_fleet.cli.main import main; main()", "serve", "--no-services"]
        with (self._folder / "serve.log").open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--config", str(config), "--parent", str(self._pid)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this program; it closes its clusters itself
            )
        url, token = self._wait_until_it_answers(data_dir)
        self.settings = Settings(url=url, token=Secret(token), data_dir=data_dir)

    @property
    def alive(self) -> bool:
        """Whether its process runs and is a child of this very process."""
        return self._pid == os.getpid() and self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it and remove its folder. Twice is harmless; in a forked child it does nothing."""
        if os.getpid() != self._pid:
            return
        if self._idle is not None:
            self._idle.cancel()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(STOP_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def use(self) -> None:
        """A cluster is taken from it."""
        with self._lock:
            self._clusters += 1
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None

    def let_go(self) -> None:
        """A cluster of it is closed."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._clusters = max(0, self._clusters - 1)
            if self._clusters == 0 and self.alive:
                self._idle = threading.Timer(IDLE_S, _stop_if_idle, (self,))
                self._idle.daemon = True
                self._idle.start()

    @property
    def is_idle(self) -> bool:
        """Whether no cluster of this process is on it."""
        return self._clusters == 0

    def _wait_until_it_answers(self, data_dir: Path) -> tuple[str, str]:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError, KeyError):
                url = str(json.loads((data_dir / SERVER_FILE).read_bytes())["url"])
                # The socket listens since before the file was there: a request waits in its queue until it is served.
                return url, (data_dir / TOKEN_FILE).read_text("ascii").strip()
            time.sleep(_POLL_S)
        said = (self._folder / "serve.log").read_text("utf-8", "replace")[-2000:]
        self.stop()
        raise ConnectionFailed(f"the embedded fleet did not start. It said: {said.strip() or 'nothing'}")


_fleets: list[EmbeddedFleet] = []
_lock = threading.RLock()


def take_fleet(slots: int) -> EmbeddedFleet:
    """Return an embedded fleet of this process with at least so many slots, starting one if there is none.

    Raises
    ------
    ConnectionFailed
        If it does not start.
    """
    with _lock:
        _fleets[:] = [fleet for fleet in _fleets if fleet.alive]
        fleet = next((fleet for fleet in _fleets if fleet.slots >= slots), None)
        if fleet is None:
            _sweep()
            fleet = EmbeddedFleet(max(_MIN_SLOTS, 4 * available_cpus(), slots))
            try:
                fleet.start()
            except BaseException:
                fleet.stop()
                raise
            _fleets.append(fleet)
        fleet.use()
        return fleet


def stop_all() -> None:
    """End all embedded fleets of this process."""
    with _lock:
        fleets, _fleets[:] = list(_fleets), []
    for fleet in fleets:
        fleet.stop()


atexit.register(stop_all)


def _begin_anew() -> None:
    """In a forked child: the fleets are its parent's, and a lock that was held when it was made is never released there."""
    global _lock
    _lock = threading.RLock()
    _fleets.clear()


os.register_at_fork(after_in_child=_begin_anew)


def _stop_if_idle(fleet: EmbeddedFleet) -> None:
    with _lock:
        if not fleet.is_idle:
            return
        if fleet in _fleets:
            _fleets.remove(fleet)
    fleet.stop()


def _environment() -> dict[str, str]:
    """Return this process's environment as workers want it: what can be imported here can be there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    kept["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path if not path.endswith(".zip"))
    kept[PRELOAD_LATER] = "1"
    return kept


def _sweep() -> None:
    """Remove the folders of processes that were killed."""
    for folder in _left_behind(Path(tempfile.gettempdir())):
        shutil.rmtree(folder, ignore_errors=True)


def _left_behind(base: Path) -> Iterator[Path]:
    for folder in base.glob(f"{_PREFIX}{os.getuid()}-*"):
        owner = folder.name.removeprefix(f"{_PREFIX}{os.getuid()}-").partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists() and folder.stat().st_uid == os.getuid():
            yield folder
