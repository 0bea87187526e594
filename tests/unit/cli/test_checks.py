"""What ``doctor`` thinks of what it finds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dask_fleet.cli import checks


def test_versions() -> None:
    assert checks.check_python((3, 11, 0)).ok
    assert not checks.check_python((3, 10, 9)).ok
    assert checks.check_sqlite().ok
    assert checks.check_packages().ok


def test_a_data_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert checks.check_folder(folder).ok
    folder.mkdir(mode=0o700)
    assert checks.check_folder(folder).ok
    folder.chmod(0o755)
    found = checks.check_folder(folder)
    assert not found.ok
    assert found.cure.endswith(f"chmod 700 {folder}")
    (tmp_path / "file").write_text("")
    assert not checks.check_folder(tmp_path / "file").ok


def test_a_token_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert checks.check_secret_file("token file", path).ok is None
    path.write_text("x")
    path.chmod(0o600)
    assert checks.check_secret_file("token file", path).ok
    path.chmod(0o640)
    assert not checks.check_secret_file("token file", path).ok


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"root / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\ndisk {tmp_path}/with\\040space xfs rw 0 0\n"
    )
    assert not checks.check_filesystem(tmp_path / "data", mounts).ok
    assert checks.check_filesystem(tmp_path / "with space", mounts).ok
    assert checks.check_filesystem(Path("/srv"), mounts).ok
    assert checks.check_filesystem(Path("/srv"), tmp_path / "none").ok is None


def test_the_disk(tmp_path: Path) -> None:
    assert checks.check_disk(tmp_path, 2 << 30).ok
    assert not checks.check_disk(tmp_path, 1 << 20).ok
    assert "ms" in checks.check_fsync(tmp_path).detail
    assert checks.check_fsync(tmp_path / "none").ok is None


@pytest.mark.parametrize(
    ("date", "ok"),
    [
        ("Thu, 01 Jan 2026 12:00:00 GMT", True),
        ("Thu, 01 Jan 2026 12:00:04 GMT", True),
        ("Thu, 01 Jan 2026 12:01:00 GMT", False),
        ("Thu, 01 Jan 2026 11:59:00 GMT", False),
        ("noon", None),
        (None, None),
    ],
)
def test_clocks(date: str | None, ok: bool | None) -> None:
    assert checks.check_clock(date, datetime(2026, 1, 1, 12, tzinfo=UTC)).ok is ok


def test_agents() -> None:
    assert checks.check_agents({"agents": [{"slots": 2}, {"slots": 1, "connected": False}]}).detail == "1 connected, 2 slots"
    assert not checks.check_agents({"agents": [{"slots": 2, "connected": False}]}).ok
    assert not checks.check_agents({"agents": []}).ok


def test_the_nearest_folder_is_looked_at(tmp_path: Path) -> None:
    assert checks.nearest_folder(tmp_path / "a" / "b") == tmp_path
