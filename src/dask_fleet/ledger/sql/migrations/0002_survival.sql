-- compatible_from: 1
--
-- Whose fault the death of a worker process was, and the leases of agents. Only additions with constant defaults, so that the
-- version before works on with the same file: it neither reads nor writes what it does not know.

ALTER TABLE jobs ADD COLUMN deaths       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN memory_kills INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN losses       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN suspect      INTEGER NOT NULL DEFAULT 0;

ALTER TABLE past_runs ADD COLUMN deaths       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE past_runs ADD COLUMN memory_kills INTEGER NOT NULL DEFAULT 0;
ALTER TABLE past_runs ADD COLUMN losses       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE past_runs ADD COLUMN suspect      INTEGER NOT NULL DEFAULT 0;

-- The newest lease of each agent. Times are UTC, but for expires_us, which is on the lease clock (meta: lease_clock_us).
CREATE TABLE agent_leases (
    agent      TEXT    PRIMARY KEY,
    name       TEXT    NOT NULL,
    pool       TEXT    NOT NULL,
    epoch      INTEGER NOT NULL CHECK (epoch >= 1),
    state      TEXT    NOT NULL CHECK (state IN ('held', 'lapsed', 'released')),
    granted_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    ended_us   INTEGER,
    CHECK ((state = 'held') = (ended_us IS NULL))
) STRICT, WITHOUT ROWID;

-- Which stored bytes a result names; small results, which have no location, are not in it.
CREATE INDEX results_by_location ON results (location) WHERE location IS NOT NULL;
