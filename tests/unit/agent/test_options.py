"""The agent's command line, and what its process may import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dask_fleet.agent.lock import AgentLock
from dask_fleet.agent.options import AgentOptions, parse_arguments
from dask_fleet.model.errors import SetupError

BASE = ["--token-file", "t", "--data-dir", "d"]


def test_a_command_line_becomes_options() -> None:
    options = parse_arguments([*BASE, "--server-file", "s.json", "--nworkers", "2", "--nthreads", "3"])
    assert options.slots == 6
    assert options.server_file == Path("s.json")
    assert options.spool == Path("d/spool")


@pytest.mark.parametrize("bad", [[], ["--server", "u", "--server-file", "f"], ["--server", "u", "--nworkers", "0"]])
def test_a_bad_command_line_exits_with_2(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([*BASE, *bad])
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_options_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        AgentOptions(token_file=Path("t"), data_dir=Path("d"))


def test_the_agent_process_imports_no_dask_and_no_user_code() -> None:
    code = (
        "import sys, dask_fleet.agent.main, dask_fleet.agent.agent;"
        "print([m for m in ('dask', 'distributed', 'pandas', 'numpy', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_the_lock_is_held_once(tmp_path: Path) -> None:
    first, second = AgentLock(tmp_path), AgentLock(tmp_path)
    first.acquire()
    with pytest.raises(SetupError, match="another agent"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
