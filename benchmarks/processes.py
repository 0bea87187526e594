"""Starts the processes of a system under test and ends them, whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from benchmarks.generator import Figures, Load

ROOT = Path(__file__).parent.parent
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Processes(contextlib.ExitStack):
    """Child processes, each in a group of its own, killed when the block ends (or when we are killed)."""

    def __init__(self, logs: Path) -> None:
        super().__init__()
        self._logs = logs

    def start(self, name: str, command: list[str], *, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        log = self.enter_context((self._logs / f"{name}.log").open("ab"))
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self.callback(_end, child)
        return child

    def python(self, name: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        return self.start(name, [sys.executable, *args], env=env)

    def until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 40.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                tails = "\n".join(
                    f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in self._logs.glob("*.log")
                )
                raise TimeoutError(f"waited {timeout_s:.0f} s in vain for {what}\n{tails}")
            time.sleep(0.01)


def _end(child: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        break
    with contextlib.suppress(ProcessLookupError):  # grandchildren that outlived it
        os.killpg(child.pid, signal.SIGKILL)


def answers(url: str, *, token: str | None = None) -> bool:
    """Whether GET `url` is answered with 200."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def generate(load: Load, *, timeout_s: float = 300.0) -> Figures:
    """Run a load in the generator's own process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generator", msgspec.json.encode(load).decode()],
        cwd=ROOT,
        capture_output=True,
        timeout=timeout_s,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the generator failed:\n{done.stderr[-3000:]}")
    return msgspec.json.decode(done.stdout, type=Figures)


def rss_mb(pid: int) -> float:
    """Resident memory of one process in MB (10⁶ bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)


@contextlib.contextmanager
def redis_server(processes: Processes) -> Iterator[int]:
    """Run a Redis of our own that keeps nothing on disk; yield its port."""
    port = free_port()
    processes.start(
        f"redis-{port}",
        [
            "redis-server",
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ],
    )
    processes.until(lambda: listens(port), "redis-server")
    yield port
