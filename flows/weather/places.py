"""Places by coordinates or by name, which Open-Meteo's geocoding resolves, and the names of their models."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from flows.weather.observations import Place
from trainyard.errors import DataError, UnknownSubjectError

MODEL = "rain-tomorrow"
HOME = "Seattle, Washington, United States"
"""The default place, whose model is called `MODEL`."""

_COORDINATES = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)\s*,\s*([-+]?\d+(?:\.\d+)?)\s*")


def parse_coordinates(text: str) -> Place | None:
    """Return the place at "latitude,longitude" in degrees, or None if the text is a name.

    Raises:
        UnknownSubjectError: The coordinates are out of range.
    """
    match = _COORDINATES.fullmatch(text)
    if match is None:
        return None
    latitude, longitude = float(match[1]), float(match[2])
    try:
        return Place(name=f"{latitude},{longitude}", latitude=latitude, longitude=longitude)
    except ValidationError:
        raise UnknownSubjectError(
            f"{text!r} is not on Earth. Enter the latitude (-90 to 90), then the longitude (-180 to 180)."
        ) from None


def geocoding_query(name: str) -> dict[str, str]:
    """Return the parameters of a geocoding request for the best match of a name."""
    return {"name": name.strip(), "count": "1", "language": "en", "format": "json"}


def parse_geocoding(answer: Any, name: str) -> Place:
    """Return the best match of a geocoding answer, named as in "Seattle, Washington, United States".

    Raises:
        UnknownSubjectError: There is no match; Open-Meteo then omits `results`.
        DataError: The answer has another form than documented.
    """
    try:
        results = answer.get("results") or []
        if not results:
            raise UnknownSubjectError(
                f"Open-Meteo knows no place called {name!r}. Check the spelling, add the region or country "
                "('Springfield, Illinois'), or enter 'latitude,longitude'."
            )
        best = results[0]
        parts = (best.get(key) for key in ("name", "admin1", "country"))
        label = ", ".join(dict.fromkeys(part for part in parts if part))
        return Place(name=label, latitude=best["latitude"], longitude=best["longitude"])
    except (AttributeError, KeyError, TypeError, IndexError, ValidationError) as error:
        raise DataError(
            f"The geocoding service's answer for {name!r} is not as documented ({error!r}). "
            "Check WEATHER_GEOCODING_URL, or enter the place as 'latitude,longitude'."
        ) from error


def place_of(tags: Mapping[str, str]) -> Place | None:
    """Return the place that a model version was trained for, or None if its tags do not name one."""
    try:
        return Place(name=tags["place"], latitude=float(tags["latitude"]), longitude=float(tags["longitude"]))
    except (KeyError, ValueError):
        return None


def slug(name: str) -> str:
    """Return a place's name in lower-case ASCII with dashes between the words, for use in other names."""
    ascii_ = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().casefold()
    words = re.sub(r"[^a-z0-9.+-]+", "-", ascii_).strip("-")
    if ascii_ == name.casefold():
        return words
    # Characters were lost, perhaps all of them; the digest keeps such places distinct.
    return f"{words}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".strip("-")


def model_name(place: Place) -> str:
    """Return the name of a place's registered model: `MODEL` for `HOME`, else with the place's slug appended."""
    return MODEL if place.name == HOME else f"{MODEL}-{slug(place.name)}"
