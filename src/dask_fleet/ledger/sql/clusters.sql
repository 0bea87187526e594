-- cluster: By its id; columns in the order of `ClusterRecord`.
SELECT cluster_id, name, tenant, user, kind, spec, state, epoch, agent, address, dashboard, ca, job_seq, attempt, created_us,
       running_us, closed_us, reason
  FROM clusters WHERE cluster_id = ?;

-- cluster_of_request: The spare that a request got; by the index of the same expression.
SELECT cluster_id, name, tenant, user, kind, spec, state, epoch, agent, address, dashboard, ca, job_seq, attempt, created_us,
       running_us, closed_us, reason
  FROM clusters WHERE json_extract(spec, '$.requested_as') = ? AND json_extract(spec, '$.requested_as') <> '';

-- living_clusters: Of one tenant, or of all; newest first.
SELECT cluster_id, name, tenant, user, kind, spec, state, epoch, agent, address, dashboard, ca, job_seq, attempt, created_us,
       running_us, closed_us, reason
  FROM clusters WHERE closed_us IS NULL AND (?1 IS NULL OR tenant = ?1) AND (?3 OR kind <> 'spare')
 ORDER BY created_us DESC, cluster_id DESC LIMIT ?2;

-- all_clusters: Of one tenant, or of all, those that ended as well.
SELECT cluster_id, name, tenant, user, kind, spec, state, epoch, agent, address, dashboard, ca, job_seq, attempt, created_us,
       running_us, closed_us, reason
  FROM clusters WHERE (?1 IS NULL OR tenant = ?1) AND (?3 OR kind <> 'spare') ORDER BY created_us DESC, cluster_id DESC LIMIT ?2;

-- clusters_of_tenant: Those that ended as well, along the index.
SELECT cluster_id, name, tenant, user, kind, spec, state, epoch, agent, address, dashboard, ca, job_seq, attempt, created_us,
       running_us, closed_us, reason
  FROM clusters WHERE tenant = ?1 AND (?3 OR kind <> 'spare') ORDER BY created_us DESC, cluster_id DESC LIMIT ?2;

-- cluster_of_name: Whose the name is.
SELECT cluster_id FROM clusters WHERE tenant = ? AND name = ? AND closed_us IS NULL;

-- insert_cluster: A new one.
INSERT INTO clusters (cluster_id, name, tenant, user, kind, spec, state, epoch, agent, address, dashboard, ca, job_seq, attempt, created_us,
       running_us, closed_us, reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- update_cluster: Its next state, guarded by what was read in the same transaction.
UPDATE clusters
   SET name = ?, user = ?, kind = ?, spec = ?, state = ?, epoch = ?, agent = ?, address = ?, dashboard = ?, ca = ?,
       created_us = ?, running_us = ?, closed_us = ?, reason = ?
 WHERE cluster_id = ? AND state = ? AND epoch = ?;

-- insert_cluster_event: One line of its story.
INSERT INTO cluster_events (cluster_id, event_id, epoch, kind, at_us, data) VALUES (?, ?, ?, ?, ?, ?);

-- cluster_events: Its story.
SELECT event_id, epoch, kind, at_us, data FROM cluster_events WHERE cluster_id = ? ORDER BY event_id LIMIT ?;

-- slot_lease: By its id; columns in the order of `SlotLease`.
SELECT lease_id, cluster_id, epoch, agent, worker, threads, fresh, state, granted_us, reason FROM slot_leases WHERE lease_id = ?;

-- known_slots: Whether a lease has the id, or one of the cluster the name.
SELECT 1 FROM slot_leases WHERE lease_id = ? UNION ALL SELECT 1 FROM slot_leases WHERE cluster_id = ? AND worker = ? LIMIT 1;

-- put_slot_lease: A new one.
INSERT INTO slot_leases (lease_id, cluster_id, epoch, agent, worker, threads, fresh, state, granted_us, reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- update_slot_lease: Its next state, guarded.
UPDATE slot_leases SET state = ?, reason = ? WHERE lease_id = ? AND state = ?;

-- holds_slots: Whether any lease of a cluster holds slots.
SELECT EXISTS (SELECT 1 FROM slot_leases WHERE cluster_id = ? AND state IN ('granted', 'joined', 'leaving'));

-- held_slots: All leases that hold slots.
SELECT lease_id, cluster_id, epoch, agent, worker, threads, fresh, state, granted_us, reason
  FROM slot_leases WHERE state IN ('granted', 'joined', 'leaving') ORDER BY granted_us, lease_id;

-- held_slots_of_cluster: Those of one cluster.
SELECT lease_id, cluster_id, epoch, agent, worker, threads, fresh, state, granted_us, reason
  FROM slot_leases WHERE cluster_id = ? AND state IN ('granted', 'joined', 'leaving') ORDER BY granted_us, lease_id;

-- slots_of_cluster: Those of one cluster, ended ones too.
SELECT lease_id, cluster_id, epoch, agent, worker, threads, fresh, state, granted_us, reason FROM slot_leases WHERE cluster_id = ? ORDER BY granted_us, lease_id;

-- slots: All.
SELECT lease_id, cluster_id, epoch, agent, worker, threads, fresh, state, granted_us, reason FROM slot_leases ORDER BY granted_us, lease_id;

-- purgeable_clusters: That ended long ago.
SELECT cluster_id FROM clusters
 WHERE closed_us < ? AND NOT EXISTS (SELECT 1 FROM slot_leases WHERE slot_leases.cluster_id = clusters.cluster_id
                                        AND slot_leases.state IN ('granted', 'joined', 'leaving'))
 ORDER BY closed_us LIMIT ?;

-- purge_events: Of a cluster.
DELETE FROM cluster_events WHERE cluster_id = ?;

-- purge_slots: Of a cluster.
DELETE FROM slot_leases WHERE cluster_id = ?;

-- purge_cluster: Itself.
DELETE FROM clusters WHERE cluster_id = ?;
