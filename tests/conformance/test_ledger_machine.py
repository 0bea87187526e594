import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

from dask_fleet.ledger.memory import MemoryLedger
from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.plugins.clock import Clock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_machine import LedgerMachine


class SQLiteBesideMemory(LedgerMachine):
    """A crash copies the files under the living ledger, as a killed process would leave them, and opens the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.crashes = 0

    def make_ledgers(self, clock: Clock) -> list[Ledger]:
        return [MemoryLedger(clock=clock), SQLiteLedger(self.folder / "0.db", clock=clock)]

    async def crash(self, ledger: Ledger) -> Ledger:
        if isinstance(ledger, MemoryLedger):
            await ledger.close()
            await ledger.open()  # its lease clock begins again where the other's does
            return ledger
        self.crashes += 1
        after = self.folder / f"{self.crashes}.db"
        for suffix in ("", "-wal"):
            before = self.folder / f"{self.crashes - 1}.db{suffix}"
            await asyncio.to_thread(shutil.copyfile, before, f"{after}{suffix}")
        await ledger.close()
        again = SQLiteLedger(after, clock=self.clock)
        await again.open()
        return again

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


TestLedgerMachine = SQLiteBesideMemory.TestCase
TestLedgerMachine.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
