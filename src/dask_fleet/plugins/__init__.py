"""The ports (abstract base classes whose docstrings are contracts), the clock, and the entry-point registry."""
