-- The indexes of a database, and whether each was made to its end.
SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
