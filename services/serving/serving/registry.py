"""The part of MLflow's REST API that serving needs: the champions, and the files of a version.

MLflow's own client would cost a second at start and 80 MiB, and over S3 it would read from the object store itself.
Here files come through MLflow's proxy, so that the service needs no key of the store.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from serving.errors import RegistryError, UnservableError
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def champions(self) -> dict[str, Champion | None]:
        """Return every registered model that this account may read, with its champion."""
        found: dict[str, Champion | None] = {}
        token = ""
        while True:
            query = {"max_results": "1000"} | ({"page_token": token} if token else {})
            page = self._json(f"{API}/registered-models/search", query)
            for model in page.get("registered_models", []):
                name, created = str(model["name"]), int(model["creation_timestamp"])
                aliases = {alias["alias"]: int(alias["version"]) for alias in model.get("aliases", [])}
                version = aliases.get(Alias.CHAMPION)
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

    def file(self, version: Version, name: str) -> bytes:
        """Return the bytes of a file of a version."""
        return self._get(f"{PROXY}/{quote(f'{version.folder}/{name}')}", {}).content

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
        try:
            return self._http.get(path, params=query).raise_for_status()
        except httpx.HTTPStatusError as error:
            raise RegistryError(f"MLflow answers {error.response.status_code} to {path}") from error
        except httpx.HTTPError as error:
            raise RegistryError(f"MLflow does not answer at {self._http.base_url} ({error})") from error
