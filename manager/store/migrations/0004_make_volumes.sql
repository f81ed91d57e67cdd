-- Volumes with bytes: one row for each thing that lies on a backend's storage, whatever it is to its user.
--   volume, image, snapshot: have names. transient: what an operation makes before it changes hands, or could not take away yet.
-- locator: the name on the storage, relative to the backend and never used again. host_id: where it lies, of a backend that is
-- not shared. worker_id: the host that may be working on it or have it active, until it has said that it has not.
ALTER TABLE volume
  ADD COLUMN role       text NOT NULL DEFAULT 'volume' CHECK (role IN ('volume', 'image', 'snapshot', 'transient')),
  ADD COLUMN parent_id  uuid REFERENCES volume ON DELETE CASCADE,
  ADD COLUMN locator    text NOT NULL DEFAULT '',
  ADD COLUMN format     text NOT NULL DEFAULT 'raw',
  ADD COLUMN host_id    uuid REFERENCES host,
  ADD COLUMN worker_id  uuid REFERENCES host,
  ADD COLUMN source     text,
  ADD COLUMN sha256     text,
  ADD COLUMN labels     jsonb NOT NULL DEFAULT '{}',
  ADD COLUMN epoch      bigint NOT NULL DEFAULT 0,
  ADD COLUMN version    bigint NOT NULL DEFAULT 1,
  ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
CREATE UNIQUE INDEX volume_live_name ON volume (role, name) WHERE deleted_at IS NULL AND role IN ('volume', 'image');
CREATE UNIQUE INDEX snapshot_live_name ON volume (parent_id, name) WHERE deleted_at IS NULL AND role = 'snapshot';
CREATE UNIQUE INDEX volume_locator ON volume (backend_id, locator) WHERE deleted_at IS NULL AND locator <> '';
CREATE INDEX volume_by_parent ON volume (parent_id) WHERE deleted_at IS NULL;
CREATE INDEX volume_to_delete ON volume (updated_at) WHERE deleted_at IS NULL AND state = 'deleting';

-- As before, and what is transient may also come to a backend that drains: an operation makes or leaves bytes there that go again.
CREATE OR REPLACE FUNCTION volume_needs_ready_backend() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE backend_state text;
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.deleted_at IS NULL AND OLD.backend_id = NEW.backend_id THEN
    RETURN NEW;
  END IF;
  SELECT state INTO backend_state FROM backend WHERE id = NEW.backend_id AND deleted_at IS NULL FOR SHARE;
  IF backend_state IS DISTINCT FROM 'ready' AND NOT (NEW.role = 'transient' AND backend_state = 'draining') THEN
    RAISE EXCEPTION 'backend % takes no new volumes: it is %', NEW.backend_id, coalesce(backend_state, 'gone')
      USING ERRCODE = 'check_violation', CONSTRAINT = 'volume_needs_ready_backend';
  END IF;
  RETURN NEW;
END $$;

-- One host's right to a volume. epoch: the volume's when it was opened; it only grows, and agents refuse an older one.
CREATE TABLE attachment (
  id        uuid PRIMARY KEY,
  volume_id uuid NOT NULL REFERENCES volume ON DELETE CASCADE,
  host_id   uuid NOT NULL REFERENCES host,
  mode      text NOT NULL CHECK (mode IN ('rw', 'ro')),
  epoch     bigint NOT NULL,
  state     text NOT NULL DEFAULT 'attaching' CHECK (state IN ('attaching', 'attached', 'detaching')),
  path      text,
  type      text,
  since     timestamptz NOT NULL DEFAULT now(),
  closed_at timestamptz
);
CREATE UNIQUE INDEX attachment_one_writer ON attachment (volume_id) WHERE closed_at IS NULL AND mode = 'rw';
CREATE UNIQUE INDEX attachment_one_a_host ON attachment (volume_id, host_id) WHERE closed_at IS NULL;
CREATE INDEX attachment_by_host ON attachment (host_id) WHERE closed_at IS NULL;

-- Who may change the metadata of a place that one host at a time may change (a VG). A row: an operation through a host; it counts
-- until `until`, and is taken away when the host has answered. Rows of one host stand beside each other.
CREATE TABLE lease (
  place        text NOT NULL,
  operation_id uuid NOT NULL,
  host_id      uuid NOT NULL REFERENCES host ON DELETE CASCADE,
  until        timestamptz NOT NULL,
  PRIMARY KEY (place, operation_id)
);

ALTER TABLE operation
  ADD COLUMN progress     jsonb,
  ADD COLUMN is_cancelled boolean NOT NULL DEFAULT false;
-- Operations that read a volume while it must not change.
CREATE INDEX operation_by_source ON operation ((params ->> 'source_id')) WHERE state IN ('running', 'undoing', 'stuck');
