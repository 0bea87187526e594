"""After the server was killed and upgraded, its local agent is of the version before: another takes its place, at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.integration.core_fleet import CoreFleet

from dask_fleet.backends.holder import holder_pid
from dask_fleet.backends.sessions import members

OLD_AGENT = Path(__file__).with_name("old_agent.py")


def test_an_agent_of_before_an_upgrade_is_ended_and_its_jobs_run_again(tmp_path: Path) -> None:
    with CoreFleet(tmp_path) as fleet:
        job_id = fleet.post("core/gated", {"name": "job"}).json()["job_id"]
        fleet.until_started("job")
        agent_id, agent = fleet.attempts(job_id)[0]["agent"], fleet.agent_pid()
        assert agent is not None
        fleet.kill9()
        os.kill(agent, signal.SIGKILL)
        fleet.until(lambda: not fleet.processes(), "the end of the agent")
        command = [sys.executable, str(OLD_AGENT), str(fleet.data_dir), agent_id]
        with subprocess.Popen(command, env=fleet.environment, start_new_session=True) as old:
            try:
                fleet.until(lambda: holder_pid(fleet.data_dir / "agent.lock") == old.pid, "the old agent to hold the lock")
                fleet.start()  # and ready: the old one would have stayed for good
                assert old.wait(10) == -signal.SIGKILL
                assert members(old.pid) == []
            finally:
                for pid in members(old.pid):
                    os.kill(pid, signal.SIGKILL)
        fleet.until_started("job", times=2)
        fleet.open_gate("job")
        ended = fleet.ended(job_id)
        assert (ended["status"], ended["attempt"], ended["run"], ended["result"]) == ("succeeded", 2, 1, "job")
        assert fleet.states(job_id) == ["lost", "succeeded"]
        assert "speaks protocol 1, this server" in fleet.logs()
        assert f"action=agent_dismissed pid={old.pid}" in fleet.logs()
