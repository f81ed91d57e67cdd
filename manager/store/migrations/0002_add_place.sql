-- Places in which one saga at a time makes its marks (a LUN). The last that came; whether it still counts, operation and
-- backend_host say, so no reference: either may be gone.
CREATE TABLE place (
  name         text PRIMARY KEY,
  operation_id uuid NOT NULL,
  backend_id   uuid NOT NULL
);
