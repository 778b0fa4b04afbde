"""Keeps the leases of concurrency slots in Prefect's database, beside the slots (PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE).

Prefect's own storage in memory forgets them when the server restarts, and a slot whose lease is forgotten is never freed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter
from prefect.server.concurrency import lease_storage
from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata
from prefect.server.database import provide_database_interface
from prefect.server.utilities.leasing import ResourceLease
from prefect.types._concurrency import ConcurrencyLeaseHolder
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from trainyard.contract import LOCKS_PATH

LOOK_SECONDS, LOOKS = 4.0, 5
GRACE_SECONDS = 40
"""How long leases last at least when the server starts: their holders could not renew them while it was away."""

# As `prefect_server.schema` creates it.
leases = sa.Table(
    "leases",
    sa.MetaData(schema="trainyard"),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("resource_ids", ARRAY(sa.Uuid)),
    sa.Column("slots", sa.Integer),
    sa.Column("holder", JSONB(none_as_null=True)),
    sa.Column("created_at", sa.DateTime(timezone=True)),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
)
# By limit, the slots in use beyond those of its leases; negative where fewer are in use. Rate limits have no leases.
DIFFERENCES = sa.text("""
    SELECT l.id, l.active_slots - coalesce(sum(s.slots), 0) AS difference
    FROM concurrency_limit_v2 l LEFT JOIN trainyard.leases s ON l.id = ANY (s.resource_ids)
    WHERE l.slot_decay_per_second = 0
    GROUP BY l.id HAVING l.active_slots <> coalesce(sum(s.slots), 0)
""")

# A run that has ended, was deleted or waits to be run again holds nothing. Of a new lease the run may not be committed yet.
EXPIRE_LEASES_OF_ENDED_RUNS = sa.text("""
    UPDATE trainyard.leases s SET expires_at = now()
    WHERE s.holder ->> 'type' = 'flow_run' AND s.expires_at > now() AND s.created_at < now() - interval '10 seconds'
    AND NOT EXISTS (
        SELECT FROM flow_run r
        WHERE r.id = CAST(s.holder ->> 'id' AS uuid)
        AND r.state_type NOT IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED', 'SCHEDULED')
    )
""")

HOLDERS = sa.text("""
    SELECT l.name AS limit_name, l."limit", r.id AS flow_run_id, r.name AS run_name, s.created_at
    FROM trainyard.leases s
    JOIN concurrency_limit_v2 l ON l.id = ANY (s.resource_ids)
    JOIN flow_run r ON r.id = CAST(s.holder ->> 'id' AS uuid)
    WHERE s.expires_at > now() AND (CAST(:name AS text) IS NULL OR l.name = :name)
    ORDER BY l.name, s.created_at
""")

logger = logging.getLogger("prefect.server.leases")
Lease = ResourceLease[ConcurrencyLimitLeaseMetadata]


async def _execute(statement: sa.Executable) -> Sequence[Any]:
    """Run a statement in a transaction of its own; return its rows, if it has any."""
    database = provide_database_interface()
    async with database.session_context(begin_transaction=True) as session:
        result: Any = await session.execute(statement)
        return list(result.all()) if result.returns_rows else []


class ConcurrencyLeaseStorage(lease_storage.ConcurrencyLeaseStorage):
    """Prefect's interface; the name is the one it looks for in the module."""

    async def create_lease(
        self, resource_ids: list[UUID], ttl: timedelta, metadata: ConcurrencyLimitLeaseMetadata | None = None
    ) -> Lease:
        """Create a lease on limits that ends after `ttl` if it is not renewed."""
        lease = Lease(resource_ids=resource_ids, metadata=metadata, expiration=datetime.now(UTC) + ttl)
        values = {
            "id": lease.id,
            "resource_ids": resource_ids,
            "slots": metadata.slots if metadata else None,
            "holder": metadata.holder.model_dump(mode="json") if metadata and metadata.holder else None,
            "created_at": lease.created_at,
            "expires_at": lease.expiration,
        }
        await _execute(sa.insert(leases).values(values))
        return lease

    async def read_lease(self, lease_id: UUID) -> Lease | None:
        """Return a lease, expired or not, or None."""
        rows = await _execute(sa.select(leases).where(leases.c.id == lease_id))
        return _lease(rows[0]) if rows else None

    async def renew_lease(self, lease_id: UUID, ttl: timedelta) -> bool:
        """Let a lease end after `ttl` from now; return whether there is such a lease."""
        renew = sa.update(leases).where(leases.c.id == lease_id).values(expires_at=datetime.now(UTC) + ttl)
        return bool(await _execute(renew.returning(leases.c.id)))

    async def revoke_lease(self, lease_id: UUID) -> None:
        """Delete a lease."""
        await _execute(sa.delete(leases).where(leases.c.id == lease_id))

    async def read_active_lease_ids(self, limit: int = 100, offset: int = 0) -> list[UUID]:
        """Return leases that have not expired, the oldest first."""
        active = sa.select(leases.c.id).where(leases.c.expires_at > datetime.now(UTC))
        rows = await _execute(active.order_by(leases.c.created_at, leases.c.id).limit(limit).offset(offset))
        return [row.id for row in rows]

    async def read_expired_lease_ids(self, limit: int = 100) -> list[UUID]:
        """Return leases that have expired and whose slots are still to be freed, the longest expired first."""
        expired = sa.select(leases.c.id).where(leases.c.expires_at < datetime.now(UTC))
        return [row.id for row in await _execute(expired.order_by(leases.c.expires_at).limit(limit))]

    async def list_holders_for_limit(self, limit_id: UUID) -> list[tuple[UUID, ConcurrencyLeaseHolder]]:
        """Return the runs that hold slots of a limit, each with its lease."""
        held = sa.select(leases).where(
            leases.c.resource_ids.contains([limit_id]),
            leases.c.expires_at > datetime.now(UTC),
            leases.c.holder.is_not(None),
        )
        found = map(_lease, await _execute(held.order_by(leases.c.created_at)))
        return [(lease.id, lease.metadata.holder) for lease in found if lease.metadata and lease.metadata.holder]


