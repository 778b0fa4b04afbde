"""Trainings and checks in MLflow, written by the functions that production uses."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import pandas as pd
from prefect import flow
from sklearn.base import BaseEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression

from trainyard import registry
from trainyard.contract import FORECAST_COLUMNS, OUTCOME_COLUMNS, Artifact
from trainyard.drift import Shift
from trainyard.evaluation import holdout_table
from trainyard.flows.monitor import log_check
from trainyard.gate import Decision
from trainyard.monitoring import Assessment
from trainyard.tracking import Dataset, Registered, TrainingRecord, log_training


def train_classifier(model: str, scores: Mapping[str, float], decision: Decision, holdout_rows: int = 0) -> Registered:
    """Log a classifier in a flow run and apply a decision of the gate to it."""
    observed = pd.Series([n % 2 for n in range(holdout_rows)], dtype=int)
    predictions = {"model": 0.15 + 0.6 * observed, "prior": 0.5}
    frame = pd.DataFrame({"temperature": [1.0, 2.0, 3.0, 4.0], "target": [0, 0, 1, 1]})
    tables = {Artifact.HOLDOUT: holdout_table(observed, predictions)} if holdout_rows else {}
    return _train(model, LogisticRegression(), frame, scores, decision, tables)


def train_regressor(model: str, scores: Mapping[str, float], decision: Decision) -> Registered:
    """Log a regressor in a flow run and apply a decision of the gate to it."""
    frame = pd.DataFrame({"temperature": [1.0, 2.0, 3.0, 4.0], "target": [10.0, 21.5, 29.0, 41.0]})
    tables = {Artifact.HOLDOUT: holdout_table(frame["target"], {"model": frame["target"] + 0.5})}
    return _train(model, LinearRegression(), frame, scores, decision, tables)


def check_champion(
    model: str,
    verdict: str,
    reason: str,
    metrics: Mapping[str, float] | None = None,
    shifts: Sequence[Shift] = (),
    forecasts: Sequence[Sequence[Any]] = (),
    outcomes: pd.DataFrame | None = None,
    problem: str = "",
) -> None:
    """Log a check of a model's champion as the flow `monitor` does.

    Args:
        model: A registered model with a champion.
        verdict: A value of `contract.Verdict`.
        reason: Why.
        metrics: Those of the check.
        shifts: Of its columns.
        forecasts: Rows of FORECAST_COLUMNS.
        outcomes: A table with OUTCOME_COLUMNS.
        problem: A value of `contract.Problem`.
    """
    champion = registry.champion(model)
    assert champion is not None, f"{model} has no champion"
    table = pd.DataFrame(list(forecasts), columns=list(FORECAST_COLUMNS))
    scored = pd.DataFrame(columns=list(OUTCOME_COLUMNS)) if outcomes is None else outcomes
    log_check.fn(champion, Assessment(verdict, (reason,), metrics or {}, shifts, table, scored, problem))


def _train(
    model: str,
    estimator: BaseEstimator,
    frame: pd.DataFrame,
    scores: Mapping[str, float],
    decision: Decision,
    tables: Mapping[str, pd.DataFrame],
) -> Registered:
    inputs = frame.drop(columns="target")
    record = TrainingRecord(
        experiment="dashboard-tests",
        model=model,
        estimator=estimator.fit(inputs, frame["target"]),
        inputs=inputs,
        dataset=Dataset("example", "tests.support.model_records", frame, "target"),
        params={},
        metrics=scores,
        tables=tables,
    )

    @flow(name=f"train-{uuid4().hex[:8]}", persist_result=False)
    def train() -> Registered:
        return log_training(record)

    registered = train()
    assert registered.version is not None
    registry.apply_gate(model, registered.version, lambda _: decision)
    return registered
