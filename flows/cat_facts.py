"""Fetch cat facts: the smallest example of a task, a subflow and a flow."""

import sys
from typing import Annotated

import httpx
from prefect import flow, task
from pydantic import Field

URL = "https://catfact.ninja/fact"


@task(retries=4, retry_delay_seconds=0.3, timeout_seconds=60)
def fetch_fact(url: str) -> str:
    """Return one fact. An error status raises, and Prefect retries the task."""
    response = httpx.get(url, timeout=10).raise_for_status()
    return str(response.json()["fact"])


@flow(name="collect-facts", log_prints=True, timeout_seconds=900)
def collect_facts(url: str, count: int) -> list[str]:
    """Return `count` facts, each fetched by a task run of its own."""
    return [fetch_fact(url) for _ in range(count)]


@flow(name="cat-facts", log_prints=True, timeout_seconds=1200)
def cat_facts(url: str = URL, count: Annotated[int, Field(ge=1, le=20)] = 3) -> list[str]:
    """Print facts about cats; `log_prints` makes each line a line of the run's log.

    Args:
        url: Address that returns JSON such as {"fact": "Cats purr."}.
        count: How many facts to fetch.
    """
    facts = collect_facts(url, count)
    for number, fact in enumerate(facts, start=1):
        print(f"Cat fact {number} of {count}: {fact}")
    return facts


if __name__ == "__main__":  # on this machine, after eval "$(make -s env)": python flows/cat_facts.py [URL]
    cat_facts(sys.argv[1] if sys.argv[1:] else URL)
