from pathlib import Path

import pytest

from dask_fleet.plugins.result_store import ResultStore
from dask_fleet.results.files import FileResultStore
from dask_fleet.results.memory import MemoryResultStore
from dask_fleet.testing.result_store_conformance import ResultStoreConformance


class TestFileResultStore(ResultStoreConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.spool = tmp_path / "spool"
        self.root = tmp_path / "results"

    def make_store(self) -> ResultStore:
        return FileResultStore(self.root, self.spool)


class TestMemoryResultStore(ResultStoreConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.spool = tmp_path / "spool"

    def make_store(self) -> ResultStore:
        return MemoryResultStore()
