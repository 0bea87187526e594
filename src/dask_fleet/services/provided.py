"""Lets a process that does not run services import their modules all the same.

A graph names its author's functions by module. The scheduler of a job's cluster reads the graph, so it must be able to
import what the worker process has loaded; but only if the graph names it: importing runs the author's code and takes time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from dask_fleet.services.loading import import_root, is_file_target, put_on_path


class _ServiceFinder(MetaPathFinder):
    """Finds modules that no import statement can mean: those of services served by their file."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None  # noqa: ARG002
    ) -> ModuleSpec | None:
        file = self.files.get(fullname)
        return None if file is None else importlib.util.spec_from_file_location(fullname, file)


def provide(targets: Sequence[str]) -> None:
    """Make the modules of these targets importable, and what lies beside them, by the names they have in worker processes.

    Nothing is imported; a target that is not there is left out. Twice is harmless.
    """
    finder = next((found for found in sys.meta_path if isinstance(found, _ServiceFinder)), None)
    if finder is None:
        finder = _ServiceFinder()
        sys.meta_path.append(finder)
    for target in targets:
        if not is_file_target(target):
            put_on_path(Path.cwd())
            continue
        file = Path(target).resolve()
        if file.is_file():
            folder, name = import_root(file)
            put_on_path(folder)
            if "." not in name:
                finder.files[name] = file
