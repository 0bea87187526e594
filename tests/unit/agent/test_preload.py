"""What the forkserver imports, and when."""

from __future__ import annotations

import os
import subprocess
import sys

from dask_fleet.config.discovery import PRELOAD_LATER

_FORKSERVER = """
import os, signal, sys, time
import dask_fleet.agent.preload

assert "distributed" in sys.modules
assert "dask_fleet.agent.runner" not in sys.modules
child = os.fork()
if child == 0:
    quiet = signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    os._exit(0 if quiet and {name!r} not in os.environ else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
until = time.monotonic() + 60
while "dask_fleet.agent.job_cluster" not in sys.modules:
    assert time.monotonic() < until, "never imported"
    time.sleep(0.05)
print("pandas" in sys.modules)
"""


def test_what_no_cluster_needs_comes_later_and_in_no_child() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORKSERVER.format(name=PRELOAD_LATER)],
        env={**os.environ, PRELOAD_LATER: "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


def test_without_being_told_all_is_there_at_once() -> None:
    code = (
        "import sys, dask_fleet.agent.preload;"
        "print('pandas' in sys.modules, 'dask_fleet.agent.job_cluster' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True True\n"
