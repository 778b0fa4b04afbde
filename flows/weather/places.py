"""Places by coordinates or by name, which Open-Meteo's geocoding resolves, and the names of their models.

A place is its coordinates, to a hundredth of a degree: at most 1.1 km, finer than the grids of the weather models. Two
texts for one place have one model and one lock, and two places never share any, whatever their names.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from flows.weather.observations import Place
from trainyard.errors import DataError, UnknownSubjectError

MODEL = "rain-tomorrow"
HOME = "Seattle, Washington, United States"
SEATTLE = Place(name=HOME, latitude=47.61, longitude=-122.33)
"""The default place, whose model is called `MODEL`."""
DECIMALS = 2
MAX_MATCHES = 10
"""Number of places of one name among which the region decides."""
REGION_KEYS = ("admin1", "admin2", "admin3", "admin4", "country", "country_code")

_COORDINATES = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)\s*,\s*([-+]?\d+(?:\.\d+)?)\s*")


def parse_coordinates(text: str) -> Place | None:
    """Return the place at "latitude,longitude" in degrees, or None if the text is a name.

    Raises:
        UnknownSubjectError: The coordinates are out of range.
    """
    match = _COORDINATES.fullmatch(text)
    if match is None:
        return None
    try:
        place = _rounded(Place(name="", latitude=float(match[1]), longitude=float(match[2])))
        return place.model_copy(update={"name": f"{place.latitude},{place.longitude}"})
    except ValidationError:
        raise UnknownSubjectError(
            f"{text!r} is not on Earth. Enter the latitude (-90 to 90), then the longitude (-180 to 180)."
        ) from None


def geocoding_query(name: str) -> dict[str, str]:
    """Return the parameters of a geocoding request for the places of a name.

    The service matches a place's own name only, so what follows a comma is left for `parse_geocoding`.
    """
    return {"name": _parts(name)[0], "count": str(MAX_MATCHES), "language": "en", "format": "json"}


def parse_geocoding(answer: Any, name: str) -> Place:
    """Return the best match of a geocoding answer, named as in "Seattle, Washington, United States".

    Args:
        answer: The answer to `geocoding_query`, best match first.
        name: A place's name, and after commas its region or country: "Springfield, Illinois".

    Raises:
        UnknownSubjectError: There is no match; Open-Meteo then omits `results`.
        DataError: The answer has another form than documented.
    """
    own_name, *regions = _parts(name)
    try:
        results = answer.get("results") or []
        matches = [result for result in results if _lies_in(result, regions)]
        if not matches:
            found = "; ".join(map(_label, results))
            raise UnknownSubjectError(
                f"Open-Meteo knows no place called {name!r}{f', but {found}' if found else ''}. Check the spelling, add "
                "the region or country in full ('Springfield, Illinois'), or enter 'latitude,longitude'."
            )
        best = matches[0]
        return _rounded(Place(name=_label(best), latitude=best["latitude"], longitude=best["longitude"]))
    except (AttributeError, KeyError, TypeError, IndexError, ValidationError) as error:
        raise DataError(
            f"The geocoding service's answer for {own_name!r} is not as documented ({error!r}). "
            "Check WEATHER_GEOCODING_URL, or enter the place as 'latitude,longitude'."
        ) from error


def is_home(name: str) -> bool:
    """Return whether a text names the default place: "Seattle", "Seattle, Washington"."""
    home = list(map(_folded, _parts(HOME)))
    parts = list(map(_folded, _parts(name)))
    return parts[0] == home[0] and set(parts) <= set(home)


def place_of(tags: Mapping[str, str]) -> Place | None:
    """Return the place that a model version was trained for, or None if its tags do not name one."""
    try:
        return Place(name=tags["place"], latitude=float(tags["latitude"]), longitude=float(tags["longitude"]))
    except (KeyError, ValueError):
        return None


def place_key(place: Place) -> str:
    """Return what identifies a place in other names, such as `33.90s-151.20e`; equal for equal places only."""
    at = _rounded(place)
    north_south, east_west = "ns"[at.latitude < 0], "ew"[at.longitude < 0]
    return f"{abs(at.latitude):.{DECIMALS}f}{north_south}-{abs(at.longitude):.{DECIMALS}f}{east_west}"


def model_name(place: Place) -> str:
    """Return the name of a place's registered model: `MODEL` for `SEATTLE`, else with the place's key appended."""
    key = place_key(place)
    return MODEL if key == place_key(SEATTLE) else f"{MODEL}-{key}"


def _rounded(place: Place) -> Place:
    latitude, longitude = round(place.latitude, DECIMALS), round(place.longitude, DECIMALS)
    longitude = 180.0 if longitude == -180 else longitude  # one meridian
    return place.model_copy(update={"latitude": latitude + 0.0, "longitude": longitude + 0.0})  # no negative zero


def _parts(name: str) -> list[str]:
    """Return what stands between the commas; the whole name where nothing does."""
    return [part.strip() for part in name.split(",") if part.strip()] or [name.strip()]


def _label(result: Mapping[str, Any]) -> str:
    parts = (result.get(key) for key in ("name", "admin1", "country"))
    return ", ".join(dict.fromkeys(part for part in parts if part))


def _lies_in(result: Mapping[str, Any], regions: list[str]) -> bool:
    of_result = {_folded(str(result.get(key) or "")) for key in REGION_KEYS}
    return {_folded(region) for region in regions} <= of_result


def _folded(text: str) -> str:
    """Return a text without case and accents, for comparison."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
