-- All operations of one backend, the ended ones too: which host has not answered an initialization, which one made the marks.
CREATE INDEX operation_by_key ON operation (key);
