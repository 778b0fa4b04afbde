-- What point-in-time recovery needs of the server: a role that receives WAL, owns nothing and reads no table; a slot, which keeps
-- what it has not received, up to max_slot_wal_keep_size; and how far it has, which else only who reads all statistics may see.
SELECT 'CREATE ROLE backup_wal LOGIN REPLICATION' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backup_wal') \gexec
SELECT pg_create_physical_replication_slot('trainyard_backup', true)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'trainyard_backup');
CREATE OR REPLACE FUNCTION public.received_wal() RETURNS pg_lsn LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS
$$SELECT max(write_lsn) FROM pg_stat_replication WHERE usename = 'backup_wal' AND application_name = 'pg_receivewal'$$;
REVOKE ALL ON FUNCTION public.received_wal() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.received_wal() TO backup_wal;
