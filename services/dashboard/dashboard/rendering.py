"""The templates and the files that pages are made with."""

import gzip
import hashlib
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from dashboard import charts, words
from dashboard.models import label

STATIC = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def load_files(bundle: Path) -> dict[str, tuple[bytes, bytes, str]]:
    """Return the static files by name: as they are, compressed, and their type."""
    paths = [path for path in STATIC.iterdir() if path.suffix in TYPES and path.name != "vega.js"]
    texts = {path.name: path.read_bytes() for path in paths} | {"vega.js": bundle.read_bytes()}
    return {name: (text, gzip.compress(text, 6), TYPES[Path(name).suffix]) for name, text in texts.items()}


def make_templates(files: dict[str, tuple[bytes, bytes, str]]) -> Environment:
    """Return the page's templates, which find each static file under an address that changes with it."""
    addresses = {
        name: f"/static/{name}?{hashlib.sha256(text).hexdigest()[:12]}" for name, (text, _, _) in files.items()
    }
    templates = Environment(
        loader=PackageLoader("dashboard"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"static": addresses, "charts": charts, "drawn": charts.drawn, "label": label}
    templates.filters |= {
        "moment": words.moment, "took": words.took, "figure": words.figure, "share": words.share,
        "count": words.count, "paragraphs": words.paragraphs,
    }  # fmt: skip
    return templates
