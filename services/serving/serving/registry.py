"""The part of MLflow's REST API that serving needs: the champions, and the files of a version.

MLflow's own client would cost a second at start and 80 MiB, and over S3 it would read from the object store itself.
Here files come through MLflow's proxy, so that the service needs no key of the store.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from serving.errors import RegistryError, UnknownVersionError, UnservableError
from serving.settings import Settings
from trainyard.contract import Alias

API, PROXY = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"


@dataclass(frozen=True)
class Champion:
    """The version of a registered model that has the alias."""

    model: str
    registered: int
    """When the registered model was created: one that was deleted and created again restarts at version 1."""
    version: int


@dataclass(frozen=True)
class Version:
    """A version's age, tags and folder of files."""

    created: float
    """Seconds since the epoch."""
    folder: str
    """Its path at MLflow's artifact proxy."""
    tags: Mapping[str, str]


class Registry:
    """A client of MLflow. All methods raise RegistryError where MLflow does not answer."""

    def __init__(self, address: str, login: tuple[str, str] | None, timeout_seconds: float = 10.0) -> None:
        self._http = httpx.Client(base_url=address.rstrip("/"), auth=login, timeout=timeout_seconds)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return a client of the MLflow that the settings name."""
        user, password = settings.mlflow_tracking_username, settings.mlflow_tracking_password.get_secret_value()
        return cls(settings.mlflow_tracking_uri, (user, password) if user else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def champions(self, alias: str = Alias.CHAMPION) -> dict[str, Champion | None]:
        """Return every registered model that this account may read, with its champion or the holder of another alias."""
        found: dict[str, Champion | None] = {}
        token = ""
        while True:
            query = {"max_results": "1000"} | ({"page_token": token} if token else {})
            page = self._json(f"{API}/registered-models/search", query)
            for model in page.get("registered_models", []):
                name, created = str(model["name"]), int(model["creation_timestamp"])
                aliases = {alias["alias"]: int(alias["version"]) for alias in model.get("aliases", [])}
                version = aliases.get(alias)
                found[name] = Champion(name, created, version) if version is not None else None
            token = page.get("next_page_token", "")
            if not token:
                return found

    def version(self, champion: Champion) -> Version:
        """Return where a version's files are.

        Raises:
            UnservableError: They are not behind MLflow's proxy.
            RegistryError: MLflow did not answer.
        """
        query = {"name": champion.model, "version": str(champion.version)}
        version = self._json(f"{API}/model-versions/get", query)["model_version"]
        source = str(self._json(f"{API}/model-versions/get-download-uri", query)["artifact_uri"])
        if source.startswith("models:/m-"):
            logged = self._json(f"{API}/logged-models/{quote(source.removeprefix('models:/'), safe='')}", {})
            source = str(logged["model"]["info"]["artifact_uri"])
        if not source.startswith("mlflow-artifacts:"):
            raise UnservableError(f"its files are at {source}, not behind MLflow's proxy")
        tags = {str(tag["key"]): str(tag.get("value", "")) for tag in version.get("tags", [])}
        return Version(int(version["creation_timestamp"]) / 1000, urlsplit(source).path.strip("/"), tags)

    def sizes(self, version: Version, folder: str = "") -> dict[str, int]:
        """Return the sizes of the files in a folder of a version, in bytes by their paths within the version."""
        path = f"{version.folder}/{folder}" if folder else version.folder
        listed = self._json(PROXY, {"path": path}).get("files", [])
        return {
            f"{folder}/{name}" if folder else name: int(file.get("file_size") or 0)
            for file in listed
            if not file.get("is_dir")
            for name in [str(file["path"]).rpartition("/")[2]]
        }

    def fetch(self, version: Version, name: str, folder: Path, max_bytes: int) -> None:
        """Write a file of a version to the same path in a folder, a chunk at a time.

        Raises:
            UnservableError: It has more than `max_bytes`, or a path that leads out of the folder.
        """
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise UnservableError(f"its file {name} is outside of its folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        path, size = f"{PROXY}/{quote(f'{version.folder}/{name}')}", 0
        with self._errors(path), self._http.stream("GET", path) as answer, target.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                size += len(chunk)
                if size > max_bytes:
                    raise UnservableError(f"its file {name} has more than {max_bytes} bytes")
                file.write(chunk)

    def _json(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        answer = self._get(path, query)
        try:
            document = answer.json()
        except ValueError as error:
            raise RegistryError(f"MLflow's answer to {path} is not JSON") from error
        if not isinstance(document, dict):
            raise RegistryError(f"MLflow's answer to {path} is not as documented")
        return document

    def _get(self, path: str, query: dict[str, str]) -> httpx.Response:
        with self._errors(path):
            return self._http.get(path, params=query).raise_for_status()

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND and path.endswith("/model-versions/get"):
                raise UnknownVersionError("MLflow has no such version") from error
            raise RegistryError(f"MLflow answers {error.response.status_code} to {path}") from error
        except httpx.HTTPError as error:
            raise RegistryError(f"MLflow does not answer at {self._http.base_url} ({error})") from error
