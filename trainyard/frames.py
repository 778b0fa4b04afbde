"""A data frame as a field of a pydantic model."""

from typing import Annotated

import pandas as pd
from pydantic import Field, WithJsonSchema

# Excluded from dumps, so that no copy of the data is sent to Prefect's API among a run's parameters.
Frame = Annotated[pd.DataFrame, Field(exclude=True, repr=False), WithJsonSchema({"type": "object"})]
