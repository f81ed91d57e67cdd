-- What leftovers looks for every few seconds: volumes of which a host has not answered since a resize that failed.
CREATE INDEX volume_to_settle ON volume (updated_at) WHERE deleted_at IS NULL AND state = 'ready' AND worker_id IS NOT NULL;
