"""Print what uses an installation's space, and what the next clean-up removes; it only reads.

Standard input has, a line each, the JSON of `docker system df`, that of `trainyard.retention` or null, and the images' names.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from minio.error import MinioException
from urllib3.exceptions import HTTPError as StorageUnreachable

from infra.backup.errors import BackupError
from infra.backup.point_in_time import FOLDER, Archive, oldest_kept
from infra.backup.repository import Repository
from infra.backup.settings import Settings
from infra.storage.databases import measure_databases
from infra.storage.docker import measure_images, measure_shared, measure_volumes
from infra.storage.objects import MLflowObjects, measure_objects
from trainyard.contract import Bucket

WIDTH = 44
UNKNOWN = "The worker is not running: the result storage, the disk and what is removed next are not known."


def show_size(label: str, size: int, note: str = "") -> str:
    """Return a line of the report."""
    return f"  {label:{WIDTH}}{size / 1e6:>12,.1f} MB{f'   {note}' if note else ''}"


def show_section(title: str, sizes: Mapping[str, int], notes: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the lines of a section: its sum, and its parts, the largest first."""
    yield f"\n{title:{WIDTH + 2}}{sum(sizes.values()) / 1e6:>12,.1f} MB"
    for label, size in sorted(sizes.items(), key=lambda item: -item[1]):
        yield show_size(label, size, (notes or {}).get(label, ""))


def count(number: int, one: str) -> str:
    """Return a number of things, in words."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def show_objects(objects: MLflowObjects, results: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yield the section of the object store."""
    sizes = {f"mlflow: {kind}": usage.size for kind, usage in objects.kinds.items()}
    notes = {f"mlflow: {kind}": count(usage.count, "object") for kind, usage in objects.kinds.items()}
    for kind, found in results.items():
        sizes[f"results: {kind}"] = found["bytes"]
        notes[f"results: {kind}"] = count(found["count"], "object")
    return show_section("Objects", sizes, notes)


def days(number: int) -> str:
    """Return for how long something is kept."""
    return f"after {number} days" if number else "never"


def show_clean_up(live: Mapping[str, Any], objects: MLflowObjects) -> Iterator[str]:
    """Yield what the next clean-up removes, and by which settings."""
    yield "\nThe next clean-up removes (reconcile and Prefect, hourly; the settings are in .env)"
    flow_runs = live["flow_runs"]
    yield (
        f"  {count(flow_runs, 'flow run')} of Prefect, with logs, tasks and subflows   "
        f"[RETENTION_FLOW_RUN_DAYS: {days(live['retention_flow_run_days'])}]"
    )
    for kind, found in live["removable_results"].items():
        yield show_size(kind, found["bytes"], count(found["count"], "object"))
    if not live["removable_results"]:
        yield f"  no results   [RETENTION_SNAPSHOT_DAYS: training data without a version {days(live['retention_snapshot_days'])}]"
    mlflow = live["mlflow"]
    if mlflow["runs"] is None:
        yield "  nothing of MLflow, whose server does not say"
        return
    removed = [*mlflow["runs"], *mlflow["models"]]
    size = sum(objects.owners.get(owner, 0) for owner in removed)
    yield show_size(
        f"{count(len(mlflow['runs']), 'deleted run')}, {count(len(mlflow['models']), 'model')} of MLflow",
        size,
        f"[RETENTION_DELETED_DAYS: {days(mlflow['deleted_days'])}]",
    )
    yield (
        f"  {count(len(mlflow['trials']), 'old trial')} to MLflow's trash   "
        f"[RETENTION_TRIAL_DAYS: {days(mlflow['trial_days'])}]"
    )


def show_backups(repository: Repository, keep: Mapping[str, int], project: str) -> Iterator[str]:
    """Yield how many backups there are, and what their retention would remove."""
    try:
        snapshots = repository.snapshots()
        removed = repository.count_unneeded(keep) if snapshots else 0
    except BackupError as error:
        yield f"  no backup: {error}"
        return
    kept = ", ".join(f"{number} {unit}" for unit, number in keep.items())
    yield f"  {removed} of {count(len(snapshots), 'backup')}, after the next one   [BACKUP_KEEP_*: {kept}]"
    yield from show_moments(repository, [snapshot.id for snapshot in snapshots], project, keep["daily"])


def show_moments(repository: Repository, backups: Sequence[str], project: str, daily: int) -> Iterator[str]:
    """Yield how much there is for point-in-time recovery, and how many bases the next backup removes."""
    archive = Archive.read(repository.inside(FOLDER), project)
    if archive.bases:
        unneeded = set(archive.unneeded(backups, oldest_kept(datetime.now(UTC), daily)))
        removed = sum(base.id in unneeded for base in archive.bases)
        label = f"{removed} of {count(len(archive.bases), 'base')} for point-in-time recovery, with WAL, after the next backup"
        yield f"  {label}   [BACKUP_KEEP_DAILY: days of moments that can be restored]"


def main() -> None:
    """Print the report."""
    docker_line, live_line, *images = filter(None, sys.stdin.read().splitlines())
    docker, live, settings = json.loads(docker_line), json.loads(live_line), Settings.read()
    databases = measure_databases(settings.connect_databases())
    objects = measure_objects(settings.connect_objects().list_bucket(Bucket.MLFLOW))
    print(f"{live['disk']['text']} A mail is sent at {live['disk']['alert_percent']:g} %." if live else UNKNOWN)
    lines = [
        *show_section("Databases", {f"{database}: {group}": size for (database, group), size in databases.items()}),
        *show_objects(objects, live["results"] if live else {}),
        *show_section("Volumes", measure_volumes(docker, settings.project)),
        *show_section(
            "Images", {**measure_images(docker, images), "(layers that they share)": measure_shared(docker, images)}
        ),
        *(show_clean_up(live, objects) if live else ()),
        *show_backups(Repository(settings.repository, settings.environment), settings.keep, settings.project),
        "  recorded predictions by age and size, which serving sees to   [SERVING_KEEP_DAYS, SERVING_RECORDS_MAX_BYTES]",
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except (BackupError, ValueError, MinioException, StorageUnreachable, OSError) as error:
        sys.exit(f"What uses space could not be read: {error}. Is the stack running?")
