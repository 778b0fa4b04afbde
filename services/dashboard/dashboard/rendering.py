"""Templates and static files."""

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, select_autoescape

from dashboard import charts
from dashboard.formatting import FILTERS
from dashboard.metrics import describe_metric
from dashboard.selection import RANGES
from trainyard.contract import Alias, Artifact, GateDecision

STATIC = Path(__file__).parent / "static"
BUNDLE = "vega.js"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class StaticFile(NamedTuple):
    """A static file in memory."""

    content: bytes
    gzipped: bytes
    media_type: str
    url: str
    """Has a digest of the content, so that browsers can cache it for good."""


def load_static_files(bundle: Path) -> dict[str, StaticFile]:
    """Return the static files by name, with `bundle` as vega.js."""
    paths = {path.name: path for path in STATIC.iterdir() if path.suffix in MEDIA_TYPES} | {BUNDLE: bundle}
    files = {}
    for name, path in paths.items():
        content = path.read_bytes()
        url = f"/static/{name}?{hashlib.sha256(content).hexdigest()[:12]}"
        files[name] = StaticFile(content, gzip.compress(content, 6), MEDIA_TYPES[Path(name).suffix], url)
    return files


def load_templates(files: dict[str, StaticFile]) -> Environment:
    """Return the page's templates with their filters and globals."""
    templates = Environment(
        loader=PackageLoader("dashboard"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "static": {name: file.url for name, file in files.items()},
        "charts": charts,
        "describe_metric": describe_metric,
        "RANGES": RANGES,
        "Alias": Alias,
        "Artifact": Artifact,
        "GateDecision": GateDecision,
    }
    templates.filters |= FILTERS
    return templates
