"""Loads a version: fetched to a folder within a limit of memory, read from a safe format, and warmed up."""

import json
import logging
import pickle
import threading
import weakref
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sklearn
import skops.io
import yaml
from skops.io.exceptions import UntrustedTypesFoundException

from serving.columns import ColumnsReader
from serving.decoding import DecodingProcess
from serving.errors import NoRoomError, RegistryError, UnservableError
from serving.memory import give_back, mebibytes
from serving.model import Estimator, Model
from serving.payloads import Reader, Table
from serving.problems import RequestError
from serving.registry import Champion, Registry, Version
from serving.schema import Schema, parse_signature
from serving.settings import Settings

log = logging.getLogger("serving")

MODEL_FILE = "MLmodel"
MAX_DOCUMENT_BYTES = 4 * 2**20
"""The largest MLmodel file and input example that are read; a model is served without a larger example."""
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
    file = estimator_file(document)
    size = registry.sizes(version, str(Path(file).parent) if "/" in file else "").get(file)
    if size is None:
        raise RegistryError(f"MLflow does not list the file {file}")
    reserve(LOAD_FACTOR * size)
    registry.fetch(version, file, folder, size)
    reserve(LOAD_FACTOR * max(size, unpacked_size(folder / file)))
    if example := example_file(document):
        with suppress(UnservableError):  # too large
            registry.fetch(version, example, folder, MAX_DOCUMENT_BYTES)


def open_model(
    folder: Path, champion: Champion, version: Version, settings: Settings, decoding: DecodingProcess
) -> Model:
    """Return the model in a folder, warmed up.

    Raises:
        UnservableError: It cannot be served.
    """
    document = read_document(folder)
    schema, flavor = parse_signature(document), document["flavors"]["sklearn"]
    file = folder / estimator_file(document)
    fitted = load_estimator(file, str(flavor.get("serialization_format")), settings)
    size = max(file.stat().st_size, unpacked_size(file))
    give_back()
    estimator = Estimator(fitted, schema)
    del fitted
    model = Model(champion, version, estimator, Reader(schema, settings.limits, decoding), schema)
    model.size = size
    model.warning = compare_versions(str(flavor.get("sklearn_version", "")), sklearn.__version__)
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
        UnservableError: It describes no scikit-learn model.
    """
    document = yaml.safe_load((folder / MODEL_FILE).read_bytes())
    if not isinstance(document, dict) or not (document.get("flavors") or {}).get("sklearn"):
        raise UnservableError("it is not a scikit-learn model")
    return document


def estimator_file(document: Mapping[str, Any]) -> str:
    """Return the path of the estimator's file."""
    return str(document["flavors"]["sklearn"]["pickled_model"])


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


def compare_versions(fitted: str, own: str) -> str | None:
    """Return a warning where a model was fitted by another minor version of scikit-learn, which may compute otherwise."""
    if fitted.split(".")[:2] == own.split(".")[:2] or not fitted:
        return None
    return f"it was fitted by scikit-learn {fitted}, and {own} predicts: its predictions may differ"


def load_estimator(file: Path, form: str, settings: Settings) -> Any:
    """Return the estimator in a file.

    Raises:
        UnservableError: The file holds types that are not trusted, or is a pickle and pickles are not allowed.
    """
    if form == "skops":
        try:
            return skops.io.load(file, trusted=sorted(settings.trusted_types))
        except UntrustedTypesFoundException as error:
            raise UnservableError(f"{error} Review them, and set SERVING_TRUSTED_TYPES") from error
        except MemoryError:
            raise
        except Exception as error:
            raise UnservableError(f"its file cannot be read ({type(error).__name__}: {error})") from error
    if not settings.serving_allow_pickle:
        raise UnservableError(
            f"it was saved by {form}, which can run any code when it is loaded: "
            'log it with serialization_format="skops", or set SERVING_ALLOW_PICKLE=true'
        )
    try:
        with file.open("rb") as content:
            return pickle.load(content)  # noqa: S301 - the setting says so
    except MemoryError:
        raise
    except Exception as error:
        raise UnservableError(f"its file cannot be read ({type(error).__name__}: {error})") from error


def parse_example(document: Any, schema: Schema) -> Table | None:
    """Return the rows of an input example that MLflow saved of a data frame, or None if it is of something else."""
    if not isinstance(document, Mapping) or not {"columns", "data"} <= document.keys():
        return None
    with suppress(ValueError, TypeError, RequestError):
        positions = [document["columns"].index(name) for name in schema.names]
        rows = document["data"]
        columns = {name: [row[at] for row in rows] for name, at in zip(schema.names, positions, strict=True)}
        return Table(ColumnsReader(schema, strict=False).read(columns), len(rows))
    return None
