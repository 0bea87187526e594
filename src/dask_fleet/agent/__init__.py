"""The agent: our supervisor process on a host. It runs no user code; its worker processes do.

::

    main ── link ── connection        the websocket home, reconnecting
      │       └──── outbox            outcomes until they are acknowledged, on disk while disconnected
      └── supervisor ── attempts      what is running, when it is due (pure)
             └───────── workers       one handle a worker process (forkserver, socket pair)
    ─────────────────────────────── process boundary
    worker_process ── runner ── pool · event_loop · dask_runtime · job_clients
           └───────── capture ── output     what attempts write, into files
"""
