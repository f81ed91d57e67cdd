-- Whoever shows operations hears of a new one, of how far it came, and that its end was asked for, too.
-- Replaced in place: a drop would wait behind a backup that reads the table, and everybody else behind the drop.
CREATE OR REPLACE TRIGGER notify AFTER INSERT OR UPDATE OF state, progress, is_cancelled ON operation
  FOR EACH ROW EXECUTE FUNCTION notify_registry('operation', 'id');
