"""Train shop-busy: one task that fits and logs, and the gate."""

import numpy as np
from prefect import flow, task

from flows.shop import model
from flows.shop.model import FEATURES, MODEL, TARGET
from trainyard import registry, tracking
from trainyard.contract import Artifact
from trainyard.evaluation import holdout_table, training_sample
from trainyard.gate import FIRST_USE, Decision, Thresholds, decide
from trainyard.metrics import flatten_scores
from trainyard.registry import Champion


@task(name="train")
def train(days: int) -> tuple[tracking.Registered, dict[str, np.ndarray]]:
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
    return tracking.log_training(record), {name: model.losses(each, holdout) for name, each in estimators.items()}


@flow(name="shop-pipeline", log_prints=True, persist_result=False)
def shop_pipeline(days: int = 60) -> None:
    """Train a model and make it the champion if it is better than the champion and the baseline."""
    registered, losses = train(days)
    assert registered.version is not None

    def compare(champion: Champion | None) -> Decision:
        holdout = model.past_hours(24 * days)[-24 * days // 5 :]
        reigning = model.losses(champion.load_estimator(), holdout) if champion else None
        use = champion.reuse if champion else FIRST_USE
        return decide("log_loss", losses["model"], {"prior": losses["baseline"]}, reigning, Thresholds(), use)

    print(registry.apply_gate(MODEL, registered.version, compare).reason)
