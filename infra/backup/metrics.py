"""Metrics for Prometheus of backups, and of the disks that hold the installation's data and its backups."""

import math
import os
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from infra.backup.settings import ARCHIVED, FOLDER, NEWEST, Settings

# The container's own files are beside the volumes, unless a volume was put elsewhere.
DISKS = {"data": Path("/"), "backups": Path(FOLDER)}


def serve(settings: Settings) -> None:
    """Answer scrapes until the process is stopped."""
    _, thread = start_http_server(
        settings.metrics_port, registry=make_registry(settings.every_hours, settings.is_point_in_time)
    )
    thread.join()


def make_registry(
    every_hours: int,
    is_point_in_time: bool,
    newest: Path = NEWEST,
    archived: Path = ARCHIVED,
    disks: dict[str, Path] = DISKS,
) -> CollectorRegistry:
    """Return the metrics, read at each scrape.

    Args:
        every_hours: The hours between two backups of the schedule; 0 where there is none.
        is_point_in_time: Whether WAL is stored.
        newest: A file of the age of the newest backup.
        archived: One of the age of the newest WAL.
        disks: A path on each disk.
    """
    registry = CollectorRegistry()
    interval = Gauge("trainyard_backup_interval_seconds", "Time between two backups; 0 for none.", registry=registry)
    interval.set(every_hours * 3600)
    age = Gauge(
        "trainyard_backup_newest_timestamp_seconds",
        "When the newest backup of the schedule was made, or the service started while none is known.",
        registry=registry,
    )
    age.set_function(lambda: newest.stat().st_mtime)
    wal = Gauge(
        "trainyard_wal_newest_timestamp_seconds",
        "When WAL was last stored for point-in-time recovery, or the service started; NaN where that is off.",
        registry=registry,
    )
    wal.set_function(lambda: archived.stat().st_mtime if is_point_in_time else math.nan)
    free = Gauge("trainyard_disk_free_bytes", "Space left on a disk.", ["disk"], registry=registry)
    size = Gauge("trainyard_disk_size_bytes", "Size of a disk.", ["disk"], registry=registry)
    for name, path in disks.items():
        free.labels(name).set_function(partial(count_bytes, path, "f_bavail"))
        size.labels(name).set_function(partial(count_bytes, path, "f_blocks"))
    return registry


def count_bytes(path: Path, field: str) -> float:
    """Return a count of blocks of a path's file system, in bytes."""
    found = os.statvfs(path)
    return float(getattr(found, field) * found.f_frsize)
