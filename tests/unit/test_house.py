"""The house rules that no linter of others knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "dask_fleet").rglob("*.py"))


def test_imports_go_down_only() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long_or_called_utils() -> None:
    assert SOURCES
    ours = [*SOURCES, *(path for part in ("tests", "benchmarks", "scripts") for path in (ROOT / part).rglob("*.py"))]
    long = {path.name: lines for path in ours if (lines := len(path.read_text("utf-8").splitlines())) > 600}
    assert not long
    assert not [path for path in SOURCES if path.stem in {"utils", "util", "helpers", "common", "misc"}]


@pytest.mark.parametrize("folder", ["agent", "backends", "client"])
def test_dask_is_imported_where_it_may_be(folder: str) -> None:
    """Complements the contracts of import-linter, which name the packages where it must not be."""
    assert (ROOT / "src" / "dask_fleet" / folder).is_dir()
    allowed = {"agent", "backends", "client"}
    for path in SOURCES:
        part = path.relative_to(ROOT / "src" / "dask_fleet").parts[0]
        if part not in allowed:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.split(".")[0] for name in names} & {"dask", "distributed"}, path


def test_no_variable_that_dask_would_swallow() -> None:
    """Dask reads every variable of that prefix into its configuration, which SSHCluster puts on command lines."""
    for path in (*SOURCES, *(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        found = re.findall(r"""["'](DASK_[A-Z_]+)""", path.read_text("utf-8"))
        assert not found, (path, found)


PICKLING = {"pickle", "cloudpickle", "dill", "shelve", "distributed.protocol.pickle"}
UNPICKLES = {"agent/clusters/nanny.py": "plug-ins of a cluster's clients, in a process that runs their tasks"}


def test_nothing_but_a_tenants_own_process_unpickles() -> None:
    unpickling = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {*names, *(name.split(".")[0] for name in names)} & PICKLING:
                unpickling.add(str(path.relative_to(ROOT / "src" / "dask_fleet")))
    assert unpickling == set(UNPICKLES)


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_posix_shell(script: Path) -> None:
    assert script.read_text("utf-8").startswith("#!/bin/sh\n")
    done = subprocess.run(["/bin/sh", "-n", str(script)], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr


def test_decisions_have_numbers_of_their_own() -> None:
    numbers = [path.name[:4] for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]


MUTABLE = {"dict", "list", "set", "deque", "OrderedDict", "Counter", "defaultdict", "WeakSet", "WeakValueDictionary"}
PROCESS_WIDE = {
    "agent/forked.py:_living": "what the process's one forkserver has forked",
    "agent/job_clients.py:_NONE": "stands in a place that Dask only reads",
    "client/control.py:_links": "one link a server, shared by the clusters of a program",
    "client/embedded.py:_fleets": "what the program has started must end with it",
    "services/loading.py:_folders": "sys.path is the process's, too",
    "services/loading.py:_loaded": "a module is imported once a process",
    "services/loading.py:_versions": "a module is imported once a process",
}
"""Everything else belongs to an object that somebody makes and closes."""


def test_no_state_hides_in_a_module() -> None:
    found = set()
    for path in SOURCES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            target, value = (node.targets[0] if isinstance(node, ast.Assign) else node.target), node.value
            empty = isinstance(value, ast.Dict | ast.List) and not ast.unparse(value)[1:-1]
            made = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in MUTABLE and not value.args
            if empty or made:
                found.add(f"{path.relative_to(ROOT / 'src' / 'dask_fleet')}:{ast.unparse(target)}")
    assert found == set(PROCESS_WIDE)


def test_every_task_has_a_name() -> None:
    """What a log or a debugger says of a task must tell what it was for."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"create_task", "ensure_future"}:
                assert "name" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
