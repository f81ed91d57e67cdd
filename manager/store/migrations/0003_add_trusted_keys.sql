-- The public keys that the bus and the hosts of this fleet trust, by name; null until a manager has adopted its own. A
-- manager with other keys would mint identities that nobody takes, so it refuses to start.
ALTER TABLE fleet ADD COLUMN trusted_keys jsonb;
