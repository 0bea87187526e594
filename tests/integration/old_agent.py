"""Plays an agent of before an upgrade: holds the lock of its data folder, speaks protocol 1, ignores refusals and SIGTERM.

Run as ``python old_agent.py DATA_DIR AGENT_ID``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect


def main(data_dir: Path, agent_id: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    descriptor = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    subprocess.Popen(["sleep", "600"])  # something it has started
    hello = ["Hello", 1, agent_id, "local", os.getpid(), 1, "", [], "3.11.0", {}]
    while True:
        with contextlib.suppress(OSError, ValueError, WebSocketException):
            url = json.loads((data_dir / "server.json").read_bytes())["url"].replace("http", "ws", 1)
            token = (data_dir / "agent.token").read_text("ascii").strip()
            with connect(f"{url}/v1/agents", additional_headers={"Authorization": f"Bearer {token}"}) as socket:
                socket.send(msgspec.msgpack.encode([hello]))
                socket.recv(timeout=10)
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
