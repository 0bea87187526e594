"""The controller: accepts requests, gives them to agents, decides what outcomes mean, and recovers after crashes.

Decisions are pure (:mod:`~dask_fleet.controller.decisions`, :mod:`~dask_fleet.controller.fair_queue`); the ledger's guarded
writes make them true; :class:`~dask_fleet.controller.controller.Controller` joins the two.
"""
