"""Two versions of Dask Fleet, installed from wheels side by side: the present tree, and one made of it that is newer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from dask_fleet.cli.main import main; main()")
"""``dask-fleet`` of whatever version ``PYTHONPATH`` names."""


def install(folder: Path, *, version: str | None = None, migration: str = "", protocol: int | None = None) -> Path:
    """Build a wheel of the present tree, changed as asked for, and return the folder it is installed in.

    Parameters
    ----------
    folder
        Where to work.
    version
        What it calls itself; the present version if not given.
    migration
        SQL of a migration that it brings, and of which it says that it only adds.
    protocol
        The protocol it speaks with agents.
    """
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    source = shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__")) / "dask_fleet"
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


def _replace(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, path.read_text("utf-8"), flags=re.MULTILINE)
    assert count == 1, f"{path} has changed: {pattern} is there {count} times"
    path.write_text(changed, "utf-8")


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"
