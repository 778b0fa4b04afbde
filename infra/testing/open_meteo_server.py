"""A loopback stand-in for Open-Meteo's archive, forecast and geocoding, and for catfact.ninja.

It answers with the fields and status codes of the real services, but THE WEATHER IS SYNTHETIC: seasons, rain that
depends on the day before and its wind, and noise with a seed of period and place, so that equal requests have equal
answers. Switches make the server fail, and some places always have invalid data (SPOILT). It needs the standard library
only and also runs alone: `python open_meteo_server.py --port 8080`.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

FIRST_DAY = date(1940, 1, 1)
UNITS = {
    "precipitation_sum": "mm",
    "temperature_2m_max": "°C",
    "temperature_2m_min": "°C",
    "wind_speed_10m_max": "km/h",
}
# It never rains in Arica.
PLACES = [
    {
        "id": 5809844,
        "name": "Seattle",
        "latitude": 47.60621,
        "longitude": -122.33207,
        "elevation": 56.0,
        "feature_code": "PPLA2",
        "country_code": "US",
        "timezone": "America/Los_Angeles",
        "population": 737015,
        "country": "United States",
        "admin1": "Washington",
    },
    {
        "id": 3143244,
        "name": "Oslo",
        "latitude": 59.91273,
        "longitude": 10.74609,
        "elevation": 26.0,
        "feature_code": "PPLC",
        "country_code": "NO",
        "timezone": "Europe/Oslo",
        "population": 580000,
        "country": "Norway",
        "admin1": "Oslo County",
    },
    {
        "id": 3899361,
        "name": "Arica",
        "latitude": -18.4746,
        "longitude": -70.29792,
        "elevation": 33.0,
        "feature_code": "PPLA",
        "country_code": "CL",
        "timezone": "America/Santiago",
        "population": 222619,
        "country": "Chile",
        "admin1": "Arica y Parinacota",
    },
    *(
        {
            "id": number,
            "name": "Springfield",
            "latitude": latitude,
            "longitude": longitude,
            "elevation": 180.0,
            "feature_code": "PPL",
            "country_code": "US",
            "timezone": "America/Chicago",
            "population": population,
            "country": "United States",
            "admin1": region,
        }
        for number, latitude, longitude, population, region in (
            (4409896, 37.21533, -93.29824, 169176, "Missouri"),
            (4250542, 39.80172, -89.64371, 116565, "Illinois"),
        )
    ),
]


def _leave_out(daily: dict[str, list[Any]], first: int, count: int) -> None:
    for column in daily.values():
        del column[first : first + count]


def _gap(daily: dict[str, list[Any]]) -> None:
    _leave_out(daily, 100, 12)


def _small_gaps(daily: dict[str, list[Any]]) -> None:
    _leave_out(daily, 200, 2)
    daily["precipitation_sum"][50] = None
    for column in daily.values():
        column.insert(10, column[10])


def _fahrenheit(daily: dict[str, list[Any]]) -> None:
    for name in ("temperature_2m_max", "temperature_2m_min"):
        daily[name] = [None if value is None else round(value * 9 / 5 + 32, 1) for value in daily[name]]


def _ends_early(daily: dict[str, list[Any]]) -> None:
    _leave_out(daily, len(daily["time"]) - 40, 40)


def _negative_rain(daily: dict[str, list[Any]]) -> None:
    daily["precipitation_sum"][30:33] = [-1.0, -2.0, -3.0]


# Places with invalid data: coordinates, and the function that spoils the data. Without a function the archive refuses
# the place with status 400. Only the gaps of Patchville are small enough to be filled.
SPOILT: dict[str, tuple[float, float, Callable[[dict[str, list[Any]]], None] | None]] = {
    "Gapville": (47.01, -30.0, _gap),
    "Patchville": (47.02, -30.0, _small_gaps),
    "Fahrenheitville": (47.03, -30.0, _fahrenheit),
    "Staleville": (47.04, -30.0, _ends_early),
    "Negativeville": (47.05, -30.0, _negative_rain),
    "Refuseville": (47.06, -30.0, None),
}
PLACES += [
    {
        "id": 9000000 + number,
        "name": name,
        "latitude": latitude,
        "longitude": longitude,
        "elevation": 0.0,
        "feature_code": "PPL",
        "country_code": "XX",
        "timezone": "GMT",
        "population": 0,
        "country": "Testland",
        "admin1": "Testshire",
    }
    for number, (name, (latitude, longitude, _)) in enumerate(SPOILT.items())
]


def geocode(query: dict[str, str]) -> dict[str, Any]:
    """Return the answer of /v1/search: places of exactly this name, the largest first; without one it has no `results`."""
    name = query.get("name", "").casefold()
    found = [place for place in PLACES if str(place["name"]).casefold() == name][: int(query.get("count", "10"))]
    answer: dict[str, Any] = {"results": found} if found else {}
    return answer | {"generationtime_ms": 0.42}


def synthetic_day(
    day: date, latitude: float, chance: random.Random, wet_before: bool, wind_before: float
) -> dict[str, float]:
    """Return one day's values in Open-Meteo's default units; rain is more likely after rain and after wind."""
    season = math.cos(2 * math.pi * (day.timetuple().tm_yday - 15) / 365.25) * (1 if latitude >= 0 else -1)
    wet = chance.random() < (0.6 if wet_before else 0.2) + 0.15 * season + 0.02 * (wind_before - 20)
    warm = 25 - abs(latitude) / 4 - 9 * season + chance.gauss(0, 3)
    return {
        "precipitation_sum": round(1 + chance.expovariate(1 / 6), 1) if wet else 0.0,
        "temperature_2m_max": round(warm - 2 * wet, 1),
        "temperature_2m_min": round(warm - 9 + 3 * wet, 1),
        "wind_speed_10m_max": round(8 + chance.expovariate(1 / 12), 1),
    }


def archive(query: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of /v1/archive."""
    try:
        first, last = date.fromisoformat(query["start_date"]), date.fromisoformat(query["end_date"])
    except (KeyError, ValueError) as error:
        return 400, {"error": True, "reason": f"Parameter missing or invalid: {error}."}
    today = datetime.now(UTC).date()
    for name, day in {"start_date": first, "end_date": last}.items():
        if not FIRST_DAY <= day <= today:
            reason = f"Parameter '{name}' is out of allowed range from {FIRST_DAY} to {today}"
            return 400, {"error": True, "reason": reason}
    return daily_answer(query, first, last, newest=today - timedelta(days=5))  # the archive lags behind


