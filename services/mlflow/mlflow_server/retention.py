"""Remove what was deleted in MLflow, and the trials of old versions, but nothing that a registered version names.

`mlflow gc` looks at no registry: it deletes the model behind a registered version, and all deleted experiments where none is
named. The server therefore does it itself, with the methods of its store that gc uses, when `reconcile` asks:

GET  RETENTION_PATH      what the next clean-up would remove, and what the registry needs
POST RETENTION_PATH      remove a part of it, so that no request takes long; repeat until nothing is left

Files go before their row: what was interrupted is done again. Trials go to MLflow's trash first, like what people delete there.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import mlflow.server
from flask import Response, jsonify, request
from mlflow.entities import LifecycleStage
from mlflow.server import handlers
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlLoggedModel, SqlRun, SqlTag
from sqlalchemy.orm import aliased

from trainyard.contract import RETENTION_PATH, Account, Tag
from trainyard.servers.days import read_days

DAY_MS = 86_400_000
BATCH = 100
"""Runs and models that one request removes, each with its files."""
CHUNK = 500
"""Ids in one query."""
ID = re.compile(r"(?<![0-9a-z-])(?:m-)?[0-9a-f]{32}(?![0-9a-z])")
"""Of a run, or of a logged model."""
SNAPSHOT_TAGS = (Tag.DATA_DIGEST, Tag.PROBLEM_DIGEST)


@dataclass(frozen=True)
class Settings:
    """How many days things are kept; 0 keeps them all."""

    deleted_days: int = 30
    """After somebody deleted them, in which they can be restored."""
    trial_days: int = 90

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings.

        Raises:
            SystemExit: One is no number of days; the message names it.
        """
        return cls(
            read_days("MLflow", variables, "RETENTION_DELETED_DAYS", cls.deleted_days),
            read_days("MLflow", variables, "RETENTION_TRIAL_DAYS", cls.trial_days),
        )


@dataclass(frozen=True)
class Needed:
    """What registered versions need."""

    ids: frozenset[str]
    """Runs and logged models that a version, or its run, names anywhere: as source, in a tag."""
    digests: frozenset[str]
    """Of the data and problems that versions were trained from."""
    shown_runs: frozenset[str]
    """The runs of versions with an alias, whose trials are kept."""


@dataclass(frozen=True)
class Plan:
    """What a clean-up removes: ids."""

    trials: list[str]
    """To the trash."""
    runs: list[str]
    """For good, with their files, like the models."""
    models: list[str]


def find_needed() -> Needed:
    """Return what the versions of the registry need, whatever permissions the caller has."""
    registry = _registry_store()
    versions = list(_pages(registry.search_model_versions))
    aliases = {
        (model.name, str(version))
        for model in _pages(registry.search_registered_models)
        for version in model.aliases.values()
    }
    tags = [(key, value) for version in versions for key, value in version.tags.items()]
    tags += _tags_of_runs({version.run_id for version in versions if version.run_id})
    with registry.ManagedSessionMaker() as session:
        # A copy of a version names that one as its source, which may be gone; its files are those of the first model.
        locations = [location for (location,) in session.query(SqlModelVersion.storage_location)]
    named = [text for version in versions for text in (version.run_id, version.source)]
    named += [*locations, *(value for _, value in tags)]
    return Needed(
        ids=frozenset(found for text in named if text for found in ID.findall(text)),
        digests=frozenset(value for key, value in tags if key in SNAPSHOT_TAGS),
        shown_runs=frozenset(each.run_id for each in versions if (each.name, str(each.version)) in aliases),
    )


def make_plan(needed: Needed, settings: Settings) -> Plan:
    """Return what a clean-up removes now."""
    store, runs, models = _tracking_store(), list[str](), list[str]()
    if settings.deleted_days:
        age = settings.deleted_days * DAY_MS
        deleted = [run for run in store._get_deleted_runs(older_than=age) if run not in needed.ids]
        by_run = _models_of_runs(deleted)
        # The models of a deleted run are deleted with it, although MLflow has not marked them.
        runs = [run for run in deleted if not needed.ids.intersection(by_run.get(run, ()))]
        candidates = dict.fromkeys(model for run in runs for model in by_run.get(run, ()))
        candidates |= dict.fromkeys(store._get_deleted_logged_models(older_than=age))
        models = [model for model in candidates if model not in needed.ids]
    return Plan(_old_trials(needed, settings.trial_days) if settings.trial_days else [], runs, models)


