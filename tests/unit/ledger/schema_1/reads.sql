-- job_by_id: One job; columns in the order of `JobRecord`.
SELECT seq, job_id, tenant, service, endpoint, version, params, user, pure, created_us, tags, run, state, attempt, agent,
       reason, opened_by, opened_us, started_us, finished_us, not_before_us, priority, deadline_us, policy, exceptions,
       faults, cancel_requested_by, failure, result_run, result_expires_us
  FROM jobs WHERE job_id = ?;

-- job_by_seq: The same by the ledger's handle.
SELECT seq, job_id, tenant, service, endpoint, version, params, user, pure, created_us, tags, run, state, attempt, agent,
       reason, opened_by, opened_us, started_us, finished_us, not_before_us, priority, deadline_us, policy, exceptions,
       faults, cancel_requested_by, failure, result_run, result_expires_us
  FROM jobs WHERE seq = ?;

-- large_params: Parameters too large for the job's row.
SELECT params FROM large_params WHERE job_seq = ?;

-- result: Of one run.
SELECT media_type, digest, size, body, location, json, created_us, expires_us FROM results WHERE id = ?;

-- attempts: Those that have ended.
SELECT run, attempt, state, agent, worker, started_us, finished_us, failure
  FROM attempts WHERE job_seq = ? ORDER BY attempt;

-- events: A job's story from some point on.
SELECT event_id, run, attempt, kind, at_us, data
  FROM events WHERE job_seq = ? AND event_id > ? ORDER BY event_id LIMIT ?;

-- count_state: How many runs stand there; asked only of states that a bounded number of runs is in.
SELECT count(*) FROM jobs INDEXED BY jobs_by_state WHERE state = ?;

-- tokens: All of them.
SELECT token_id, digest, user, tenant, scopes, created_us, expires_us, revoked_us FROM tokens ORDER BY token_id;

-- meta: One fact about the ledger.
SELECT value FROM meta WHERE key = ?;

-- last_job: The youngest job.
SELECT seq, created_us FROM jobs ORDER BY seq DESC LIMIT 1;
