-- The core: fleet, hosts, backends and what each host saw of them, volumes (for the delete guard),
-- the saga journal, the outbox that is also the audit log, and what the API needs to know its callers.

-- Fences: one global sequence, so that a later saga on the same backend never starts lower (BUS.md 5).
CREATE SEQUENCE fence_seq;

-- Versions of credentials, each used once: a rotation that was undone while a host was away must not be
-- taken for the next one that succeeds. An add's first version is 1.
CREATE SEQUENCE credential_version_seq AS int START 2;

CREATE TABLE fleet (
  id            uuid PRIMARY KEY,
  is_only       boolean NOT NULL DEFAULT true UNIQUE CHECK (is_only),
  created_at    timestamptz NOT NULL DEFAULT now(),
  -- The version of the bus account with its revocations, which is the date of issue in its JWT (Unix seconds). Every
  -- revocation raises it, whichever clock its manager goes by: of two accounts the servers of a cluster keep the newer.
  account_version bigint NOT NULL DEFAULT extract(epoch FROM now())::bigint,
  -- The public keys that the bus and the hosts of this fleet trust, by name; null until a manager has adopted its own. A
  -- manager with other keys would mint identities that nobody takes, so it refuses to start.
  trusted_keys  jsonb,
  -- the head of the event chain; the relay moves it with a guarded update, so a stale leader seals nothing
  chain_sequence bigint NOT NULL DEFAULT 0,
  chain_hash    text NOT NULL DEFAULT repeat('0', 64)
);

CREATE TABLE host (
  id            uuid PRIMARY KEY,
  name          text NOT NULL,
  identity_key  text NOT NULL UNIQUE,
  sealing_key   bytea NOT NULL,
  labels        jsonb NOT NULL DEFAULT '{}',
  kinds         text[] NOT NULL DEFAULT '{}',
  agent_version text NOT NULL DEFAULT '',
  protocol_min  int NOT NULL DEFAULT 1,
  protocol_max  int NOT NULL DEFAULT 1,
  joined_at     timestamptz NOT NULL DEFAULT now(),
  last_seen_at  timestamptz,
  revoked_at    timestamptz
);
CREATE UNIQUE INDEX host_live_name ON host (name) WHERE revoked_at IS NULL;

CREATE TABLE join_token (
  id          uuid PRIMARY KEY,
  secret_hash bytea NOT NULL,
  created_by  text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  expires_at  timestamptz NOT NULL,
  used_at     timestamptz,
  used_by     uuid REFERENCES host
);

