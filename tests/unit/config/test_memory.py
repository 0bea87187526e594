"""Memory: what the control groups leave, and what each process gets of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_fleet.config.memory import (
    available_memory,
    memory_cgroups,
    memory_limit_bytes,
    oom_kills,
    parse_memory_limit,
)

GIB = 1 << 30


@pytest.fixture
def host(tmp_path: Path) -> tuple[Path, Path]:
    """``/proc`` and ``/sys/fs/cgroup`` of a host with 8 GiB."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal:       {8 * GIB // 1024} kB\nMemFree:  1 kB\n")
    cgroups.mkdir()
    return proc, cgroups


def put(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


class TestAvailable:
    def test_without_control_groups_it_is_the_hosts(self, host: tuple[Path, Path]) -> None:
        assert available_memory(*host) == 8 * GIB

    def test_version_2_counts_the_tightest_of_the_way_up(self, host: tuple[Path, Path]) -> None:
        proc, cgroups = host
        (proc / "self" / "cgroup").write_text("0::/a/b\n")
        put(cgroups / "a" / "b", memory__max="max\n")
        put(cgroups / "a", memory__max=f"{2 * GIB}\n")
        assert available_memory(proc, cgroups) == 2 * GIB

    def test_version_1_has_a_folder_of_its_own_and_a_large_number_for_none(self, host: tuple[Path, Path]) -> None:
        proc, cgroups = host
        (proc / "self" / "cgroup").write_text("5:cpu:/x\n4:memory:/job\n0::/\n")
        put(cgroups / "memory", memory__limit_in_bytes="9223372036854771712\n")
        assert available_memory(proc, cgroups) == 8 * GIB
        put(cgroups / "memory" / "job", memory__limit_in_bytes=f"{GIB}\n")
        assert available_memory(proc, cgroups) == GIB

    def test_in_a_container_the_path_is_the_hosts_and_the_root_is_what_counts(self, host: tuple[Path, Path]) -> None:
        proc, cgroups = host
        (proc / "self" / "cgroup").write_text("4:memory:/docker/0123\n")
        put(cgroups / "memory", memory__limit_in_bytes=f"{3 * GIB}\n")
        assert available_memory(proc, cgroups) == 3 * GIB

    def test_where_nothing_tells_it_is_nothing(self, tmp_path: Path) -> None:
        assert available_memory(tmp_path, tmp_path) == 0


@pytest.mark.parametrize(("version", "file"), [("0::/a", "memory__events"), ("4:memory:/a", "memory__oom_control")])
def test_what_the_kernel_killed_is_counted(host: tuple[Path, Path], version: str, file: str) -> None:
    proc, cgroups = host
    (proc / "self" / "cgroup").write_text(version)
    folder = (cgroups / "memory" if "memory" in version else cgroups) / "a"
    put(folder, memory__max="max", **{file: "oom 5\noom_kill 3\n"})
    if "memory" in version:
        put(folder, memory__limit_in_bytes="1")
    assert oom_kills(memory_cgroups(proc, cgroups)) == 3
    assert oom_kills([]) == 0


class TestLimit:
    @pytest.mark.parametrize(
        ("given", "held"),
        [("auto", "auto"), (" AUTO ", "auto"), ("none", "none"), ("0", "none"), (0, "none"), ("4GiB", str(4 * GIB)),
         (1000, "1000"), ("500MB", "500000000")],
    )  # fmt: skip
    def test_as_people_write_it(self, given: object, held: str) -> None:
        assert parse_memory_limit(given) == held

    @pytest.mark.parametrize("given", ["much", "-1", -1, True, 1.5, "", None])
    def test_what_is_no_size_is_refused(self, given: object) -> None:
        with pytest.raises(ValueError, match="auto"):
            parse_memory_limit(given)

    def test_auto_is_an_equal_share(self) -> None:
        assert memory_limit_bytes("auto", 4, available=8 * GIB) == 2 * GIB
        assert memory_limit_bytes("none", 4, available=8 * GIB) == 0
        assert memory_limit_bytes("1000", 4, available=8 * GIB) == 1000
        assert memory_limit_bytes("auto", 1) == available_memory()
