-- insert_job: A new job with its first run; nothing if its id is known.
INSERT INTO jobs (seq, job_id, tenant, service, endpoint, version, user, pure, created_us, tags, run, state, attempt, agent,
                  reason, opened_by, opened_us, started_us, finished_us, not_before_us, priority, deadline_us, policy,
                  exceptions, faults, cancel_requested_by, failure, result_run, result_expires_us, params)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (job_id) DO NOTHING;

-- insert_large_params: Parameters too large for the job's row.
INSERT INTO large_params (job_seq, params) VALUES (?, ?);

-- update_job: The one way a run changes: all that can change, guarded by run, attempt and state as they were read.
UPDATE jobs
   SET run = ?, state = ?, attempt = ?, agent = ?, reason = ?, opened_by = ?, opened_us = ?, started_us = ?, finished_us = ?,
       not_before_us = ?, priority = ?, deadline_us = ?, policy = ?, exceptions = ?, faults = ?, cancel_requested_by = ?,
       failure = ?, result_run = ?, result_expires_us = ?
 WHERE seq = ? AND run = ? AND attempt = ? AND state = ?;

-- file_run: Keep the current run's story before the next one takes its place.
INSERT INTO past_runs (job_seq, run, state, reason, opened_by, opened_us, started_us, finished_us, priority, deadline_us,
                       policy, exceptions, faults, cancel_requested_by, failure)
SELECT seq, run, state, reason, opened_by, opened_us, started_us, finished_us, priority, deadline_us,
       policy, exceptions, faults, cancel_requested_by, failure
  FROM jobs WHERE seq = ?;

-- insert_event: One line of a job's story.
INSERT INTO events (job_seq, event_id, run, attempt, kind, at_us, data) VALUES (?, ?, ?, ?, ?, ?, ?);

-- insert_two_events: Accepted and started, in one statement.
INSERT INTO events (job_seq, event_id, run, attempt, kind, at_us, data) VALUES (?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?);

-- insert_attempt: An attempt that has ended.
INSERT INTO attempts (job_seq, attempt, run, state, agent, worker, started_us, finished_us, failure)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- insert_result: What a run gave.
INSERT INTO results (id, media_type, digest, size, location, created_us, expires_us, body, json)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- supersede_result: A newer result has taken its place; those who read it have a while to end.
UPDATE results SET expires_us = min(expires_us, ?) WHERE id = ?;

-- set_tags: A job's tags as its record shows them.
UPDATE jobs SET tags = ? WHERE seq = ?;

-- insert_tag: Find a job by its tag.
INSERT OR IGNORE INTO tags (tenant, tag, job_seq) VALUES (?, ?, ?);

-- idempotent_request: What an idempotency key stands for.
SELECT request_digest, job_seq FROM idempotency WHERE tenant = ? AND user = ? AND key = ?;

-- keep_idempotent_request: From now on the key stands for this request.
INSERT OR REPLACE INTO idempotency (tenant, user, key, request_digest, job_seq, created_us) VALUES (?, ?, ?, ?, ?, ?);

-- insert_clock_step: The clock went backwards before this job.
INSERT OR IGNORE INTO clock_steps (seq) VALUES (?);

-- put_token: Keep a token.
INSERT OR REPLACE INTO tokens (token_id, digest, user, tenant, scopes, created_us, expires_us, revoked_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- set_meta: Remember a fact about the ledger.
INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?);
