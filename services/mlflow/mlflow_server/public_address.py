"""What MLflow's protection against DNS rebinding and cross-site requests accepts, from the address of its UI.

Without it MLflow refuses each request of its own UI that writes, under any name but localhost.
"""

from collections.abc import MutableMapping
from urllib.parse import urlsplit

INTERNAL_HOSTS = ("mlflow:5000", "localhost:*", "127.0.0.1:*")
DEFAULT_PORTS = {"http": 80, "https": 443}


def accept_public_address(environment: MutableMapping[str, str]) -> None:
    """Set MLflow's allowed hosts and origins from MLFLOW_UI_URL; leave those that are set.

    Call it before MLflow's server is imported, which reads them then.

    Args:
        environment: The process's variables.
    """
    address = environment.get("MLFLOW_UI_URL")
    if address is None:
        return
    scheme, host = browser_origin(address)
    environment.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", ",".join([*INTERNAL_HOSTS, host]))
    environment.setdefault("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", f"{scheme}://{host}")


def browser_origin(address: str) -> tuple[str, str]:
    """Return the scheme of an address, and its host as browsers send it: in lower case and without the scheme's own port."""
    parts = urlsplit(address.lower())
    is_default = parts.port == DEFAULT_PORTS[parts.scheme]
    return parts.scheme, parts.netloc.removesuffix(f":{parts.port}") if is_default else parts.netloc
