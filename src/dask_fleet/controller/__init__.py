"""The controller: accepts requests, gives them to agents, decides what outcomes mean, and recovers after crashes.

Decisions are pure (:mod:`~dask_fleet.controller.decisions`, :mod:`~dask_fleet.controller.fair_queue`); the ledger's guarded
writes make them true; :class:`~dask_fleet.controller.controller.Controller` joins the two. Requests come in by
:mod:`~dask_fleet.controller.intake`, go out by :mod:`~dask_fleet.controller.dispatcher`, and end in
:mod:`~dask_fleet.controller.outcomes`; :mod:`~dask_fleet.controller.clusters` keeps Dask clusters.
"""
