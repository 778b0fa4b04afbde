"""The wine pipeline: its flows, in the order in which they run."""

from typing import Annotated

from prefect import flow, runtime, tags
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from flows.wine import model
from trainyard.cache import refreshing
from trainyard.frames import Data
from trainyard.gate import Thresholds
from trainyard.training import Details, Outcome, train

HOUR = 3600.0
Folds = Annotated[int, Field(ge=2, le=20)]


@flow(name="load-wine", log_prints=True, persist_result=False, timeout_seconds=600)
def load_wine() -> Data:
    """Read and validate the wines."""
    wines = model.read_wines()
    print(f"{len(wines)} wines of {wines[model.TARGET].nunique()} cultivars")
    return Data(frame=wines)


@flow(name="train-wine", log_prints=True, persist_result=False, timeout_seconds=2 * HOUR)
def train_wine(
    data: SkipJsonSchema[Data | None] = None,
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
) -> Outcome:
    """Search for the best candidate, fit it, and promote it if it is better than the champion.

    Args:
        data: The result of `load_wine`, which is called if this is missing.
        folds: Number of folds of the cross-validation.
        gate: How much better than champion and baseline the model must be.
    """
    data = data or load_wine()
    return train(model.make_problem(folds), data.frame, Details(model.SOURCE), gate=gate)


@flow(name="wine-pipeline", log_prints=True, persist_result=False, timeout_seconds=3 * HOUR)
def wine_pipeline(
    folds: Folds = 5,
    gate: Thresholds = Thresholds(),
    refresh: bool = False,
) -> Outcome:
    """Train a model that predicts a wine's cultivar from its chemistry.

    Args:
        folds: Number of folds of the cross-validation.
        gate: How much better than champion and baseline the model must be.
        refresh: Recompute everything, ignoring cached results.
    """
    with refreshing(refresh), tags(*runtime.flow_run.tags):  # the subflows carry the pipeline's tags
        return train_wine(load_wine(), folds, gate)


if __name__ == "__main__":  # on this machine, after eval "$(make -s env)": python -m flows.wine.pipeline
    wine_pipeline()
