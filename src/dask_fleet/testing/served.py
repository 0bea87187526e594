"""A real fleet for tests: ``dask-fleet serve`` as a process of its own, to be killed, restarted and asked over HTTP.

Every process of a fleet carries the fleet's mark in its environment, inherited from the server. So whatever the tests kill
(and whoever adopted the orphans), `ServedFleet` finds what is left, and says so loudly.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from dask_fleet.config.trust import Trust

MARK = "SERVED_FLEET"
"""Environment variable that names the fleet a process belongs to. Not ``FLEET_…``: those are settings."""

POLL_S = 0.02
_LOG_TAIL_CHARS = 6_000
_ALL_GONE_S = 10.0
"""Within this time of the server's and the agent's end no process of them may be left."""


@dataclass(frozen=True, slots=True)
class FleetProcess:
    """A living process of a fleet, as ``/proc`` shows it."""

    pid: int
    ppid: int
    name: str
    """As ``ps -o comm`` shows it."""
    command: str
    mark: str
    """Which fleet it belongs to."""

    @property
    def role(self) -> str:
        """``agent``, ``forkserver`` (workers carry its command line too), ``loader``, ``server`` or ``other``."""
        if "multiprocessing.forkserver" in self.command:
            return "forkserver"
        if "dask_fleet.agent" in self.command:
            return "agent"
        if "dask_fleet.services.loader" in self.command:
            return "loader"
        return "server" if " serve " in f"{self.command} " else "other"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class Connection:
    """One keep-alive connection to a server; for one thread."""

    def __init__(self, url: str, token: str | None, *, timeout_s: float = 30.0, fingerprint: str | None = None) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = Trust(fingerprint=fingerprint).context()
            self._http: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=timeout_s, context=context
            )
        else:
            self._http = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
        self._token = token

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request, its body as JSON (bytes are sent as they are), and read the answer.

        Raises
        ------
        OSError, http.client.HTTPException
            If the server went away: the fate of the request is unknown.
        """
        sent = dict(headers or {})
        if self._token is not None:
            sent.setdefault("Authorization", f"Bearer {self._token}")
        data: bytes | None = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        try:
            self._http.request(method, path, body=data, headers=sent)
            answer = self._http.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        except (OSError, http.client.HTTPException):
            self._http.close()
            raise


