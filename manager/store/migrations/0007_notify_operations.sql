-- Whoever shows operations hears of a new one, of how far it came, and that its end was asked for, too.
DROP TRIGGER notify ON operation;
CREATE TRIGGER notify AFTER INSERT OR UPDATE OF state, progress, is_cancelled ON operation
  FOR EACH ROW EXECUTE FUNCTION notify_registry('operation', 'id');