def forecast(query: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of /v1/forecast: past days, today and the days ahead."""
    today, days = datetime.now(UTC).date(), []
    for name, usual, least, most in (("past_days", "0", 0, 92), ("forecast_days", "7", 1, 16)):
        text = query.get(name, usual)
        if not text.isdigit() or not least <= int(text) <= most:
            reason = f"Parameter '{name}' is out of allowed range from {least} to {most}. Given {text}."
            return 400, {"error": True, "reason": reason}
        days.append(timedelta(days=int(text)))
    last = today + days[1] - timedelta(days=1)
    return daily_answer(query, today - days[0], last, newest=last)


def daily_answer(query: dict[str, str], first: date, last: date, newest: date) -> tuple[int, dict[str, Any]]:
    """Return status and JSON with the days from `first` to `last`, blank after `newest`."""
    try:
        latitude, longitude = float(query["latitude"]), float(query["longitude"])
    except (KeyError, ValueError) as error:
        return 400, {"error": True, "reason": f"Parameter missing or invalid: {error}."}
    names = query.get("daily", "").split(",")
    if unknown := [name for name in names if name not in UNITS]:
        reason = f"Cannot initialize ForecastVariableDaily from invalid String value {unknown[0]}."
        return 400, {"error": True, "reason": reason}
    spoilers = {(north, east): spoil for north, east, spoil in SPOILT.values()}
    if (latitude, longitude) in spoilers and spoilers[latitude, longitude] is None:
        return 400, {"error": True, "reason": "No data is available for this location."}
    metric_wind = query.get("wind_speed_unit") == "ms"
    daily: dict[str, list[Any]] = {"time": [], **{name: [] for name in names}}
    chance, wet, wind = random.Random(f"{latitude:.2f} {longitude:.2f} {first}"), False, 20.0
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        values: dict[str, Any] = dict(synthetic_day(day, latitude, chance, wet, wind))
        if round(latitude) == -18:
            values["precipitation_sum"] = 0.0
        wet, wind = values["precipitation_sum"] > 0, values["wind_speed_10m_max"]
        if metric_wind:
            values["wind_speed_10m_max"] = round(values["wind_speed_10m_max"] / 3.6, 2)
        if day > newest:
            values = dict.fromkeys(values)
        daily["time"].append(day.isoformat())
        for name in names:
            daily[name].append(values[name])
    if spoil := spoilers.get((latitude, longitude)):
        spoil(daily)
    units = {"time": "iso8601"} | {name: UNITS[name] for name in names}
    if metric_wind and "wind_speed_10m_max" in units:
        units["wind_speed_10m_max"] = "m/s"
    return 200, {
        "latitude": round(latitude, 2),
        "longitude": round(longitude, 2),
        "generationtime_ms": 3.14,
        "utc_offset_seconds": 0,
        "timezone": "GMT",
        "timezone_abbreviation": "GMT",
        "elevation": 10.0,
        "daily_units": units,
        "daily": daily,
    }


class OpenMeteoServer:
    """The server, on a free port of the loopback interface; a context manager that starts and stops it.

    Switches, which may be set while it runs:
    fail_first: the number of requests of each path that are answered with `fail_status`.
    refusals: reasons with which the next requests are refused (429), one for each request, as Open-Meteo does.
    retry_after: the header Retry-After of those failures, a number of seconds or an HTTP date.
    truncate: bodies are cut in the middle of the JSON, with a matching Content-Length.
    cut: the connection is closed in the middle of the body.
    lengthless: answers have no Content-Length; the end of the connection ends them.
    trickle: seconds between the bytes of a body.
    stalled: requests are accepted and never answered.
    change: a function that modifies the archive's or the forecast's answer before it is sent.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1", fail_first: int = 0, fail_status: int = 503) -> None:
        self.fail_first, self.fail_status = fail_first, fail_status
        self.retry_after: str | None = None
        self.refusals: list[str] = []
        self.truncate = self.cut = self.lengthless = self.stalled = False
        self.trickle = 0.0
        self.change: Callable[[dict[str, Any]], object] | None = None
        self.counts: Counter[str] = Counter()
        self.queries: list[tuple[str, dict[str, str]]] = []
        self._lock, self._ended = Lock(), Event()
        self._http = ThreadingHTTPServer((host, port), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://{host}:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()

    def serve_forever(self) -> None:
        """Serve in this thread until interrupted."""
        self._http.serve_forever()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Return status and JSON of a request, and count it."""
        if path == "/requests":
            return 200, dict(self.counts)
        if path == "/health":
            return 200, {"status": "ok"}
        with self._lock:
            self.counts[path] += 1
            self.queries.append((path, query))
            failing = self.counts[path] <= self.fail_first
            refusal = self.refusals.pop(0) if self.refusals else None
        if failing:
            return self.fail_status, {"error": True, "reason": "told to fail"}
        if refusal:
            return 429, {"error": True, "reason": refusal}
        if path == "/fact":
            fact = "A cat's nose print is as unique as a fingerprint."
            return 200, {"fact": fact, "length": len(fact)}
        if path == "/v1/search":
            return 200, geocode(query)
        if path in ("/v1/archive", "/v1/forecast"):
            status, content = archive(query) if path == "/v1/archive" else forecast(query)
            if status == 200 and self.change:
                self.change(content)
            return status, content
        return 404, {"error": True, "reason": "Not Found"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                status, content = server.answer(url.path, query)
                if server.stalled:
                    server._ended.wait(60)
                    return
                body = json.dumps(content, ensure_ascii=False).encode()
                if server.truncate:
                    body = body[: len(body) // 2]
                self.send_response(status)
                self.send_header("Content-Type", "application/json; charset=utf-8")
                if not server.lengthless:
                    self.send_header("Content-Length", str(len(body)))
                if server.retry_after and status == server.fail_status:
                    self.send_header("Retry-After", server.retry_after)
                self.end_headers()
                if server.cut:
                    body = body[: len(body) // 2]
                for piece in [body[at : at + 1] for at in range(len(body))] if server.trickle else [body]:
                    try:
                        self.wfile.write(piece)
                    except ConnectionError:  # the client has closed the connection
                        return
                    if server._ended.wait(server.trickle):
                        return

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--fail-first", type=int, default=0, help="number of failures of each path before it answers")
    parser.add_argument("--fail-status", type=int, default=503)
    options = parser.parse_args()
    server = OpenMeteoServer(options.port, options.host, options.fail_first, options.fail_status)
    print(f"{time.strftime('%H:%M:%S')} serving synthetic weather on port {options.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