class ServedFleet:
    """``dask-fleet serve`` with its agent and workers, while the ``with`` block lasts.

    Parameters
    ----------
    targets
        Services to serve: files or modules.
    data_dir
        Its data folder; standard output and error go there too (``serve.out``, ``serve.err``).
    args
        Further flags of ``serve``, such as ``--nworkers 2``.
    env
        Variables set for all its processes, on top of this process's own without its ``FLEET_*``. Without
        ``FLEET_SPARE_SCHEDULERS`` there are no spare processes, so that those there are can be counted.
    command
        What stands before ``serve``; by default the ``dask-fleet`` beside this Python.
    ready_timeout_s
        How long a start may take until ``/readyz`` says so.
    """

    running: set[str] = set()  # noqa: RUF012 - one set for all fleets of this process, on purpose
    """Marks of the fleets that are open in this process: what else bears a mark of it is a leak."""

    def __init__(
        self,
        targets: Sequence[str | Path],
        data_dir: Path,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        ready_timeout_s: float = 40.0,
    ) -> None:
        self.data_dir = data_dir
        self._targets = [str(target) for target in targets]
        self._args = list(args)
        self._command = list(command or (str(Path(sys.executable).with_name("dask-fleet")),))
        self._ready_timeout_s = ready_timeout_s
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        own = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        self._env = {"FLEET_SPARE_SCHEDULERS": "0", **own, **(env or {}), MARK: self._mark}
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.url = ""
        self.fingerprint: str | None = None
        """Of the server's key, if it speaks TLS."""

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        """Start and wait until ready."""
        self.running.add(self._mark)
        try:
            self.start()
        except BaseException:
            self._sweep()
            self.running.discard(self._mark)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """End all; nothing of the fleet is left afterwards.

        Raises
        ------
        AssertionError
            If something did not end by itself and had to be killed.
        """
        try:
            problem = self._end()
        finally:
            self._sweep()
            self.running.discard(self._mark)
        if problem is not None:
            if exc is None:
                raise AssertionError(f"{problem}\n{self.logs()}")
            exc.add_note(problem)

    def start(self, *, wait: bool = True) -> None:
        """Start the server (not the first time: on the port it had) and wait until it is ready."""
        assert self._server is None or self._server.poll() is not None, "it runs already"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [*self._command, "serve", *self._targets, "--port", str(self._port), "--data-dir", str(self.data_dir)]
        with (self.data_dir / "serve.out").open("ab") as out, (self.data_dir / "serve.err").open("ab") as err:
            self._server = subprocess.Popen(
                [*command, *self._args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._env,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until ``/readyz`` answers 200.

        Raises
        ------
        AssertionError
            If the server ends, or time is up; with its logs.
        """
        self.until(self._is_ready, "the server to be ready", timeout_s=self._ready_timeout_s)

    def kill9(self) -> None:
        """Kill the server process, and nothing else, as power loss or the kernel would."""
        os.kill(self.server_pid(), signal.SIGKILL)
        assert self._server is not None
        self._server.wait(10)

    def restart(self) -> None:
        """Start the server again after it ended, on the same folder and port."""
        self.start()

    def terminate(self, *, timeout_s: float = 45.0) -> int:
        """Send SIGTERM, wait until the server has ended, and return its exit code."""
        assert self._server is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server_pid(), signal.SIGTERM)
        try:
            return self._server.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end within {timeout_s} s of SIGTERM\n{self.logs()}") from None

    @property
    def returncode(self) -> int | None:
        """Exit code of the server process, ``None`` while it runs."""
        return None if self._server is None else self._server.poll()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of its processes; for others that shall count as its own, such as a second agent."""
        return dict(self._env)

    # ------------------------------------------------------------------ processes

    def processes(self) -> list[FleetProcess]:
        """Return all living processes that bear this fleet's mark, zombies left out."""
        return list(marked_processes(self._mark))

    def server_pid(self) -> int:
        """Return the pid of the server itself (behind a tracer, it is not the process we started)."""
        assert self._server is not None
        told = self._announced()
        return int(told["pid"]) if told is not None and _mark_of(int(told["pid"])) == self._mark else self._server.pid

    def agent_pid(self) -> int | None:
        """Return the pid of the local agent, or ``None`` if there is none."""
        return next((process.pid for process in self.processes() if process.role == "agent"), None)

    def forkserver_pid(self) -> int | None:
        """Return the pid of the agent's forkserver, or ``None`` if there is none."""
        everyone = {process.pid: process for process in self.processes()}
        for process in everyone.values():
            parent = everyone.get(process.ppid)
            if process.name == "fleet-guard":  # the parent of a suspect's process, and perhaps adopted by the agent
                continue
            if process.role == "forkserver" and (parent is None or parent.role != "forkserver"):
                return process.pid
        return None

    def worker_pids(self) -> list[int]:
        """Return the pids of the worker processes."""
        everyone = {process.pid: process for process in self.processes()}
        return [
            process.pid
            for process in everyone.values()
            if process.role == "forkserver" and process.ppid in everyone and everyone[process.ppid].role == "forkserver"
            and process.name not in {"fleet-forksrv", "fleet-guard"}  # another one in waiting, or a suspect's parent
        ]

    # ------------------------------------------------------------------ asking

    @property
    def token(self) -> str:
        """The operator's token, as it stands in the data folder."""
        return (self.data_dir / "token").read_text("ascii").strip()

    def connect(self, *, token: str | None = None, timeout_s: float = 30.0) -> Connection:
        """Return a keep-alive connection with the operator's token, or another."""
        return Connection(self.url, token or self.token, timeout_s=timeout_s, fingerprint=self.fingerprint)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout_s: float = 70.0,
    ) -> Answer:
        """Send one request on a connection of its own."""
        with self.connect(token=token, timeout_s=timeout_s) as connection:
            return connection.request(method, path, body, headers=headers)

    def post(self, endpoint: str, body: Any = None, *, wait: int = 0, token: str | None = None, **headers: str) -> Answer:
        """Call an endpoint, ``"service/name"``; further keywords are headers (``Fleet_Priority="5"``)."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if wait:
            sent["Prefer"] = f"wait={wait}"
        return self.request("POST", f"/v1/{endpoint}", {} if body is None else body, headers=sent, token=token)

    def job(self, job_id: str, *, wait: int = 0) -> dict[str, Any]:
        """Return a job's document; with `wait`, once it has ended or after that many seconds."""
        answer = self.request("GET", f"/v1/jobs/{job_id}" + (f"?wait={wait}" if wait else ""))
        assert answer.status == 200, (answer.status, answer.body)
        document: dict[str, Any] = answer.json()
        return document

    def status(self) -> dict[str, Any]:
        """Return ``GET /v1/status``."""
        document: dict[str, Any] = self.request("GET", "/v1/status").json()
        return document

    def until(self, condition: Callable[[], Any], what: str, *, timeout_s: float = 20.0) -> Any:
        """Ask `condition` until it gives something true, and return that.

        Raises
        ------
        AssertionError
            If it does not within `timeout_s`; with the server's logs.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() >= deadline:
                raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}\n{self.logs()}")
            time.sleep(POLL_S)

    def logs(self) -> str:
        """Return the ends of what server and agent have written."""
        parts = []
        for name in ("serve.out", "serve.err", "agent.log"):
            path = self.data_dir / name
            if path.exists():
                parts.append(f"--- {name}\n{path.read_text('utf-8', 'replace')[-_LOG_TAIL_CHARS:]}")
        return "\n".join(parts)

    # ------------------------------------------------------------------ inside

    def _announced(self) -> dict[str, Any] | None:
        try:
            told: dict[str, Any] = json.loads((self.data_dir / "server.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return told

    def _is_ready(self) -> bool:
        assert self._server is not None
        code = self._server.poll()
        if code is not None:
            raise AssertionError(f"the server ended with exit code {code} before it was ready\n{self.logs()}")
        told = self._announced()
        if told is None or _mark_of(int(told["pid"])) != self._mark:
            return False  # not there yet, or left by a server that was killed
        self.url, self.fingerprint = told["url"], told.get("fingerprint")
        self._port = urlsplit(self.url).port or 0
        try:
            with Connection(self.url, None, timeout_s=5.0, fingerprint=self.fingerprint) as connection:
                return connection.request("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _end(self) -> str | None:
        """End everything in good order; return what went wrong."""
        problem: str | None = None
        if self._server is not None and self._server.poll() is None:
            try:
                self.terminate()
            except AssertionError as exc:
                problem = str(exc).splitlines()[0]
        agent = self.agent_pid()
        if agent is not None and problem is None:
            # Its server was killed: an agent is right to go on for a while, so it is asked to end.
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent, signal.SIGTERM)
        deadline = time.monotonic() + _ALL_GONE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if left and problem is None:
            problem = f"these processes of the fleet did not end: {left}"
        return problem

    def _sweep(self) -> None:
        for _ in range(100):
            left = self.processes()
            if not left:
                break
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        if self._server is not None:
            self._server.wait(10)


def marked_processes(mark: str) -> Iterator[FleetProcess]:
    """Yield the living processes whose `MARK` begins with `mark`; ``"PID-"`` stands for all fleets of a process."""
    for entry in os.scandir("/proc"):
        found = _mark_of(int(entry.name)) if entry.name.isdigit() else ""
        if found and found.startswith(mark):
            try:
                stat = Path(entry.path, "stat").read_text("utf-8", "replace")
                command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:  # ended meanwhile
                continue
            head, _, tail = stat.rpartition(")")
            state, ppid = tail.split()[:2]
            if state not in {"Z", "X"}:
                name = head.partition("(")[2]
                yield FleetProcess(int(entry.name), int(ppid), name, command.strip(), mark=found)


def _mark_of(pid: int) -> str:
    """Return the mark of a process, ``""`` if it has none; a zombie has no environment and so no mark."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    begin = f"{MARK}=".encode()
    for part in environment.split(b"\0"):
        if part.startswith(begin):
            return part[len(begin) :].decode("utf-8", "replace")
    return ""
