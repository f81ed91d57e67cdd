-- How full each backend was, at most a row a quarter of an hour. No reference to backend: the rows of undone adds go at any
-- moment, and a sample of one must not keep its row, nor a removal wait for samples; they go by age (store/capacity.py).
CREATE TABLE capacity_sample (
  backend_id      uuid NOT NULL,
  -- The quarter of an hour, which is what makes of two leaders one row.
  slot            timestamptz NOT NULL,
  taken_at        timestamptz NOT NULL DEFAULT now(),
  used_bytes      bigint NOT NULL,
  total_bytes     bigint NOT NULL,
  available_bytes bigint NOT NULL,
  PRIMARY KEY (backend_id, slot)
);
CREATE INDEX capacity_sample_by_slot ON capacity_sample (slot);
