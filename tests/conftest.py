"""What all tests share: nothing of a fleet may outlive the test (or the module's fixture) that started it."""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Iterator

import dask
import hypothesis
import pytest

from dask_fleet.testing.served import ServedFleet, marked_processes

# A shell that runs the tests in the background lets them ignore Ctrl-C, and every program they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FULL = os.environ.get("PROMISES") == "full"

# The short form tries the same examples each time: what it finds is a change's, not chance's. The long form looks further.
hypothesis.settings.register_profile("short", derandomize=True)
hypothesis.settings.register_profile("full", print_blob=True)
hypothesis.settings.load_profile("full" if FULL else "short")


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    # Those of fleets that are open belong to a fixture of the module.
    left = [process for process in marked_processes(f"{os.getpid()}-") if process.mark not in ServedFleet.running]
    assert not left, f"processes of a fleet outlived the test: {left}"


@pytest.fixture(autouse=True, scope="module")
def dask_is_as_before() -> Iterator[None]:
    """Fail the module that leaves a default client or a changed configuration of Dask behind, rather than a test of
    another module that happens to follow it in the same process; and put the configuration back, for the same reason.

    Two default clients of one process whose lives overlap do this: each puts back what it found
    (``distributed.Client.__init__`` holds a ``dask.config.set``), so the first to open must be the last to close.
    """
    before = copy.deepcopy(dask.config.config)
    yield
    after = dask.config.config
    # A section that is there for the first time came with an import: that of `distributed` brings its defaults.
    changed = {
        key: after.get(key)
        for key in {*before, *after}
        if after.get(key) != before.get(key) and not (key not in before and isinstance(after[key], dict))
    }
    for key in changed:
        if key in before:
            after[key] = before[key]
        else:
            del after[key]
    clients = sys.modules.get("distributed.client")
    left = [] if clients is None else list(clients._global_clients.values())
    assert not left, f"default clients of Dask outlived their module: {left}"
    assert not changed, f"Dask's configuration was left changed: {changed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long forms to `make promises`."""
    if FULL:
        return
    skip = pytest.mark.skip(reason="long form: PROMISES=full")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures that promises were proven with: ``record_property("figures", …)``."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "figures":
                    terminalreporter.write_line(f"{report.nodeid.rpartition('/')[2]}: {value}")
