"""The main of an agent process.

The forkserver is started before the agent's own modules are imported: its imports take longest of all, and who waits for a
first worker process waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from dask_fleet.agent import forkservers
from dask_fleet.agent.address import refuse_clear_text, refuse_missing_token
from dask_fleet.agent.lock import AgentLock
from dask_fleet.agent.options import AgentOptions, parse_arguments
from dask_fleet.agent.orphans import become_subreaper
from dask_fleet.agent.worker_environment import set_worker_environment
from dask_fleet.config.secret import SECRET_VARIABLES
from dask_fleet.model.errors import SetupError
from dask_fleet.observability import logs

log = logging.getLogger(__name__)


def run(options: AgentOptions) -> int:
    """Run an agent in this process until it ends; returns the exit code.

    0: told to end, at the end of its lifetime, or orphaned. 1: refused by the server, never reached it, or another agent
    works in the same folder. 2: there is no token. 78: the token would travel in the clear.
    """
    try:
        if options.server is not None:
            refuse_clear_text(options.server)
            refuse_missing_token(options.token_file)
    except SetupError as exc:
        log.critical("%s", exc.detail)
        return exc.exit_code
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)  # nothing this process starts shall inherit a token
    set_worker_environment(os.environ)
    try:
        become_subreaper()
    except OSError as exc:
        log.warning("what a killed forkserver leaves cannot be found: %s", exc, extra={"action": "no_subreaper"})
    for folder in (options.data_dir, options.spool, options.logs):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = AgentLock(options.data_dir)
    try:
        lock.acquire()
    except SetupError as exc:
        log.critical("%s", exc.detail)
        return exc.exit_code
    try:
        forkservers.begin()
        return _run(options)
    except SetupError as exc:
        log.critical("%s", exc.detail)
        return exc.exit_code
    finally:
        forkservers.stop()
        lock.release()


def _run(options: AgentOptions) -> int:
    from dask_fleet.agent.agent import Agent
    from dask_fleet.agent.outbox import Outbox
    from dask_fleet.config.threads import have_threads

    async def whole() -> int:
        return await Agent(options, outbox).run()

    outbox = Outbox(options.data_dir / "agent-outbox", options.spool)
    try:
        outbox.load()
        with asyncio.Runner(loop_factory=_event_loop) as runner:
            have_threads(runner.get_loop())
            return runner.run(whole())
    finally:
        outbox.close()


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m dask_fleet.agent``."""
    options = parse_arguments(argv)
    logs.configure()
    return run(options)