def remove(plan: Plan) -> Plan:
    """Remove a part of a plan; return what was removed."""
    store = _tracking_store()
    trials, models, runs = (list(islice(ids, BATCH)) for ids in (plan.trials, plan.models, plan.runs))
    if len(plan.models) > len(models):
        runs = []  # a run goes after its models, which it alone leads to
    for trial in trials:
        store.delete_run(trial)
    for model in models:
        _delete_files(store.get_logged_model(model, allow_deleted=True).artifact_location, model)
        store._hard_delete_logged_model(model)
    for run in runs:
        _delete_files(store.get_run(run).info.artifact_uri, run)
        store._hard_delete_run(run)
    return Plan(trials, runs, models)


def answer() -> Response:
    """Answer a request for RETENTION_PATH."""
    settings, needed = Settings.read(), find_needed()
    plan = make_plan(needed, settings)
    if request.method == "POST":
        return jsonify(asdict(remove(plan)))
    trash = _tracking_store()._get_deleted_logged_models()
    return jsonify(
        {
            **asdict(plan),
            **asdict(settings),
            "kept": sorted(needed.ids.union(trash)),
            "digests": sorted(needed.digests),
        }
    )


def add_route() -> None:
    """Add RETENTION_PATH to MLflow's application, for the worker and for admins; others may only look."""
    from mlflow.server.auth import BEFORE_REQUEST_VALIDATORS

    BEFORE_REQUEST_VALIDATORS[RETENTION_PATH, "GET"] = lambda: True
    BEFORE_REQUEST_VALIDATORS[RETENTION_PATH, "POST"] = is_worker
    mlflow.server.app.add_url_rule(RETENTION_PATH, "retention", answer, methods=["GET", "POST"])


def is_worker() -> bool:
    """Return whether the worker makes the current request; MLflow has checked its password."""
    return request.authorization is not None and request.authorization.username == Account.WORKER


def _tracking_store() -> Any:
    """Return the server's store of runs and logged models: MLflow's SQL store, of which its type says nothing."""
    return handlers._get_tracking_store()


def _registry_store() -> Any:
    return handlers._get_model_registry_store()


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=1000, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _tags_of_runs(runs: Iterable[str]) -> list[tuple[str, str]]:
    with _tracking_store().ManagedSessionMaker() as session:
        queries = (
            session.query(SqlTag.key, SqlTag.value).filter(SqlTag.run_uuid.in_(chunk)) for chunk in _chunks(runs)
        )
        return [(key, value) for query in queries for key, value in query]


def _models_of_runs(runs: Iterable[str]) -> dict[str, list[str]]:
    """Return the logged models of runs, deleted ones too, by run."""
    found: dict[str, list[str]] = {}
    columns = (SqlLoggedModel.source_run_id, SqlLoggedModel.model_id)
    with _tracking_store().ManagedSessionMaker() as session:
        for chunk in _chunks(runs):
            for run, model in session.query(*columns).filter(SqlLoggedModel.source_run_id.in_(chunk)):
                found.setdefault(run, []).append(model)
    return found


def _old_trials(needed: Needed, days: int) -> list[str]:
    """Return the trials that ended so many days ago, but for those of versions with an alias."""
    candidate, parent = aliased(SqlTag), aliased(SqlTag)
    with _tracking_store().ManagedSessionMaker() as session:
        trials = (
            session.query(SqlRun.run_uuid, parent.value)
            .join(candidate, candidate.run_uuid == SqlRun.run_uuid)
            .join(parent, parent.run_uuid == SqlRun.run_uuid)
            .filter(candidate.key == Tag.CANDIDATE, parent.key == Tag.PARENT_RUN_ID)
            .filter(
                SqlRun.lifecycle_stage == LifecycleStage.ACTIVE, SqlRun.end_time < time.time() * 1000 - days * DAY_MS
            )
            .order_by(SqlRun.end_time)
        )
        return [run for run, owner in trials if owner not in needed.shown_runs and run not in needed.ids]


def _delete_files(location: str, owner: str) -> None:
    """Delete the folder of a run or model in the artifact store; files that are kept elsewhere stay."""
    parts = urlsplit(location)
    above, is_owned, _ = parts.path.strip("/").partition(owner)
    if parts.scheme == "mlflow-artifacts" and is_owned:
        artifacts: Any = handlers._get_artifact_repo_mlflow_artifacts()  # type: ignore[no-untyped-call]
        artifacts.delete_artifacts(f"{above}{owner}")
