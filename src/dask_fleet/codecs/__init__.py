"""Values to bytes and back, and strict JSON.

One file a stored form; :mod:`~dask_fleet.codecs.encode` chooses among them. Nothing heavy is imported until a
value of its kind is met, and nothing here ever reads or writes a pickle.
"""
