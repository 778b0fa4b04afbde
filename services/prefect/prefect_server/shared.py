"""What several servers of one installation share in Redis (infra/compose/replicas.yml): events, and work for the background.

A server alone keeps both in its memory. The concurrency leases are in the database either way (`prefect_server.leases`).
"""

from collections.abc import MutableMapping
from urllib.parse import quote


def share(environment: MutableMapping[str, str]) -> None:
    """Set Prefect's variables for the Redis at REDIS_HOST, with REDIS_PASSWORD; without a host nothing is shared.

    Call it before Prefect's server is imported, which reads them then.

    Args:
        environment: The process's variables.
    """
    host = environment.get("REDIS_HOST")
    if not host:
        return
    address = f"redis://:{quote(environment['REDIS_PASSWORD'], safe='')}@{host}:6379"
    environment.update(
        PREFECT_REDIS_MESSAGING_URL=f"{address}/0",
        PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL=f"{address}/0",
        PREFECT_SERVER_EVENTS_MESSAGING_BROKER="prefect_redis.messaging",
        PREFECT_SERVER_EVENTS_MESSAGING_CACHE="prefect_redis.messaging",
        PREFECT_SERVER_EVENTS_CAUSAL_ORDERING="prefect_redis.ordering",
        PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE="prefect_redis.cleanup_queue",
        PREFECT_SERVER_DOCKET_URL=f"{address}/1",
        # An event is taken from Redis when it is in the database: of a batch in memory, a process that is killed loses all.
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE="1",
    )
