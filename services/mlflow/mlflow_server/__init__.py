"""MLflow's server in one process, the migration of its databases, and a plugin that proxies artifacts."""
