"""The parameters of the weather flows: their bounds, defaults and descriptions, which Prefect's forms show."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from flows.weather.model import FAMILIES, Family
from flows.weather.observations import Place
from trainyard.gate import Thresholds


def _parameter(description: str, **bounds: Any) -> Any:
    # Prefect overwrites a field's `description` with that of the docstring, also where it has none.
    return Field(json_schema_extra={"description": description}, **bounds)


_PlaceName = Annotated[str, Field(min_length=2, max_length=100)]
PlaceOrName = Annotated[_PlaceName | SkipJsonSchema[Place], _parameter('A name ("Seattle") or "latitude,longitude".')]
Places = Annotated[
    list[_PlaceName],
    _parameter(
        'Names ("Seattle", "Oslo") or "latitude,longitude"; if one fails, the others still run.',
        min_length=1,
        max_length=50,
    ),
]
Years = Annotated[int, _parameter("Number of years of observations, up to now.", ge=1, le=50)]
WetDay = Annotated[float, _parameter("Precipitation from which a day counts as wet, in mm.", gt=0, le=100)]
MinObservations = Annotated[int, _parameter("Fewest observed days to train on; with fewer the run fails.", ge=60)]
AllowRecorded = Annotated[
    bool, _parameter("Fall back to recorded observations (Seattle only) if Open-Meteo cannot be reached.")
]
MaxGapDays = Annotated[
    int,
    _parameter(
        "Longest gap, in days, that is filled with earlier values; with a longer one the run fails.", ge=0, le=30
    ),
]
MaxFilledShare = Annotated[
    float, _parameter("Largest share of days that is filled; with a larger one the run fails.", ge=0, le=0.2)
]
HoldoutFraction = Annotated[
    float, _parameter("Share of the days, the newest, that are held out for evaluation.", ge=0.05, le=0.5)
]
Families = Annotated[
    list[Family], _parameter("Families of estimators to search.", min_length=1, max_length=len(FAMILIES))
]
Folds = Annotated[
    int, _parameter("Number of folds of the cross-validation, each evaluated on later days.", ge=2, le=20)
]
Gate = Annotated[Thresholds, _parameter("How much better than champion and baselines the candidate must be.")]
Overlap = Annotated[
    Literal["wait", "skip"],
    _parameter("If another run of the same place is active, wait for it or skip the place."),
]
Refresh = Annotated[bool, _parameter("Recompute everything, ignoring cached results.")]


class DataParameters(BaseModel):
    """Parameters of the observations and examples."""

    model_config = ConfigDict(frozen=True)

    years: Years = 5
    wet_day_mm: WetDay = 1.0
    min_observations: MinObservations = 365
    allow_recorded: AllowRecorded = False
    max_gap_days: MaxGapDays = 3
    max_filled_share: MaxFilledShare = 0.02


class TrainingParameters(BaseModel):
    """Parameters of the training."""

    model_config = ConfigDict(frozen=True)

    holdout_fraction: HoldoutFraction = 0.2
    families: Families = list(FAMILIES)
    folds: Folds = 5
    gate: Gate = Thresholds()


Data = Annotated[DataParameters, _parameter("Which observations are fetched, and how they become examples.")]
Training = Annotated[TrainingParameters, _parameter("How a model is searched for, evaluated and promoted.")]

DATA = DataParameters()
TRAINING = TrainingParameters()
