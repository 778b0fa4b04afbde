"""Where people's browsers find the two UIs; trainyard.contract has the addresses of their pages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UIAddresses:
    """The UIs' addresses, without a slash at the end."""

    mlflow: str
    prefect: str
