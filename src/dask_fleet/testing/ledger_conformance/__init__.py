"""What every ledger must do, sentence by sentence of :class:`dask_fleet.plugins.ledger.Ledger`.

A plug-in's tests subclass :class:`LedgerConformance`, say how a ledger is made, and let pytest collect it::

    class TestMyLedger(LedgerConformance):
        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.folder = tmp_path

        def make_ledger(self, clock):
            return MyLedger(self.folder / "ledger", clock=clock)
"""

from __future__ import annotations

from dask_fleet.testing.ledger_conformance.attempts import AttemptScenarios
from dask_fleet.testing.ledger_conformance.batches import BatchScenarios
from dask_fleet.testing.ledger_conformance.clusters import ClusterScenarios
from dask_fleet.testing.ledger_conformance.guilt import GuiltScenarios
from dask_fleet.testing.ledger_conformance.leases import LeaseScenarios
from dask_fleet.testing.ledger_conformance.reading import ReadingScenarios
from dask_fleet.testing.ledger_conformance.requests import RequestScenarios
from dask_fleet.testing.ledger_conformance.retention import RetentionScenarios
from dask_fleet.testing.ledger_conformance.scenarios import ManualClock, end_of, request, result

__all__ = ["LedgerConformance", "ManualClock", "end_of", "request", "result"]


class LedgerConformance(
    RequestScenarios,
    BatchScenarios,
    AttemptScenarios,
    GuiltScenarios,
    LeaseScenarios,
    ClusterScenarios,
    ReadingScenarios,
    RetentionScenarios,
):
    """Subclass it and say how a ledger is made."""