def _lease(row: Any) -> Lease:
    return Lease(
        id=row.id,
        resource_ids=row.resource_ids,
        expiration=row.expires_at,
        created_at=row.created_at,
        metadata=None if row.slots is None else ConcurrencyLimitLeaseMetadata(slots=row.slots, holder=row.holder),
    )


router = APIRouter()


@router.get(LOCKS_PATH, tags=["Locks"])
async def read_locks(name: str | None = None) -> list[dict[str, Any]]:
    """Return the concurrency limits in use, or the one of a name, with the flow runs that hold their slots."""
    rows = await _execute(HOLDERS.bindparams(name=name))
    limits = {row.limit_name: {"name": row.limit_name, "slots": row.limit, "holders": []} for row in rows}
    for row in rows:
        holder = {"flow_run_id": str(row.flow_run_id), "name": row.run_name, "since": row.created_at.isoformat()}
        limits[row.limit_name]["holders"].append(holder)
    return list(limits.values())


async def reconcile_slots() -> None:
    """Free the slots of runs that have ended, and those that a killed server or a lost connection left without a lease.

    Until cancelled; begin with a grace.

    Prefect takes a slot and writes its lease in two transactions, and gives both up in two. So only a difference that
    lasts over several looks is corrected, by as much as all of them saw: changes under way are over by then.
    """
    looks: deque[dict[UUID, int]] = deque(maxlen=LOOKS)
    is_first = True
    while True:
        try:
            if is_first:
                until = datetime.now(UTC) + timedelta(seconds=GRACE_SECONDS)
                await _execute(sa.update(leases).where(leases.c.expires_at < until).values(expires_at=until))
                is_first = False
            await _execute(EXPIRE_LEASES_OF_ENDED_RUNS)
            looks.append({row.id: int(row.difference) for row in await _execute(DIFFERENCES)})
            for limit_id, difference in lasting_differences(looks).items():
                correct = sa.text("UPDATE concurrency_limit_v2 SET active_slots = active_slots - :slots WHERE id = :id")
                await _execute(correct.bindparams(slots=difference, id=limit_id))
                logger.warning("The concurrency limit %s had %+d slots in use without a lease.", limit_id, difference)
                looks.clear()
        except Exception as error:  # noqa: BLE001 - such as a database that restarts; the next look tries again
            logger.warning("Slots in use were not compared with their leases: %s", error)
        await asyncio.sleep(LOOK_SECONDS)


def lasting_differences(looks: Sequence[Mapping[UUID, int]]) -> dict[UUID, int]:
    """Return by limit the smallest difference of `LOOKS` looks, where all have one of the same sign."""
    if len(looks) < LOOKS:
        return {}
    lasting = {}
    for limit_id in set.intersection(*(set(look) for look in looks)):
        seen = [look[limit_id] for look in looks]
        if min(seen) > 0 or max(seen) < 0:
            lasting[limit_id] = min(seen, key=abs)
    return lasting
