"""The platform without Docker: the same flows, worker and provisioning on SQLite and local files."""
