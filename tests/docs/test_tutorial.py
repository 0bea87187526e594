"""The tutorial is followed to the letter: its files are written, served, and its Python run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from dask_fleet.testing.served import ServedFleet

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: Path, mark: str) -> list[str]:
    """Return the Python below each ``<!-- mark -->``."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"<!-- {re.escape(mark)} -->\n```python\n(.*?)```", text, flags=re.DOTALL)


def run(code: str, folder: Path) -> str:
    """Run Python as a user of the folder would: nothing set but what lies there."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=plain,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    page = DOCS / "tutorial.md"
    service = tmp_path / "monte_carlo.py"
    service.write_text("\n\n".join(blocks(page, "file: monte_carlo.py")), encoding="utf-8")
    estimates, walk = blocks(page, "run")
    with ServedFleet([service], tmp_path / ".fleet", args=["--nworkers", "2"]):
        first, several = run(estimates, tmp_path).splitlines()
        assert abs(float(first.split()[1]) - 3.1416) < 0.01
        assert len(set(several.strip("[]").split(", "))) == 8
        assert 9 < float(run(walk, tmp_path)) < 11
        (tmp_path / "backup").mkdir()
        (backup,) = blocks(DOCS / "how-to" / "operate.md", "run")
        run(backup, tmp_path)
    restored = tmp_path / "restored"
    (tmp_path / "backup").rename(restored)
    with ServedFleet([service], restored, args=["--no-agent"]) as fleet:
        jobs = fleet.request("GET", "/v1/jobs").json()["jobs"]
    assert len(jobs) == 10
    assert {job["status"] for job in jobs} == {"succeeded"}
