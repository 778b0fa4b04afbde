"""A flow that does nothing and imports what training flows import."""

import mlflow
import pandas as pd
import sklearn.ensemble
from prefect import flow

IMPORTED = (mlflow, pd, sklearn.ensemble)


@flow
def heavy() -> None:
    """Return at once."""
