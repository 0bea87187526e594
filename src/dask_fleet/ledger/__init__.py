"""The durable record: SQLite and memory behind one port, SQL in named files.

Both implementations decide in the same pure functions (`changes`) and differ only in where they keep the outcome.
"""
