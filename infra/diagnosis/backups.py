"""Whether there is a backup, how old it is, and whether it can be restored."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from trainyard.diagnosis import Finding, parse_time

GRACE_HOURS = 1.0
MAX_WAL_SECONDS = 120.0
WAL_GRACE_SECONDS = 600.0
"""In which the first base is made."""


def examine_backups(status: str, now: datetime) -> list[Finding]:
    """Return what is wrong with the backups.

    Args:
        status: What `python -m infra.backup status` prints.
        now: The present moment.
    """
    try:
        answer = json.loads(status)
    except ValueError:  # a sentence in place of JSON
        return [
            Finding(
                f"The backups cannot be read: {status.strip() or 'see its log'}", "docker compose logs --tail 20 backup"
            )
        ]
    findings = []
    interval = answer["every_hours"]
    newest = parse_time(answer["newest"]) if answer["newest"] else None
    if newest is None and interval:
        since = datetime.fromtimestamp(answer["started"], UTC)
        if (now - since).total_seconds() > GRACE_HOURS * 3600:
            findings.append(
                Finding("There is no backup.", "make backup; docker compose logs --tail 20 backup says why")
            )
    elif (
        newest is not None and interval and (age := (now - newest).total_seconds() / 3600) > 2 * interval + GRACE_HOURS
    ):
        problem = f"The newest backup is {age:,.0f} hours old, and one is made every {interval} hours."
        findings.append(Finding(problem, "make backup; docker compose logs --tail 20 backup says why"))
    if answer["problem"]:
        problem = f"The newest backup cannot be restored: {answer['problem']}"
        findings.append(Finding(problem, "make backup TO=a new folder, and then make doctor again"))
    return findings + examine_wal(answer.get("wal"), now)


def examine_wal(wal: Mapping[str, Any] | None, now: datetime) -> list[Finding]:
    """Return whether the last moment that can be restored is too long ago; `wal` is None without point-in-time recovery."""
    if wal is None or now.timestamp() - wal["started"] < WAL_GRACE_SECONDS:
        return []
    age = (now - parse_time(wal["until"])).total_seconds() if wal["until"] else None
    if age is not None and age <= MAX_WAL_SECONDS:
        return []
    problem = (
        "No moment can be restored yet" if age is None else f"The newest WAL in the repository is {age:,.0f} s old"
    )
    return [
        Finding(f"{problem}, though BACKUP_POINT_IN_TIME is true.", "docker compose logs --tail 20 backup says why")
    ]
