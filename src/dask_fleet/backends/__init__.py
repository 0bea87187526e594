"""How agents are launched: one module a cluster manager. Nothing here speaks Dask in the server process."""
