"""Loads a version: fetched to a folder within a limit of memory, read from a safe format, and warmed up."""

import json
import logging
import threading
import weakref
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from serving.columns import ColumnsReader
from serving.decoding import DecodingProcess
from serving.errors import NoRoomError, RegistryError, UnservableError
from serving.flavors import load_estimator, parse_flavor
from serving.memory import give_back, mebibytes
from serving.model import Estimator, Model
from serving.packages import compare_versions, parse_requirements
from serving.payloads import Reader, Table
from serving.problems import RequestError
from serving.registry import Champion, Registry, Version
from serving.schema import Schema, parse_signature
from serving.settings import Settings

log = logging.getLogger("serving")

MODEL_FILE = "MLmodel"
REQUIREMENTS_FILE = "requirements.txt"
MAX_DOCUMENT_BYTES = 4 * 2**20
"""The largest MLmodel file, requirements and input example that are read; a model is served without larger ones of the
latter two."""
LOAD_FACTOR = 4
"""How many times its unpacked file's size a model takes while it is loaded: the file, as /tmp is in memory in the stack,
its arrays as skops reads them, the estimator's, and the copies that trees make of them."""


class Loader:
    """Loads versions, one at a time, within the memory that all loaded models may take together."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self.decoding = settings, DecodingProcess(settings.limits)
        self.limit = settings.model_memory
        self._lock = threading.Lock()
        self._models: weakref.WeakSet[Model] = weakref.WeakSet()
        self.drop_spare: Callable[[], None] = lambda: None
        """Drops models that are less important than champions."""

    def stop(self) -> None:
        """End the process that decodes bodies."""
        self.decoding.stop()

    def taken(self) -> int:
        """Return the memory of all models in use."""
        return sum(model.memory for model in list(self._models))

    def reserve(self, size: int) -> None:
        """Refuse a model that does not fit beside those in use.

        Raises:
            UnservableError: It would not fit even alone.
            NoRoomError: It would, but not now.
        """
        if size > self.limit:
            raise UnservableError(
                f"it takes {mebibytes(size)} of memory to load, and models may take {mebibytes(self.limit)}: "
                "set SERVING_MODEL_BYTES and SERVING_MEMORY higher, or make it smaller"
            )
        if size + self.taken() > self.limit:
            raise NoRoomError(
                f"it takes {mebibytes(size)} of memory to load, and {mebibytes(self.limit)} are shared by all models"
            )

    def load(self, registry: Registry, champion: Champion, reserve: Callable[[int], None] | None = None) -> Model:
        """Fetch, load and warm up a version.

        Args:
            registry: Where it is.
            champion: Which it is.
            reserve: Makes room for a number of bytes, or raises; by default `Loader.reserve`.

        Raises:
            UnservableError: It cannot be served: its size, its format, a type in its file, its signature, its estimator.
            NoRoomError: There is no room for it now.
            RegistryError: MLflow did not answer.
        """
        version = registry.version(champion)
        with self._lock, TemporaryDirectory(prefix="model-") as name:
            folder = Path(name)
            fetch(registry, version, folder, reserve or self.reserve)
            model = open_model(folder, champion, version, self._settings, self.decoding)
            self._models.add(model)
            return model


def fetch(registry: Registry, version: Version, folder: Path, reserve: Callable[[int], None]) -> None:
    """Write the files of a version that serving needs to a folder; the estimator's only once there is room for it."""
    registry.fetch(version, MODEL_FILE, folder, MAX_DOCUMENT_BYTES)
    document = read_document(folder)
    parse_signature(document)
    file = parse_flavor(document).file
    sizes = registry.sizes(version)
    if "/" in file:
        sizes |= registry.sizes(version, str(Path(file).parent))
    if (size := sizes.get(file)) is None:
        raise RegistryError(f"MLflow does not list the file {file}")
    reserve(LOAD_FACTOR * size)
    registry.fetch(version, file, folder, size)
    reserve(LOAD_FACTOR * max(size, unpacked_size(folder / file)))
    for name in (REQUIREMENTS_FILE, example_file(document)):
        if name in sizes:
            with suppress(UnservableError):  # too large
                registry.fetch(version, name, folder, MAX_DOCUMENT_BYTES)


def open_model(
    folder: Path, champion: Champion, version: Version, settings: Settings, decoding: DecodingProcess
) -> Model:
    """Return the model in a folder, warmed up.

    Raises:
        UnservableError: It cannot be served.
    """
    document = read_document(folder)
    schema, saved = parse_signature(document), parse_flavor(document)
    file = folder / saved.file
    fitted = load_estimator(folder, saved, settings)
    size = max(file.stat().st_size, unpacked_size(file))
    give_back()
    estimator = Estimator(fitted, schema)
    del fitted
    model = Model(champion, version, estimator, Reader(schema, settings.limits, decoding), schema)
    model.size = size
    model.warning = compare_versions({**saved.versions, **pinned_versions(folder)})
    if model.warning:
        log.warning("%s: %s", champion.model, model.warning)
    file = folder / str(example_file(document))
    example = parse_example(json.loads(file.read_bytes()), schema) if file.is_file() else None
    if example is not None:
        estimator.warm_up(example)
        model.example = {name: column[0] for name, column in zip(schema.names, example.columns, strict=True)}
    return model


def read_document(folder: Path) -> dict[str, Any]:
    """Return the MLmodel file of a folder.

    Raises:
        UnservableError: It is no description of a model.
    """
    document = yaml.safe_load((folder / MODEL_FILE).read_bytes())
    if not isinstance(document, dict):
        raise UnservableError("its MLmodel file describes no model")
    return document


def pinned_versions(folder: Path) -> dict[str, str]:
    """Return the versions that trained the model in a folder, by module, as far as its requirements tell."""
    file = folder / REQUIREMENTS_FILE
    return parse_requirements(file.read_text(errors="replace")) if file.is_file() else {}


def example_file(document: Mapping[str, Any]) -> str | None:
    """Return the path of the input example's file, or None without one."""
    saved = document.get("saved_input_example_info")
    return str(saved["artifact_path"]) if saved else None


def unpacked_size(file: Path) -> int:
    """Return the bytes that a file's members unpack to, as its directory tells; 0 where it is no archive.

    A member never unpacks to more than the directory tells: zipfile stops there.
    """
    if not zipfile.is_zipfile(file):
        return 0
    with zipfile.ZipFile(file) as archive:
        return sum(member.file_size for member in archive.infolist())


def parse_example(document: Any, schema: Schema) -> Table | None:
    """Return the rows of an input example that MLflow saved, or None if it does not fit the signature.

    MLflow writes a matrix as an array of rows, and a frame's names of columns only where they are no numbers.
    """
    rows, labels = document, None
    if isinstance(document, Mapping):
        rows, labels = document.get("data"), document.get("columns")
    with suppress(ValueError, TypeError, LookupError, RequestError):
        at = range(len(schema.columns)) if labels is None else [labels.index(column.label) for column in schema.columns]
        columns = {name: [row[place] for row in rows] for name, place in zip(schema.names, at, strict=True)}
        return Table(ColumnsReader(schema, strict=False).read(columns), len(rows))
    return None
