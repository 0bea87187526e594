from pathlib import Path

import pytest

from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance import LedgerConformance


class TestSQLiteLedger(LedgerConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_ledger(self, clock: Clock) -> Ledger:
        return SQLiteLedger(self.folder / "ledger.db", clock=clock)


class TestMemoryLedger(LedgerConformance):
    def make_ledger(self, clock: Clock) -> Ledger:
        return MemoryLedger(clock=clock)

    async def reopened(self, ledger: Ledger, clock: Clock) -> Ledger:
        await ledger.close()
        await ledger.open()
        return ledger
