"""Dask's adaptive scaling, of a `FleetCluster`."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from distributed.deploy.adaptive import Adaptive

from dask_fleet.model.errors import FleetError

log = logging.getLogger(__name__)
T = TypeVar("T")


class FleetAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling; the server has workers retired, with their data moved, before it takes them back.

    While the scheduler is lost nothing changes: the next one is asked as soon as it is followed.
    """

    _complained = ""

    async def adapt(self) -> None:
        """Look once, and do what is to be done; what the server refuses is told once, and tried again."""
        try:
            await super().adapt()
        except FleetError as exc:
            if str(exc) != self._complained:
                self._complained = str(exc)
                log.warning("cluster %s stays as large as it is, and is adapted later: %s", self.cluster.name, exc)
        else:
            self._complained = ""

    async def safe_target(self) -> int:
        """Return how many workers there should be; without a scheduler to ask, as many as were asked for last."""
        return await self._ask(super().safe_target(), len(self.plan))

    async def recommendations(self, target: int) -> dict[str, Any]:
        """Return what to change; nothing while the cluster does not see its workers: it would take them for missing."""
        if self._nobody_answers():
            return {"status": "same"}
        return dict(await super().recommendations(target))

    async def workers_to_close(self, target: int) -> list[str]:
        """Return the names of workers that have nothing to do."""
        return list(await self._ask(super().workers_to_close(target), []))

    async def scale_down(self, workers: Iterable[Any]) -> None:
        """Give these workers back: the scheduler has found that they have nothing to do."""
        if workers:
            await self.cluster.scale_down(workers)

    def _nobody_answers(self) -> bool:
        return bool(self.cluster.is_lost or not self.cluster.followed)

    async def _ask(self, question: Coroutine[Any, Any, T], otherwise: T) -> T:
        if self._nobody_answers():
            question.close()
            return otherwise
        try:
            answer: T = await self.cluster.questions.ask(question)
        except OSError as exc:  # also of Dask: the connection is broken; whoever follows the scheduler finds another one
            log.debug("the scheduler of %s does not answer: %r", self.cluster.name, exc)
            return otherwise
        return answer
