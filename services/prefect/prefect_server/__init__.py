"""Prefect's server with a reading account, and the migration of its database."""
