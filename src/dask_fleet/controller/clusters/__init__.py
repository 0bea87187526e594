"""Dask clusters: who gets which slots, and what becomes of a cluster when anything of it is lost."""
