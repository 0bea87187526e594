"""A `FleetCluster` shows itself whatever its state, in terminals and notebooks, with and without widgets."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import dask
import pytest
from distributed import LocalCluster
from tests.unit.client.cluster_server import DEADLINE_S, Remote, until

from dask_fleet import FleetCluster
from dask_fleet.client.cluster_questions import Questions, SchedulerLost
from dask_fleet.client.cluster_shown import NO_ANSWER

WIDGETS = ("HTML", "Accordion", "Button", "HBox", "IntText", "Layout", "Tab", "VBox")


class Widget:
    """Stands for any of ipywidgets: they only draw."""

    made: ClassVar[list[Widget]] = []

    def __init__(self, value: Any = None, **_: Any) -> None:
        self.value = value
        self.made.append(self)

    def set_title(self, *_: Any) -> None:
        pass

    def on_click(self, clicked: Callable[[Any], None]) -> None:
        self.click = clicked

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"application/vnd.jupyter.widget-view+json": {}}


class Notebook:
    """What IPython was given to display."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def display(self, thing: Any, **_: Any) -> None:
        self.shown.append(thing)


@pytest.fixture(params=["none", "7.8.1", "8.1.2"])
def notebook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """A notebook with one version of ipywidgets or without."""
    notebook, display, widgets = Notebook(), ModuleType("IPython.display"), ModuleType("ipywidgets")
    display.display = notebook.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(Widget, "made", [])
    widgets.__version__ = request.param  # type: ignore[attr-defined]
    for name in WIDGETS:
        setattr(widgets, name, Widget)
    monkeypatch.setitem(sys.modules, "ipywidgets", None if request.param == "none" else widgets)  # type: ignore[arg-type]
    return notebook


def look(cluster: Any, notebook: Notebook) -> str:
    """Look at everything there is to see; returns the text."""
    notebook.shown.clear()
    cluster._ipython_display_()
    assert len(notebook.shown) == 1
    html = cluster._repr_html_()
    assert cluster.name in html
    assert isinstance(cluster.dashboard_link, str)
    assert isinstance(cluster.scheduler_address, str)
    assert cluster._scaling_status()
    if isinstance(notebook.shown[0], dict):
        assert cluster.name in notebook.shown[0]["text/plain"]
    return repr(cluster)


def test_in_every_state(server: Remote, notebook: Notebook, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        # Who tries the old address does so for as long: the test would not end.
        dask.config.set({"distributed.deploy.cluster-repr-interval": "10ms", "distributed.comm.timeouts.connect": "600s"}),
        FleetCluster(n_workers=1, name="looked-at", quiet=True, **server.options) as cluster,
    ):
        until(lambda: cluster.followed, "the cluster to be followed")
        until(lambda: "workers=1" in look(cluster, notebook), "its worker to be seen")
        assert set(cluster.get_logs()) >= {"Cluster", "Scheduler"}
        server.replace("looked-at", pending=True)
        until(lambda: cluster.is_lost, "the loss to be seen")
        assert look(cluster, notebook) == "FleetCluster('looked-at', has lost its scheduler, wanted=1)"
        assert "has lost its scheduler" in cluster._repr_html_()
        logs = cluster.get_logs()
        assert logs["Scheduler"] == NO_ANSWER
        assert "opened" in logs["Cluster"]
        assert set(cluster.get_logs(cluster=False)) == {"Scheduler"}
        if Widget.made:
            until(lambda: "has lost its scheduler" in str(Widget.made[1].value), "the widget to be drawn again")
        server.set(hold=False)
        until(lambda: "tls://" in look(cluster, notebook), "the new scheduler")
        assert cluster.get_logs()["Scheduler"] != NO_ANSWER
    assert look(cluster, notebook) == "FleetCluster('looked-at', closed)"
    again = FleetCluster(n_workers=0, name="ended", quiet=True, **server.options)
    until(lambda: again.followed, "the cluster to be followed")
    look(again, notebook)
    server.end("ended", "idle for 20 min")
    until(lambda: "closed" in look(again, notebook), "its end to be seen")
    again.close()
    assert not [record for record in caplog.records if record.exc_info], "nothing raised behind the scenes"


def test_before_it_runs(server: Remote, notebook: Notebook) -> None:
    async def main() -> None:
        cluster = FleetCluster(n_workers=1, name="pending", asynchronous=True, quiet=True, **server.options)
        assert look(cluster, notebook) == "FleetCluster('pending', not started)"
        logs = await cluster.get_logs()
        assert (logs["Cluster"], logs["Scheduler"]) == ("it is not started yet", NO_ANSWER)
        server.set(hold=True)

        async def take() -> None:
            await cluster

        task = asyncio.create_task(take())
        while server.state()["clusters"].get("pending", {}).get("status") != "pending":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert look(cluster, notebook) == "FleetCluster('pending', starting)"
        assert (await cluster.get_logs())["Scheduler"] == NO_ANSWER
        server.set(hold=False)
        await task
        assert "tls://" in look(cluster, notebook)
        await cluster.close()
        assert look(cluster, notebook) == "FleetCluster('pending', closed)"
        assert (await cluster.get_logs())["Scheduler"] == NO_ANSWER

    asyncio.run(main())


def test_the_same_looks_as_of_dasks_own(notebook: Notebook) -> None:
    with LocalCluster(name="local", n_workers=1, processes=False, dashboard_address=":0") as cluster:
        assert "workers=1" in look(cluster, notebook)
    assert look(cluster, notebook)


def test_buttons(server: Remote, notebook: Notebook) -> None:
    with FleetCluster(n_workers=0, name="buttons", quiet=True, **server.options) as cluster:
        look(cluster, notebook)
        if not Widget.made:
            return
        request, minimum, maximum = (widget for widget in Widget.made if widget.value == 0)
        scale, adapt = (widget for widget in Widget.made if hasattr(widget, "click"))
        request.value = 1
        scale.click(None)
        assert cluster.n_workers == 1
        minimum.value, maximum.value = 2, 2
        adapt.click(None)
        until(lambda: cluster.n_workers == 2, "it to be adapted")


def test_questions_end_with_their_scheduler() -> None:
    async def deaf() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if ended.is_set():
                    raise

    async def main() -> None:
        questions = Questions()
        asked = asyncio.create_task(questions.ask(deaf()))
        await asyncio.sleep(0)
        questions.drop()
        with pytest.raises(SchedulerLost):
            async with asyncio.timeout(DEADLINE_S):
                await asked
        ended.set()
        assert await questions.ask(asyncio.sleep(0, 5)) == 5

    ended = asyncio.Event()
    asyncio.run(main())
