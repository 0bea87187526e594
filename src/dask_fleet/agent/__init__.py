"""The agent: our supervisor process on a host. It runs no user code; its worker processes do.

::

    main ── link ── connection        the websocket home, reconnecting
      │       └──── outbox            outcomes until they are acknowledged, on disk while disconnected
      └── supervisor ── attempts · deaths    what is running, when it is due, whose fault an end is (pure)
             └───────── processes     how many there are, what they have loaded
                   ├─── workers       one handle a worker process: child_process (socket pair, framing), stray output
                   ├─── watch         memory and stops, by /proc
                   └─── launcher      the forkserver (forker); ends orphans
    ─────────────────────────────── process boundary
    worker_process ── runner ── pool · event_loop · dask_runtime · job_clients
           └───────── capture ── output     what attempts write, into files
"""