CREATE TABLE backend (
  id                 uuid PRIMARY KEY,
  name               text NOT NULL,
  kind               text NOT NULL,
  config             jsonb NOT NULL,
  -- 0: none (guest); else the version that every host must hold. The secret itself is never here.
  credential_version int NOT NULL DEFAULT 0,
  is_default         boolean NOT NULL DEFAULT false,
  labels             jsonb NOT NULL DEFAULT '{}',
  selector           jsonb NOT NULL,
  state              text NOT NULL,
  generation         bigint NOT NULL DEFAULT 1,
  version            bigint NOT NULL DEFAULT 1,
  health_status      text NOT NULL DEFAULT 'pending',
  health_code        text,
  health_detail      text,
  health_since       timestamptz NOT NULL DEFAULT now(),
  created_at         timestamptz NOT NULL DEFAULT now(),
  updated_at         timestamptz NOT NULL DEFAULT now(),
  deleted_at         timestamptz
);
CREATE UNIQUE INDEX backend_live_name ON backend (name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX backend_one_default ON backend (is_default) WHERE is_default AND deleted_at IS NULL;

-- A row: what the host last said of the backend. desired 'absent' is a tombstone: the host has not yet
-- confirmed that it holds nothing of it; the row goes when it has.
CREATE TABLE backend_host (
  backend_id          uuid NOT NULL REFERENCES backend ON DELETE CASCADE,
  host_id             uuid NOT NULL REFERENCES host ON DELETE CASCADE,
  desired             text NOT NULL DEFAULT 'attached' CHECK (desired IN ('attached', 'absent')),
  observed_generation bigint,
  credential_version  int NOT NULL DEFAULT 0,
  status              text NOT NULL DEFAULT 'pending',
  code                text,
  detail              text,
  remedy              text,
  latency_ms          double precision,
  capacity            jsonb,
  capabilities        text[] NOT NULL DEFAULT '{}',
  -- by the host's own count, so that a word that comes late is known as old; 0 where it was not the host that spoke
  report_order        bigint NOT NULL DEFAULT 0,
  observed_at         timestamptz,
  PRIMARY KEY (backend_id, host_id)
);
CREATE INDEX backend_host_by_host ON backend_host (host_id);

-- To whom the manager has brought which version of a backend's credentials. Only these are asked to pass them on: a host that
-- merely says that it holds them could plant others on a newcomer.
CREATE TABLE credential_holder (
  backend_id uuid NOT NULL REFERENCES backend ON DELETE CASCADE,
  host_id    uuid NOT NULL REFERENCES host ON DELETE CASCADE,
  version    int NOT NULL,
  PRIMARY KEY (backend_id, host_id)
);

CREATE TABLE volume (
  id         uuid PRIMARY KEY,
  name       text NOT NULL,
  backend_id uuid NOT NULL REFERENCES backend,
  size_bytes bigint NOT NULL CHECK (size_bytes > 0),
  state      text NOT NULL DEFAULT 'ready',
  created_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz
);
CREATE INDEX volume_by_backend ON volume (backend_id) WHERE deleted_at IS NULL;

-- A volume may only come to a backend that takes new ones. FOR SHARE waits for, and is waited for by, the
-- FOR UPDATE of a removal, so that of the two exactly one succeeds, whoever inserts the row.
CREATE FUNCTION volume_needs_ready_backend() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE backend_state text;
BEGIN
  SELECT state INTO backend_state FROM backend WHERE id = NEW.backend_id AND deleted_at IS NULL FOR SHARE;
  IF backend_state IS DISTINCT FROM 'ready' THEN
    RAISE EXCEPTION 'backend % takes no new volumes: it is %', NEW.backend_id, coalesce(backend_state, 'gone')
      USING ERRCODE = 'check_violation', CONSTRAINT = 'volume_needs_ready_backend';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER volume_needs_ready_backend BEFORE INSERT OR UPDATE OF backend_id, deleted_at ON volume
  FOR EACH ROW WHEN (NEW.deleted_at IS NULL) EXECUTE FUNCTION volume_needs_ready_backend();

-- The saga journal. params and output hold no secret. step: the next to run (running) or to undo (undoing).
CREATE TABLE operation (
  id          uuid PRIMARY KEY,
  kind        text NOT NULL,
  version     int NOT NULL,
  key         text NOT NULL,
  subject     text NOT NULL,
  params      jsonb NOT NULL,
  state       text NOT NULL DEFAULT 'running'
              CHECK (state IN ('running', 'undoing', 'succeeded', 'failed', 'stuck', 'cancelled')),
  step        int NOT NULL,
  output      jsonb NOT NULL DEFAULT '{}',
  deadline    timestamptz NOT NULL,
  owner       text,
  lease_until timestamptz,
  fence       bigint NOT NULL,
  error       jsonb,
  result      jsonb,
  actor       text NOT NULL,
  request_id  text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX operation_one_active ON operation (key) WHERE state IN ('running', 'undoing', 'stuck');
CREATE INDEX operation_due ON operation (lease_until) WHERE state IN ('running', 'undoing');

CREATE TABLE operation_step (
  operation_id uuid NOT NULL REFERENCES operation ON DELETE CASCADE,
  index        int NOT NULL,
  name         text NOT NULL,
  state        text NOT NULL,
  error        text,
  started_at   timestamptz,
  ended_at     timestamptz,
  PRIMARY KEY (operation_id, index)
);

-- Outbox and audit log in one. `n` is the order of insertion; the relay seals in that order, giving
-- sequence, prevhash and hash, then publishes, then sets published_at. Rows are never changed after that.
CREATE TABLE event (
  id           uuid PRIMARY KEY,
  n            bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  type         text NOT NULL,
  subject      text NOT NULL,
  subject_id   uuid NOT NULL,
  actor        text NOT NULL,
  request_id   text NOT NULL,
  time         timestamptz NOT NULL DEFAULT clock_timestamp(),
  data         jsonb NOT NULL,
  sequence     bigint UNIQUE,
  prevhash     text,
  hash         text,
  published_at timestamptz
);
CREATE INDEX event_unsealed ON event (n) WHERE sequence IS NULL;
CREATE INDEX event_unpublished ON event (sequence) WHERE published_at IS NULL;
CREATE INDEX event_by_subject ON event (subject_id, sequence);

CREATE TABLE api_token (
  id           uuid PRIMARY KEY,
  name         text NOT NULL,
  role         text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
  secret_hash  bytea NOT NULL UNIQUE,
  created_by   text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  last_used_at timestamptz,
  revoked_at   timestamptz
);
CREATE UNIQUE INDEX api_token_live_name ON api_token (name) WHERE revoked_at IS NULL;

-- body_mac is keyed: a body may hold a password, and a plain digest of it could be guessed offline.
CREATE TABLE idempotency (
  token_id     uuid NOT NULL,
  key          text NOT NULL,
  method       text NOT NULL,
  path         text NOT NULL,
  body_mac     bytea NOT NULL,
  operation_id uuid,
  status       int,
  headers      jsonb,
  body         bytea,
  created_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (token_id, key)
);

-- Every change of these tables wakes the managers' registries, whoever made it. One word a row; the
-- server drops repeats within a transaction.
CREATE FUNCTION notify_registry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('stowage', TG_ARGV[0] || ':' ||
    coalesce(to_jsonb(NEW) ->> TG_ARGV[1], to_jsonb(OLD) ->> TG_ARGV[1]));
  RETURN NULL;
END $$;
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON backend FOR EACH ROW EXECUTE FUNCTION notify_registry('backend', 'id');
CREATE TRIGGER notify AFTER INSERT OR DELETE ON backend_host FOR EACH ROW EXECUTE FUNCTION notify_registry('backend', 'backend_id');
CREATE TRIGGER notify AFTER INSERT OR UPDATE ON credential_holder FOR EACH ROW EXECUTE FUNCTION notify_registry('backend', 'backend_id');
-- Every replica hears each report on the bus; figures that merely move need not wake them a second time.
CREATE TRIGGER notify_turn AFTER UPDATE ON backend_host FOR EACH ROW
  WHEN ((OLD.desired, OLD.status, OLD.code, OLD.observed_generation, OLD.credential_version)
        IS DISTINCT FROM (NEW.desired, NEW.status, NEW.code, NEW.observed_generation, NEW.credential_version))
  EXECUTE FUNCTION notify_registry('backend', 'backend_id');
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON volume FOR EACH ROW EXECUTE FUNCTION notify_registry('backend', 'backend_id');
CREATE TRIGGER notify AFTER INSERT OR DELETE OR UPDATE OF name, labels, kinds, agent_version, revoked_at, sealing_key ON host
  FOR EACH ROW EXECUTE FUNCTION notify_registry('host', 'id');
CREATE TRIGGER notify AFTER INSERT OR UPDATE OF revoked_at, expires_at, role OR DELETE ON api_token FOR EACH ROW EXECUTE FUNCTION notify_registry('token', 'id');
CREATE TRIGGER notify AFTER INSERT ON event FOR EACH ROW EXECUTE FUNCTION notify_registry('outbox', 'type');
CREATE TRIGGER notify AFTER UPDATE OF state ON operation FOR EACH ROW EXECUTE FUNCTION notify_registry('operation', 'id');
