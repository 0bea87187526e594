-- next_tenant_in_state: Hop from one tenant to the next in the index instead of reading all rows.
SELECT tenant FROM jobs INDEXED BY jobs_by_state WHERE state = ? AND tenant > ? ORDER BY tenant LIMIT 1;

-- next_endpoint: Hop from one endpoint of a service to the next.
SELECT endpoint FROM jobs INDEXED BY jobs_by_endpoint
 WHERE tenant = ? AND service = ? AND endpoint > ? ORDER BY endpoint LIMIT 1;

-- unfinished: Ascending, of one tenant in one state.
SELECT seq FROM jobs INDEXED BY jobs_by_state WHERE state = ? AND tenant = ? AND seq > ? ORDER BY seq LIMIT ?;

-- by_state: Newest first, within a range of seq.
SELECT seq FROM jobs INDEXED BY jobs_by_state
 WHERE state = ? AND tenant = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?;

-- by_endpoint: Newest first, within a range of seq.
SELECT seq FROM jobs INDEXED BY jobs_by_endpoint
 WHERE tenant = ? AND service = ? AND endpoint = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?;

-- by_user: Newest first, within a range of seq.
SELECT seq FROM jobs INDEXED BY jobs_by_user
 WHERE tenant = ? AND user = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?;

-- by_tag: Newest first, within a range of seq.
SELECT job_seq FROM tags
 WHERE tenant = ? AND tag = ? AND job_seq >= ? AND job_seq < ? ORDER BY job_seq DESC LIMIT ?;

-- clock_steps: Where created_us does not ascend with seq.
SELECT seq FROM clock_steps ORDER BY seq;

-- first_created_from: The oldest job from some seq on.
SELECT seq, created_us FROM jobs WHERE seq >= ? ORDER BY seq LIMIT 1;

-- fitting: Those of the candidates that the other indexes hold as well, without reading a row; a condition that is NULL is none.
SELECT candidate.value
  FROM json_each(:candidates) AS candidate
 WHERE (:state IS NULL OR EXISTS (
           SELECT 1 FROM jobs INDEXED BY jobs_by_state
            WHERE state = :state AND tenant = :tenant AND seq = candidate.value))
   AND (:user IS NULL OR EXISTS (
           SELECT 1 FROM jobs INDEXED BY jobs_by_user
            WHERE tenant = :tenant AND user = :user AND seq = candidate.value))
   AND (:service IS NULL OR EXISTS (
           SELECT 1 FROM json_each(:endpoints) AS one CROSS JOIN jobs INDEXED BY jobs_by_endpoint
            WHERE tenant = :tenant AND service = :service AND endpoint = one.value AND seq = candidate.value))
   AND (:tag IS NULL OR EXISTS (
           SELECT 1 FROM tags WHERE tenant = :tenant AND tag = :tag AND job_seq = candidate.value));

-- rows_of: The jobs of these handles, in their order, that were created in that time; a bound that is NULL is none.
SELECT jobs.seq, job_id, tenant, service, endpoint, version, params, user, pure, created_us, tags, run, state, attempt, agent,
       reason, opened_by, opened_us, started_us, finished_us, not_before_us, priority, deadline_us, policy, exceptions,
       faults, cancel_requested_by, failure, result_run, result_expires_us, deaths, memory_kills, losses, suspect
  FROM json_each(:seqs) AS wanted CROSS JOIN jobs ON jobs.seq = wanted.value
 WHERE (:created_after_us IS NULL OR created_us >= :created_after_us)
   AND (:created_before_us IS NULL OR created_us < :created_before_us);
