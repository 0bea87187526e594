-- lease: The newest lease of an agent; columns in the order of `AgentLease`.
SELECT agent, name, pool, epoch, state, granted_us, expires_us, ended_us FROM agent_leases WHERE agent = ?;

-- leases: Those that are held, and those that ended not long ago.
SELECT agent, name, pool, epoch, state, granted_us, expires_us, ended_us
  FROM agent_leases WHERE ended_us IS NULL OR ended_us > ? ORDER BY agent;

-- put_lease: Its next state, as read and decided in the same transaction.
INSERT OR REPLACE INTO agent_leases (agent, name, pool, epoch, state, granted_us, expires_us, ended_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- purge_leases: Of agents that ended long ago: their ids are not used again.
DELETE FROM agent_leases WHERE ended_us <= ?;

-- keep_clock: How far the lease clock may go.
INSERT OR REPLACE INTO meta (key, value) VALUES ('lease_clock_us', ?);

-- clock: Where the lease clock begins.
SELECT value FROM meta WHERE key = 'lease_clock_us';
