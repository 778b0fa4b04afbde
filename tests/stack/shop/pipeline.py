"""Train shop-busy: one task that fits and logs, and the gate."""

import mlflow
from flows.shop import model
from flows.shop.model import FEATURES, MODEL, TARGET
from mlflow.entities.model_registry import ModelVersion
from prefect import flow, task

from trainyard import registry, tracking
from trainyard.contract import Artifact
from trainyard.evaluation import holdout_table, training_sample
from trainyard.gate import Decision, Thresholds, decide
from trainyard.metrics import flatten_scores


@task(name="train")
def train(days: int) -> tuple[tracking.Registered, dict[str, float]]:
    """Fit the model on all but the last fifth of the hours, score it on those, log and register it."""
    times = model.past_hours(24 * days)
    fitted, holdout = times[: -len(times) // 5], times[-len(times) // 5 :]
    estimators = dict(zip(("model", "baseline"), model.fit(fitted), strict=True))
    metrics = flatten_scores({name: model.score(each, holdout) for name, each in estimators.items()})
    busy = {name: each.predict_proba(model.make_features(holdout))[:, 1] for name, each in estimators.items()}
    features = model.make_features(fitted)
    tables = {
        Artifact.HOLDOUT: holdout_table(model.observe(holdout).astype(int), busy, holdout),
        Artifact.TRAINING_SAMPLE: training_sample(features, estimators["model"].predict_proba(features)[:, 1], fitted),
    }
    data = tracking.Dataset("shop", "flows.shop.model", features.assign(**{TARGET: model.observe(fitted)}), TARGET)
    record = tracking.TrainingRecord(
        experiment="shop", model=MODEL, estimator=estimators["model"], inputs=features[FEATURES].head(5),
        dataset=data, params={"days": days}, metrics=metrics, tables=tables,
    )  # fmt: skip
    return tracking.log_training(record), metrics


@flow(name="shop-pipeline", log_prints=True, persist_result=False)
def shop_pipeline(days: int = 60) -> None:
    """Train a model and make it the champion if it is better than the champion and the baseline."""
    registered, metrics = train(days)

    def compare(champion: ModelVersion | None) -> Decision:
        holdout = model.past_hours(24 * days)[-24 * days // 5 :]
        current = mlflow.sklearn.load_model(f"models:/{MODEL}/{champion.version}") if champion else None
        score = model.score(current, holdout)["log_loss"] if current else None
        return decide("log_loss", metrics["model_log_loss"], metrics["baseline_log_loss"], score, Thresholds())

    print(registry.apply_gate(MODEL, registered.version, compare).reason)
