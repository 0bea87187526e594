"""The parts of clusters that are pure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dask
import msgspec
import pytest

from dask_fleet.agent.clusters import dask_config
from dask_fleet.agent.clusters.authority import Authority, Role
from dask_fleet.agent.clusters.frames import Close, Join, Leave, Open, decode_for_member_process, decode_for_scheduler
from dask_fleet.agent.framing import FrameBuffer
from dask_fleet.protocol.frames import encode_prefixed

CREDENTIALS = Authority("c").issue(Role.WORKER)


def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut() -> None:
    frames = [
        Open(cluster="c", credentials=CREDENTIALS, host="127.0.0.1", config={"array": {"chunk-size": 1}}),
        Close("x"),
    ]
    stream = b"".join(map(encode_prefixed, frames))
    for size in (1, 3, 7, len(stream)):
        buffer = FrameBuffer(decode_for_scheduler)
        taken = [frame for at in range(0, len(stream), size) for frame in buffer.take(stream[at : at + size])]
        assert taken == frames


def test_a_worker_process_understands_memberships_and_its_own_end() -> None:
    join = Join(
        membership="m", cluster="c", scheduler="tls://127.0.0.1:1", credentials=CREDENTIALS, host="127.0.0.1", name="w",
        nthreads=1, memory_limit=0, local_directory="/tmp", resources={"GPU": 1.0},
    )
    buffer = FrameBuffer(decode_for_member_process)
    told = [join, Leave("m"), Close("x")]
    assert list(buffer.take(b"".join(map(encode_prefixed, told)))) == told


def test_what_is_no_frame_is_told_after_those_before_it() -> None:
    buffer = FrameBuffer(decode_for_member_process)
    frames = buffer.take(encode_prefixed(Leave("m")) + b"\0\0\0\1\xc1" + encode_prefixed(Leave("n")))
    assert next(frames) == Leave("m")
    with pytest.raises(msgspec.MsgspecError):
        next(frames)
    assert list(buffer.take(b"")) == [Leave("n")]


def test_what_the_hosts_files_and_variables_say_wins_over_our_defaults_even_if_it_is_what_dask_says(tmp_path: Path) -> None:
    """In a process of its own: Dask's configuration and what was read of it are of the process."""
    told = "distributed: {scheduler: {worker-saturation: 1.1}, worker: {profile: {enabled: true}}}"
    (tmp_path / "dask.yaml").write_text(told)
    script = """if True:
        import dask, distributed, json
        from dask_fleet.agent.clusters import dask_config
        names = [
            "distributed.scheduler.worker-saturation", "distributed.worker.profile.enabled",
            "distributed.admin.tick.interval", "distributed.admin.system-monitor.interval",
            "distributed.scheduler.active-memory-manager.start",
        ]
        found = []
        for step in (dask_config.set_scheduler_defaults, dask_config.set_job_scheduler_defaults):
            step()
            found.append([dask.config.get(name) for name in names])
        print(json.dumps(found))
    """
    env = os.environ | {"DASK_CONFIG": str(tmp_path), "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "30ms"}
    said = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(said.stdout) == [[1.1, True, "30ms", "5s", True], [1.1, True, "30ms", "5s", False]]


def test_the_proxy_is_served_whatever_is_configured_never() -> None:
    routes = ["distributed.http.health", dask_config.PROXY_ROUTE]
    with dask.config.set({"distributed.scheduler.http.routes": routes}):
        assert dask_config.without_proxy() == ["distributed.http.health"]
    assert dask_config.PROXY_ROUTE in routes  # Dask's own list is left as it is
