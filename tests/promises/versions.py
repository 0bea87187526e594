"""Versions of Dask Fleet, installed from wheels side by side: the present tree, others made of it, a real predecessor."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from dask_fleet.cli.main import main; main()")
"""``dask-fleet`` of whatever version ``PYTHONPATH`` names."""
_NEEDED = ("pyproject.toml", "README.md", "LICENSE")
PREDECESSOR = "07ec0fc899a60575a4048ff518a2880dd08067bf"
"""A commit of this repository that has schema 1 of the ledger and protocol 1 with agents: the first that could be used."""


def install(
    folder: Path,
    *,
    commit: str | None = None,
    version: str | None = None,
    migration: str = "",
    protocol: int | None = None,
) -> Path:
    """Build a wheel of the present tree, changed as asked for, and return the folder it is installed in.

    Parameters
    ----------
    folder
        Where to work.
    commit
        The one to take instead of the present tree.
    version
        What it calls itself; the present version if not given.
    migration
        SQL of a migration that it brings, and of which it says that it only adds.
    protocol
        The protocol it speaks with agents.
    """
    tree = folder / "tree"
    tree.mkdir(parents=True)
    if commit is None:
        for name in _NEEDED:
            shutil.copy(ROOT / name, tree)
        shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    else:
        archive = folder / "tree.tar"
        _run("git", "-C", str(ROOT), "archive", "--output", str(archive), commit, *_NEEDED, "src")
        with tarfile.open(archive) as tar:
            tar.extractall(tree, filter="data")
    source = tree / "src" / "dask_fleet"
    if version is not None:
        _replace(tree / "pyproject.toml", r'^version = "[^"]+"$', f'version = "{version}"')
        _replace(source / "__init__.py", r'^__version__ = "[^"]+"$', f'__version__ = "{version}"')
    if migration:
        migrations = source / "ledger" / "sql" / "migrations"
        last = max(int(path.name[:4]) for path in migrations.glob("*.sql"))
        (migrations / f"{last + 1:04}_newer.sql").write_text(f"-- compatible_from: {last}\n{migration}")
    if protocol is not None:
        _replace(source / "protocol" / "frames.py", r"^PROTOCOL_VERSION = \d+$", f"PROTOCOL_VERSION = {protocol}")
    wheels, target = folder / "wheels", folder / "site"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels), str(tree))
    (wheel,) = wheels.glob("*.whl")
    _run(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def has_commit(commit: str) -> bool:
    """Return whether the history is here: a release's archive has none, and a shallow clone not all."""
    command = ("git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}")
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _replace(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, path.read_text("utf-8"), flags=re.MULTILINE)
    assert count == 1, f"{path} has changed: {pattern} is there {count} times"
    path.write_text(changed, "utf-8")


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"
