-- compatible_from: 1
--
-- Dask clusters, the slots they are lent, and their story. Only new tables: no job pays for them, and the version before works
-- on with the same file without looking at them. Times are UTC in microseconds.

CREATE TABLE clusters (
    cluster_id TEXT    PRIMARY KEY,
    name       TEXT    NOT NULL,
    tenant     TEXT    NOT NULL,
    user       TEXT    NOT NULL,
    kind       TEXT    NOT NULL CHECK (kind IN ('user', 'job', 'spare')),
    spec       TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('pending', 'starting', 'running', 'closing', 'closed', 'failed')),
    epoch      INTEGER NOT NULL CHECK (epoch >= 0),
    agent      TEXT,
    address    TEXT    NOT NULL,
    dashboard  TEXT    NOT NULL,
    ca         BLOB    NOT NULL,
    job_seq    INTEGER,
    attempt    INTEGER,
    created_us INTEGER NOT NULL,
    running_us INTEGER,
    closed_us  INTEGER,
    reason     TEXT    NOT NULL,
    CHECK ((state IN ('closed', 'failed')) = (closed_us IS NOT NULL)),
    CHECK (state NOT IN ('starting', 'running') OR agent IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- One name, one living cluster of a tenant; and how the living ones are found.
CREATE UNIQUE INDEX clusters_living ON clusters (tenant, name) WHERE closed_us IS NULL;
CREATE INDEX clusters_by_tenant ON clusters (tenant, created_us);
CREATE INDEX clusters_ended ON clusters (closed_us) WHERE closed_us IS NOT NULL;

CREATE TABLE slot_leases (
    lease_id   TEXT    PRIMARY KEY,
    cluster_id TEXT    NOT NULL,
    epoch      INTEGER NOT NULL CHECK (epoch >= 1),
    agent      TEXT    NOT NULL,
    worker     TEXT    NOT NULL,
    threads    INTEGER NOT NULL CHECK (threads >= 1),
    fresh      INTEGER NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('granted', 'joined', 'leaving', 'released', 'lapsed')),
    granted_us INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    UNIQUE (cluster_id, worker)
) STRICT, WITHOUT ROWID;

CREATE INDEX slot_leases_held ON slot_leases (cluster_id) WHERE state IN ('granted', 'joined', 'leaving');

CREATE TABLE cluster_events (
    cluster_id TEXT    NOT NULL,
    event_id   INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    kind       TEXT    NOT NULL,
    at_us      INTEGER NOT NULL,
    data       TEXT,
    PRIMARY KEY (cluster_id, event_id)
) STRICT, WITHOUT ROWID;
