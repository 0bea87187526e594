"""A server that is told to end before it is ready takes down all that it has started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

SLOW = """
import time
from pathlib import Path
from dask_fleet import Service
service = Service("slow")
Path(__file__).with_name("loading").touch()
time.sleep(60)
"""


def test_sigterm_while_the_service_is_loaded(tmp_path: Path) -> None:
    module = tmp_path / "slow.py"
    module.write_text(SLOW)
    data_dir = tmp_path / "data"
    command = [str(Path(sys.executable).with_name("dask-fleet")), "serve", str(module)]
    with subprocess.Popen(
        [*command, "--port", "0", "--data-dir", str(data_dir)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        deadline = time.monotonic() + 30
        while not (tmp_path / "loading").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)  # another process makes the file: there is nothing to wait on
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 128 + signal.SIGTERM
    assert not (data_dir / "server.json").exists()
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(data_dir).encode() in read(path)]
    assert left == []


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""
