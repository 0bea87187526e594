-- compatible_from: 1
--
-- The request that got a spare cluster, so that one repeated is answered with the cluster that it got, also once that has ended.

CREATE INDEX clusters_by_request ON clusters (json_extract(spec, '$.requested_as'))
 WHERE json_extract(spec, '$.requested_as') <> '';
