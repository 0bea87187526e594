"""What exists: records, enums, transition tables, ids and errors.

Nothing here does I/O, reads a clock or knows asyncio; every other package may import this one.
Records are frozen ``msgspec.Struct``s: they construct ten times faster than frozen dataclasses, which the accept path
pays for several times a call (see ``docs/decisions/0003-records-are-structs.md``).
"""
