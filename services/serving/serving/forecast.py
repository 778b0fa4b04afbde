"""Tomorrow's rain: the newest observations as the pipeline fetches them, and its features, for a place's champion.

The code is the pipeline's own (`flows/weather`), so that a forecast starts from what a model was fitted on. It is
imported with the first forecast: predictions go on whatever state it is in.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from serving.catalog import Catalog
from serving.model import Answer, Model
from serving.problems import RequestError, wrong_parameter
from serving.settings import Settings
from serving.tables import Table

if TYPE_CHECKING:
    from flows.weather.observations import Place
    from flows.weather.outlook import Outlook

T = TypeVar("T")

MOST_DAYS = 7
KEPT_SECONDS, FAILURE_KEPT_SECONDS = 300.0, 10.0
"""How long Open-Meteo is not asked again about a place: after an answer, and after a failure."""
MOST_KEPT = 256
TRIES, FIRST_PAUSE_SECONDS, LONGEST_WAIT_SECONDS = 3, 0.3, 2.0


@dataclass(frozen=True)
class Query:
    """What is asked for."""

    place: str
    days: int


@dataclass(frozen=True)
class Rows:
    """A champion's rows: what is known at the end of each day from `first` on."""

    table: Table
    first: date
    place: "Place"
    source: str

    @property
    def days(self) -> list[date]:
        """The days that are forecast."""
        return [self.first + timedelta(days=1 + n) for n in range(self.table.rows)]

    def about(self) -> dict[str, Any]:
        """Return what the rows are of."""
        place = self.place.model_dump()
        return {"place": place.pop("name"), **place, "days": [day.isoformat() for day in self.days]}


def parse_query(given: Mapping[str, str]) -> Query:
    """Return what a request's parameters ask for.

    Raises:
        RequestError: One of them is missing or wrong.
    """
    place = given.get("place", "").strip()
    if not 2 <= len(place) <= 100 or not place.isprintable():
        raise wrong_parameter("place", "is a name of 2 to 100 letters, or latitude,longitude")
    return Query(place, parse_days(given))


def parse_days(given: Mapping[str, str]) -> int:
    """Return how many days a request asks for, one where it does not say.

    Raises:
        RequestError: It is no such number.
    """
    days = given.get("days", "1")
    if days not in {str(number) for number in range(1, MOST_DAYS + 1)}:
        raise wrong_parameter("days", f"is a number from 1 to {MOST_DAYS}")
    return int(days)


class Forecaster:
    """Knows the outlook of places: asked for one by several at once, or again within minutes, it asks once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="weather")
        self._kept: dict[str, tuple[float, asyncio.Task[Outlook]]] = {}
        self._places: dict[str, Place] = {}
        self._end = threading.Event()

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._end.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def outlook(self, place: str) -> "Outlook":
        """Return the outlook of a place.

        Raises:
            RequestError: There is no such place, or the weather cannot be had.
        """
        now, name = time.monotonic(), place.casefold()
        self._kept = {key: kept for key, kept in self._kept.items() if kept[0] > now or not kept[1].done()}
        kept = self._kept.get(name)
        if kept is None:
            task = asyncio.create_task(self._ask(place, name))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be there to ask
            while len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            kept = self._kept[name] = (now + KEPT_SECONDS, task)
        return await asyncio.shield(kept[1])

    async def outlook_of(self, model: Model) -> "Outlook":
        """Return the outlook of the place that a champion was fitted for.

        Raises:
            RequestError: It is of no place, or the weather cannot be had.
        """
        place = await asyncio.get_running_loop().run_in_executor(self._threads, place_of, model)
        return await self.outlook(self._remember(place.name, place).name)

    async def _ask(self, place: str, name: str) -> "Outlook":
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, place)
        except RequestError as error:
            if error.status >= 500:
                self._kept[name] = (time.monotonic() + FAILURE_KEPT_SECONDS, self._kept[name][1])
            raise

    def _fetch(self, name: str) -> "Outlook":
        with own_errors():
            from flows.weather import outlook, places
            from trainyard import http
            from trainyard.errors import DataError, UnknownSubjectError

        settings = self._settings
        seconds = settings.weather_timeout_seconds
        try:
            place = places.parse_coordinates(name) or self._places.get(name)
            if place is None:
                url, query = settings.weather_geocoding_url, places.geocoding_query(name)
                answer = self._try(lambda: http.get_json(url, query, seconds, longest_wait=LONGEST_WAIT_SECONDS))
                place = self._remember(name, places.parse_geocoding(answer, name))
            url = settings.weather_forecast_url
            return self._try(lambda: outlook.look_ahead(url, place, seconds, LONGEST_WAIT_SECONDS))
        except UnknownSubjectError as error:
            raise RequestError("unknown-place", str(error)) from error
        except (http.SourceUnreachableError, http.RateLimitedError, http.WaitTooLongError) as error:
            raise RequestError("weather-down", f"The weather cannot be had: {error}") from error
        except (http.RefusedError, http.BadAnswerError, DataError) as error:
            raise RequestError("weather-data", f"The weather cannot be used: {error}") from error

    def _remember(self, name: str, place: "Place") -> "Place":
        if len(self._places) >= MOST_KEPT:
            self._places.clear()
        self._places[name] = place
        return place

    def _try(self, ask: Callable[[], T]) -> T:
        from trainyard import http

        for number in range(TRIES - 1):
            try:
                return ask()
            except (http.SourceUnreachableError, http.RateLimitedError):
                pause = FIRST_PAUSE_SECONDS * 3**number * random.uniform(0.7, 1.3)  # noqa: S311 - spreads callers
                self._end.wait(pause)
        return ask()

    async def rows(self, model: Model, outlook: "Outlook", days: int) -> Rows:
        """Return a champion's rows for the coming days.

        Raises:
            RequestError: The flows' code does not make its features, or a day's values are not there.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, make_rows, model, outlook, days)


