"""The platform's library: what flows import, the platform's own flows, and the contract between the services."""

from importlib.metadata import version

__version__ = version("trainyard")
