"""A flow that does nothing and imports nothing."""

from prefect import flow


@flow
def trivial() -> None:
    """Return at once."""