def place_of(model: Model) -> "Place":
    """Return the place that a champion was fitted for."""
    with own_errors():
        from flows.weather.truth import place_of as place_of_tags
        from trainyard.errors import DataError
    try:
        return place_of_tags(model.tags)
    except DataError as error:
        raise RequestError(
            "no-forecast", f"{model.champion.model} version {model.champion.version}: {error}"
        ) from error


def find_champion(catalog: Catalog, outlook: "Outlook") -> Model:
    """Return the champion of a place.

    Raises:
        RequestError: There is none, and why.
    """
    from flows.weather import places

    try:
        return catalog.model(places.model_name(outlook.place))
    except RequestError as error:
        if error.code != "unknown-model":
            raise
        name = outlook.place.name
        text = f"There is no model of {name}: run weather-pipeline for it. {error.message}"
        raise RequestError("unknown-model", text) from error


def make_rows(model: Model, outlook: "Outlook", days: int) -> Rows:
    """Return a champion's rows, checked against its signature's fields."""
    from trainyard.errors import DataError

    champion = f"{model.champion.model} version {model.champion.version}"
    try:
        wet_day_mm = float(model.tags["wet_day_mm"])
    except (KeyError, ValueError) as error:
        text = f"{champion} does not say from which precipitation on a day counts as wet: no tag wet_day_mm."
        raise RequestError("features-unfit", text) from error
    try:
        with own_errors(DataError):
            features = outlook.features(wet_day_mm, days)
    except DataError as error:
        raise RequestError("weather-data", f"The weather cannot be used: {error}") from error
    if set(features.columns) != set(model.schema.names) or not model.schema.numeric:
        others = ", ".join(sorted(set(features.columns) ^ set(model.schema.names))) or "the types"
        text = (
            f"{champion} was fitted on other features than flows/weather makes ({others}): train it, restart serving."
        )
        raise RequestError("features-unfit", text)
    columns = [features[name].tolist() for name in model.schema.names]
    first = features.index[0].date()
    return Rows(Table(columns, len(features)), first, outlook.place, outlook.observations.origin.source)


@contextmanager
def own_errors(*passing: type[Exception]) -> Iterator[None]:
    """Tell whatever fails in the flows' code, which people edit, as a problem of its own."""
    try:
        yield
    except passing:
        raise
    except Exception as error:
        text = f"The flows' code fails ({type(error).__name__}: {error}). Mend it and restart serving."
        raise RequestError("features-unfit", text) from error


def render(model: Model, rows: Rows, answer: Answer) -> dict[str, Any]:
    """Return the forecast as it is answered.

    Raises:
        RequestError: The champion does not answer with the probability of rain.
    """
    if model.labels is None or "true" not in model.labels or answer.probabilities is None:
        raise RequestError("features-unfit", f"{model.champion.model} gives no probability of a wet day.")
    wet = model.labels.index("true")
    return {
        "place": rows.place.model_dump(),
        "model": model.champion.model,
        "version": model.champion.version,
        "source": rows.source,
        "observed_until": rows.first - timedelta(days=1),
        "forecasts": [
            {"day": day, "from_day": day - timedelta(days=1), "probability": shares[wet], "wet": bool(said)}
            for day, said, shares in zip(rows.days, answer.said, answer.probabilities, strict=True)
        ],
    }
