"""What a training leaves in MLflow where its flow run is attempted again."""

import pandas as pd
import pytest
from mlflow import MlflowClient
from prefect import flow
from sklearn.linear_model import LogisticRegression

from tests.support.flaky_proxy import FlakyProxy
from trainyard.contract import Tag
from trainyard.tracking import Dataset, Registered, TrainingRecord, log_training

MODEL = "test-tracking"
FRAME = pd.DataFrame({"temperature": [1.0, 2.0, 3.0, 4.0], "target": [0, 0, 1, 1]})

pytestmark = pytest.mark.usefixtures("prefect")


def record(brier: float) -> TrainingRecord:
    inputs = FRAME[["temperature"]]
    return TrainingRecord(
        experiment="tracking-tests",
        model=MODEL,
        estimator=LogisticRegression().fit(inputs, FRAME["target"]),
        inputs=inputs,
        dataset=Dataset("example", "tests.integration.test_tracking", FRAME, "target"),
        params={"C": 1.0, "penalty": None},
        metrics={"model_brier": brier},
    )


def train(*briers: float) -> list[Registered]:
    """Log a training in each attempt of one flow run; all but the last end between registration and the next step."""
    logged: list[Registered] = []

    @flow(name="train", retries=len(briers) - 1, persist_result=False)
    def attempt() -> None:
        logged.append(log_training(record(briers[len(logged)])))
        if len(logged) < len(briers):
            MlflowClient().set_terminated(logged[-1].run_id, "FAILED")  # as whoever settles a killed attempt does
            raise ConnectionError("The attempt fails.")

    attempt()
    return logged


def test_another_attempt_finds_the_version_that_the_first_has_registered(tracking: MlflowClient) -> None:
    first, second = train(0.1 + 0.2, 0.1 + 0.2)
    run = tracking.get_run(first.run_id)

    assert second == first
    assert len(tracking.search_model_versions(f"name = '{MODEL}'")) == 1
    assert (run.info.status, run.data.tags[Tag.MODEL_VERSION]) == ("FINISHED", str(first.version))


def test_another_training_and_another_flow_run_register_versions_of_their_own(tracking: MlflowClient) -> None:
    versions = {each.version for each in (*train(0.2, 0.3), *train(0.2))}

    assert len(versions) == 3


def test_a_lost_answer_does_not_fail_the_training(
    tracking: MlflowClient, mlflow_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(tracking.search_model_versions(f"name = '{MODEL}'"))
    with FlakyProxy(mlflow_address, only="/runs/outputs", times=1) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        (logged,) = train(0.4)

    assert proxy.failures["dropped"] == 1
    assert tracking.get_run(logged.run_id).info.status == "FINISHED"
    assert len(tracking.search_model_versions(f"name = '{MODEL}'")) == before + 1
