-- A ledger of schema 1, dumped as the code of commit 07ec0fc left it; the statements beside it are that commit's too.
-- One job in each state, one of them in its second run, one with large parameters. Never made anew: it is what upgrades find.
PRAGMA user_version = 1;
BEGIN TRANSACTION;
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
INSERT INTO "attempts" VALUES(1,1,1,'succeeded','local-old','w-1',1767225600001000,1767225600001005,NULL);
INSERT INTO "attempts" VALUES(2,1,1,'failed','local-old','w-1',1767225600003000,1767225600003005,'{"cause":"exception","message":"boom","type":"ValueError"}');
INSERT INTO "attempts" VALUES(2,2,1,'failed','local-old','w-1',1767225600005000,1767225600005005,'{"cause":"worker_died","message":"exit code 3","traceback":"at\nline"}');
INSERT INTO "attempts" VALUES(2,3,2,'failed','local-old','w-1',1767225600007000,1767225600007005,'{"cause":"exception","message":"boom","type":"ValueError"}');
INSERT INTO "attempts" VALUES(5,1,1,'cancelled','local-old','w-1',1767225600011000,1767225600011005,NULL);
INSERT INTO "attempts" VALUES(6,1,1,'succeeded','local-old','w-1',1767225600014000,1767225600014005,NULL);
CREATE TABLE clock_steps (
    seq INTEGER PRIMARY KEY
) STRICT;
CREATE TABLE doomed_locations (
    location TEXT PRIMARY KEY
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
INSERT INTO "events" VALUES(1,1,1,0,'accepted',1767225600001000,'{"by":"ada"}');
INSERT INTO "events" VALUES(1,2,1,1,'started',1767225600001000,'{"agent":"local-old"}');
INSERT INTO "events" VALUES(1,3,1,1,'succeeded',1767225600002000,NULL);
INSERT INTO "events" VALUES(2,4,1,0,'accepted',1767225600003000,'{"by":"ada"}');
INSERT INTO "events" VALUES(2,5,1,1,'started',1767225600003000,'{"agent":"local-old"}');
INSERT INTO "events" VALUES(2,6,1,1,'retrying',1767225600004000,'{"cause":"exception","not_before_us":0}');
INSERT INTO "events" VALUES(2,7,1,2,'started',1767225600005000,'{"agent":"local-old"}');
INSERT INTO "events" VALUES(2,8,1,2,'failed',1767225600006000,'{"cause":"worker_died"}');
INSERT INTO "events" VALUES(2,9,2,2,'reopened',1767225600007000,'{"by":"eve","reason":"retry"}');
INSERT INTO "events" VALUES(2,10,2,3,'started',1767225600007000,'{"agent":"local-old"}');
INSERT INTO "events" VALUES(2,11,2,3,'failed',1767225600008000,'{"cause":"exception"}');
INSERT INTO "events" VALUES(3,12,1,0,'accepted',1767225600009000,'{"by":"ada"}');
INSERT INTO "events" VALUES(4,13,1,0,'accepted',1767225600010000,'{"by":"ada"}');
INSERT INTO "events" VALUES(4,14,1,1,'started',1767225600010000,'{"agent":"local-old"}');
INSERT INTO "events" VALUES(5,15,1,0,'accepted',1767225600011000,'{"by":"ada"}');
INSERT INTO "events" VALUES(5,16,1,1,'started',1767225600011000,'{"agent":"local-old"}');
INSERT INTO "events" VALUES(5,17,1,1,'cancel_requested',1767225600012000,'{"by":"ada"}');
INSERT INTO "events" VALUES(5,18,1,1,'cancelled',1767225600013000,'{"by":"ada"}');
INSERT INTO "events" VALUES(6,19,1,0,'accepted',1767225600014000,'{"by":"ada"}');
INSERT INTO "events" VALUES(6,20,1,1,'started',1767225600014000,'{"agent":"local-old"}');
INSERT INTO "events" VALUES(6,21,1,1,'succeeded',1767225600015000,NULL);
CREATE TABLE idempotency (
    tenant         TEXT    NOT NULL,
    user           TEXT    NOT NULL,
    key            TEXT    NOT NULL,
    request_digest BLOB    NOT NULL,
    job_seq        INTEGER NOT NULL,
    created_us     INTEGER NOT NULL,
    PRIMARY KEY (tenant, user, key)
) STRICT, WITHOUT ROWID;
INSERT INTO "idempotency" VALUES('default','ada','key',X'0101010101010101010101010101010101010101010101010101010101010101',3,1767225600009000);
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
INSERT INTO "jobs" VALUES(1,'done','default','flights','delay','1+abc','ada',1,1767225600001000,'["nightly"]',1,'succeeded',1,NULL,'post','ada',1767225600001000,1767225600001000,1767225600002000,0,0,NULL,'{"cache_s":3600.0,"timeout_s":3600.0,"retries":2,"pure":true,"max_result_bytes":2147483648}',0,0,NULL,NULL,1,1767229200002000,X'7B226D6F6E7468223A317D');
INSERT INTO "jobs" VALUES(2,'failed','default','flights','delay','1+abc','ada',1,1767225600003000,NULL,2,'failed',3,NULL,'retry','eve',1767225600007000,1767225600007000,1767225600008000,0,0,NULL,'{"cache_s":3600.0,"timeout_s":3600.0,"retries":2,"pure":true,"max_result_bytes":2147483648}',0,0,NULL,'{"cause":"exception","message":"boom","type":"ValueError"}',NULL,NULL,X'7B226D6F6E7468223A317D');
INSERT INTO "jobs" VALUES(3,'waits','default','flights','delay','1+abc','ada',1,1767225600009000,'["nightly","x"]',1,'queued',0,NULL,'post','ada',1767225600009000,NULL,NULL,0,7,NULL,'{"cache_s":3600.0,"timeout_s":3600.0,"retries":2,"pure":true,"max_result_bytes":2147483648}',0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(4,'runs','default','flights','delay','1+abc','ada',1,1767225600010000,NULL,1,'running',1,'local-old','post','ada',1767225600010000,1767225600010000,NULL,0,0,NULL,'{"cache_s":3600.0,"timeout_s":3600.0,"retries":2,"pure":true,"max_result_bytes":2147483648}',0,0,NULL,NULL,NULL,NULL,X'7B226D6F6E7468223A317D');
INSERT INTO "jobs" VALUES(5,'cancelled','default','flights','delay','1+abc','ada',1,1767225600011000,NULL,1,'cancelled',1,NULL,'post','ada',1767225600011000,1767225600011000,1767225600013000,0,0,NULL,'{"cache_s":3600.0,"timeout_s":3600.0,"retries":2,"pure":true,"max_result_bytes":2147483648}',0,0,'ada',NULL,NULL,NULL,X'7B226D6F6E7468223A317D');
INSERT INTO "jobs" VALUES(6,'large','default','flights','delay','1+abc','ada',1,1767225600014000,NULL,1,'succeeded',1,NULL,'post','ada',1767225600014000,1767225600014000,1767225600015000,0,0,NULL,'{"cache_s":3600.0,"timeout_s":3600.0,"retries":2,"pure":true,"max_result_bytes":2147483648}',0,0,NULL,NULL,1,1767229200015000,X'7B226D6F6E7468223A317D');
CREATE TABLE large_params (
    job_seq INTEGER PRIMARY KEY,
    params  BLOB NOT NULL
) STRICT;
INSERT INTO "large_params" VALUES(3,X'7B2274657874223A227878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878227D');
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('event_ids_reserved','100001');
INSERT INTO "meta" VALUES('ledger_id','3b51cce843c9b39c89ea792496ca24c8');
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
INSERT INTO "past_runs" VALUES(2,1,'failed','post','ada',1767225600003000,1767225600005000,1767225600006000,0,NULL,'{"cache_s":3600.0,"timeout_s":3600.0,"retries":2,"pure":true,"max_result_bytes":2147483648}',1,1,NULL,'{"cause":"worker_died","message":"exit code 3","traceback":"at\nline"}');
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
INSERT INTO "results" VALUES(1048577,'application/json','abababababababababababababababababababababababababababababababab',2,NULL,1767225600002000,1767229200002000,X'3432',NULL);
INSERT INTO "results" VALUES(6291457,'application/x-npy','abababababababababababababababababababababababababababababababab',300000,'ab/ababababababababababababababababababababababababababababababab',1767225600015000,1767229200015000,NULL,NULL);
CREATE TABLE tags (
    tenant  TEXT    NOT NULL,
    tag     TEXT    NOT NULL,
    job_seq INTEGER NOT NULL,
    PRIMARY KEY (tenant, tag, job_seq)
) STRICT, WITHOUT ROWID;
INSERT INTO "tags" VALUES('default','nightly',1);
INSERT INTO "tags" VALUES('default','nightly',3);
INSERT INTO "tags" VALUES('default','x',3);
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
INSERT INTO "tokens" VALUES('op',X'0202020202020202020202020202020202020202020202020202020202020202','ada','default','["admin"]',1767225600000000,NULL,NULL);
CREATE UNIQUE INDEX jobs_by_id ON jobs (job_id);
CREATE INDEX jobs_by_state ON jobs (state, tenant);
CREATE INDEX jobs_by_endpoint ON jobs (tenant, service, endpoint);
CREATE INDEX jobs_by_user ON jobs (tenant, user);
CREATE INDEX jobs_purgeable ON jobs (finished_us) WHERE finished_us IS NOT NULL AND result_run IS NULL;
CREATE INDEX results_by_expiry ON results (expires_us);
CREATE INDEX idempotency_by_time ON idempotency (created_us);
COMMIT;
