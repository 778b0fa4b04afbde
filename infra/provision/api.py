"""A client of Prefect's REST API, for what needs no more: Prefect's own takes seconds to import."""

from typing import Any

import httpx

from infra.provision.settings import Settings


def prefect_api(settings: Settings) -> httpx.Client:
    """Return a client of the server that the settings name."""
    login = settings.prefect_api_auth_string
    auth = httpx.BasicAuth(*login.get_secret_value().split(":", 1)) if login else None
    return httpx.Client(base_url=settings.prefect_api_url, auth=auth, timeout=30)


def find_deployments(api: httpx.Client, *names: str) -> list[dict[str, Any]]:
    """Return the deployments of these names, or all, each with its `full_name` FLOW/DEPLOYMENT.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    deployments = {"name": {"any_": list(names)}} if names else {}
    found = api.post("/deployments/filter", json={"deployments": deployments}).raise_for_status().json()
    flow_ids = list({deployment["flow_id"] for deployment in found})
    answer = api.post("/flows/filter", json={"flows": {"id": {"any_": flow_ids}}}).raise_for_status().json()
    flows = {flow["id"]: flow["name"] for flow in answer}
    return [{**deployment, "full_name": f"{flows[deployment['flow_id']]}/{deployment['name']}"} for deployment in found]
