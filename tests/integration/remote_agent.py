"""``dask-fleet agent --server`` as a process of its own, for the tests of agents from elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.integration.core_fleet import CoreFleet

PROGRAM = str(Path(sys.executable).with_name("dask-fleet"))


class RemoteAgent:
    """An agent with a data folder of its own, which belongs to a fleet only by its token."""

    def __init__(
        self,
        fleet: CoreFleet,
        folder: Path,
        *,
        url: str | None = None,
        args: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        command = [
            *prefix, PROGRAM, "agent", "--server", url or fleet.url, "--data-dir", str(folder / "data"), "--nworkers", "1",
            "--token-file", str(fleet.data_dir / "agent.token"),
        ]  # fmt: skip
        if "--fingerprint" not in args and "--ca-file" not in args and fleet.fingerprint is not None:
            command += ["--fingerprint", fleet.fingerprint]
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*command, *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=fleet.environment, cwd=folder,
            )  # fmt: skip

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def exit_code(self, timeout_s: float = 40.0) -> int:
        return self.popen.wait(timeout_s)


@contextlib.contextmanager
def remote_agent(fleet: CoreFleet, folder: Path, **options: object) -> Iterator[RemoteAgent]:
    """An agent while the block lasts; what is left of it is asked to end, then killed."""
    agent = RemoteAgent(fleet, folder, **options)  # type: ignore[arg-type]
    try:
        yield agent
    except BaseException as exc:
        exc.add_note(f"--- remote agent\n{agent.log()[-6000:]}")
        raise
    finally:
        if agent.popen.poll() is None:
            agent.popen.terminate()
            try:
                agent.popen.wait(15)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(agent.popen.pid, signal.SIGKILL)
                agent.popen.wait(10)


def connected(fleet: CoreFleet, name: str) -> dict[str, object] | None:
    """Return an agent's entry in the status if it is connected and has loaded something."""
    for agent in fleet.status()["agents"]:
        if agent["name"] == name and agent["connected"] and (agent["versions"] or agent["problems"]):
            found: dict[str, object] = agent
            return found
    return None
