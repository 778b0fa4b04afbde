"""Make an installation of running servers: accounts, buckets, work pool, blocks, deployments and the first run."""
