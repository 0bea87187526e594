-- Jobs with their current run, the runs before it, ended attempts, events, results, tags, tokens.
--
-- The current run lives in its job's row: a call writes one row less, at most one attempt of a job can be running because
-- there is only one place to write it, and a listing needs no join. Times are UTC in microseconds.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    seq                 INTEGER PRIMARY KEY,
    job_id              TEXT    NOT NULL,
    tenant              TEXT    NOT NULL,
    service             TEXT    NOT NULL,
    endpoint            TEXT    NOT NULL,
    version             TEXT    NOT NULL,
    user                TEXT    NOT NULL,
    pure                INTEGER NOT NULL,
    created_us          INTEGER NOT NULL,
    tags                TEXT,
    run                 INTEGER NOT NULL CHECK (run >= 1),
    state               TEXT    NOT NULL
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired')),
    attempt             INTEGER NOT NULL CHECK (attempt >= 0),
    agent               TEXT,
    reason              TEXT    NOT NULL CHECK (reason IN ('post', 'retry', 'refresh')),
    opened_by           TEXT    NOT NULL,
    opened_us           INTEGER NOT NULL,
    started_us          INTEGER,
    finished_us         INTEGER,
    not_before_us       INTEGER NOT NULL,
    priority            INTEGER NOT NULL,
    deadline_us         INTEGER,
    policy              TEXT    NOT NULL,
    exceptions          INTEGER NOT NULL,
    faults              INTEGER NOT NULL,
    cancel_requested_by TEXT,
    failure             TEXT,
    result_run          INTEGER,
    result_expires_us   INTEGER,
    params              BLOB,  -- last, and NULL when they are in large_params: a change of state rewrites the whole row
    CHECK ((state = 'running') = (agent IS NOT NULL)),
    CHECK ((state IN ('queued', 'running')) = (finished_us IS NULL)),
    CHECK ((result_run IS NULL) = (result_expires_us IS NULL))
) STRICT;

-- The only index whose inserts land anywhere; all others append within their key.
CREATE UNIQUE INDEX jobs_by_id ON jobs (job_id);
CREATE INDEX jobs_by_state ON jobs (state, tenant);
CREATE INDEX jobs_by_endpoint ON jobs (tenant, service, endpoint);
CREATE INDEX jobs_by_user ON jobs (tenant, user);
-- What purge_jobs may take. A job with a result is not in it, so that a successful call pays nothing for it.
CREATE INDEX jobs_purgeable ON jobs (finished_us) WHERE finished_us IS NOT NULL AND result_run IS NULL;

CREATE TABLE large_params (
    job_seq INTEGER PRIMARY KEY,
    params  BLOB NOT NULL
) STRICT;

-- Runs that were followed by another one.
CREATE TABLE past_runs (
    job_seq             INTEGER NOT NULL,
    run                 INTEGER NOT NULL,
    state               TEXT    NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled', 'expired')),
    reason              TEXT    NOT NULL,
    opened_by           TEXT    NOT NULL,
    opened_us           INTEGER NOT NULL,
    started_us          INTEGER,
    finished_us         INTEGER NOT NULL,
    priority            INTEGER NOT NULL,
    deadline_us         INTEGER,
    policy              TEXT    NOT NULL,
    exceptions          INTEGER NOT NULL,
    faults              INTEGER NOT NULL,
    cancel_requested_by TEXT,
    failure             TEXT,
    PRIMARY KEY (job_seq, run)
) STRICT, WITHOUT ROWID;

-- Attempts that have ended: the one under way is in the job's row. The key refuses a second end of the same attempt.
CREATE TABLE attempts (
    job_seq     INTEGER NOT NULL,
    attempt     INTEGER NOT NULL CHECK (attempt >= 1),
    run         INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled', 'lost')),
    agent       TEXT    NOT NULL,
    worker      TEXT    NOT NULL,
    started_us  INTEGER NOT NULL,
    finished_us INTEGER NOT NULL,
    failure     TEXT,
    PRIMARY KEY (job_seq, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    job_seq  INTEGER NOT NULL,
    event_id INTEGER NOT NULL,
    run      INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    kind     TEXT    NOT NULL CHECK (kind IN ('accepted', 'reopened', 'started', 'retrying', 'cancel_requested',
                                              'succeeded', 'failed', 'cancelled', 'expired')),
    at_us    INTEGER NOT NULL,
    data     TEXT,
    PRIMARY KEY (job_seq, event_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE results (
    id         INTEGER PRIMARY KEY,  -- (job_seq << 20) | run: one tree serves rows of any size and finds all runs of a job
    media_type TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    location   TEXT,
    created_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    body       BLOB,
    json       BLOB,
    CHECK ((body IS NULL) <> (location IS NULL))
) STRICT;

CREATE INDEX results_by_expiry ON results (expires_us);

-- Locations that no result names any more and that the result store has still to delete.
CREATE TABLE doomed_locations (
    location TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE tags (
    tenant  TEXT    NOT NULL,
    tag     TEXT    NOT NULL,
    job_seq INTEGER NOT NULL,
    PRIMARY KEY (tenant, tag, job_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    tenant         TEXT    NOT NULL,
    user           TEXT    NOT NULL,
    key            TEXT    NOT NULL,
    request_digest BLOB    NOT NULL,
    job_seq        INTEGER NOT NULL,
    created_us     INTEGER NOT NULL,
    PRIMARY KEY (tenant, user, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_time ON idempotency (created_us);

-- Where the clock went backwards: between two of these, created_us ascends with seq, so that a time filter becomes a range
-- of seq by binary search, and no call pays for an index on time.
CREATE TABLE clock_steps (
    seq INTEGER PRIMARY KEY
) STRICT;

CREATE TABLE tokens (
    token_id   TEXT PRIMARY KEY,
    digest     BLOB    NOT NULL,
    user       TEXT    NOT NULL,
    tenant     TEXT    NOT NULL,
    scopes     TEXT    NOT NULL,
    created_us INTEGER NOT NULL,
    expires_us INTEGER,
    revoked_us INTEGER
) STRICT, WITHOUT ROWID;
