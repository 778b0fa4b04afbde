"""A data frame as a field of a pydantic model, and as a flow's parameter."""

from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

# Excluded from dumps, so that no copy of the data is sent to Prefect's API among a run's parameters.
Frame = Annotated[pd.DataFrame, Field(exclude=True, repr=False), WithJsonSchema({"type": "object"})]


class Data(BaseModel):
    """A data frame as a parameter or result of a flow."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    frame: Frame
