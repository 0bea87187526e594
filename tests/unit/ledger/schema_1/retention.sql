-- expired_results: What may be forgotten now.
SELECT id, location FROM results WHERE expires_us <= ? ORDER BY expires_us LIMIT ?;

-- delete_result: One result.
DELETE FROM results WHERE id = ?;

-- forget_result: The job keeps no result any more, unless it already shows another run's.
UPDATE jobs SET result_run = NULL, result_expires_us = NULL WHERE seq = ? AND result_run = ?;

-- doom_location: The result store has to delete it.
INSERT OR IGNORE INTO doomed_locations (location) VALUES (?);

-- doomed_locations: What the result store has to delete.
SELECT location FROM doomed_locations ORDER BY location;

-- forget_location: The result store has deleted it.
DELETE FROM doomed_locations WHERE location = ?;

-- purgeable_jobs: Ended long ago, without a result.
SELECT seq, tenant, tags FROM jobs INDEXED BY jobs_purgeable
 WHERE finished_us IS NOT NULL AND result_run IS NULL AND finished_us < ? ORDER BY finished_us LIMIT ?;

-- superseded_locations: Results of earlier runs that are still there.
SELECT location FROM results WHERE id >= ? AND id < ? AND location IS NOT NULL;

-- delete_results: Of all runs of a job.
DELETE FROM results WHERE id >= ? AND id < ?;

-- delete_events: Of a job.
DELETE FROM events WHERE job_seq = ?;

-- delete_attempts: Of a job.
DELETE FROM attempts WHERE job_seq = ?;

-- delete_past_runs: Of a job.
DELETE FROM past_runs WHERE job_seq = ?;

-- delete_large_params: Of a job.
DELETE FROM large_params WHERE job_seq = ?;

-- delete_tag: Of a job.
DELETE FROM tags WHERE tenant = ? AND tag = ? AND job_seq = ?;

-- delete_job: The row itself.
DELETE FROM jobs WHERE seq = ?;

-- purge_idempotency: Keys that no client repeats any more.
DELETE FROM idempotency WHERE (tenant, user, key) IN
    (SELECT tenant, user, key FROM idempotency WHERE created_us < ? ORDER BY created_us LIMIT ?);
