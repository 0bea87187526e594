"""A stored result that is damaged while the server runs is refused, and computed anew when asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_fleet.client.sync_client import Client
from dask_fleet.model.errors import ResultCorrupt
from dask_fleet.testing.served import ServedFleet

SERVICE = """
from dask_fleet import Service

service = Service("made")


@service.endpoint
def blob(size: int) -> bytes:
    return bytes(size)
"""
SMALL, LARGE = 300 << 10, 3 << 20


def flip(path: Path) -> None:
    """Change a byte in the middle, and leave the time of the content as it was."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        file.write(b"\x01")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_byte_is_never_served(tmp_path: Path) -> None:
    module = tmp_path / "service.py"
    module.write_text(SERVICE)
    with ServedFleet([module], tmp_path / "data", args=("--nworkers", "1")) as fleet:
        for size in (SMALL, LARGE):
            known = set(fleet.data_dir.rglob("*.bin"))
            job_id = fleet.post("made/blob", {"size": size}).json()["job_id"]
            link = f"/v1/jobs/{job_id}/result"
            fleet.until(lambda job_id=job_id: fleet.job(job_id, wait=5)["finished_at"], "the end", timeout_s=60)
            (path,) = set(fleet.data_dir.rglob("*.bin")) - known
            good = fleet.request("GET", link)
            assert (good.status, good.body) == (200, bytes(size))
            flip(path)
            for headers in ({}, {"Range": "bytes=0-9"}):  # the damage lies elsewhere: still, these are not the result
                refused = fleet.request("GET", link, headers=headers)
                assert (refused.status, refused.json()["code"]) == (500, "result_corrupt")
                assert "refresh=true" in refused.json()["detail"]
            with Client(fleet.url, token=fleet.token) as client, pytest.raises(ResultCorrupt, match="refresh"):
                client.job(job_id).result()
            path.unlink()
            assert "missing" in fleet.request("GET", link).json()["detail"]
            again = fleet.post("made/blob?refresh=true", {"size": size}).json()["job_id"]
            assert again == job_id
            fleet.until(lambda job_id=job_id: fleet.job(job_id, wait=5)["status"] == "succeeded", "the end", timeout_s=60)
            assert fleet.request("GET", link).body == bytes(size)
