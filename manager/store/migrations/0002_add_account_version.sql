-- The version of the bus account with its revocations, which is the date of issue in its JWT (Unix seconds). Every
-- revocation raises it, whichever clock its manager goes by: of two accounts the servers of a cluster keep the newer.
ALTER TABLE fleet ADD COLUMN account_version bigint NOT NULL DEFAULT extract(epoch FROM now())::bigint;
