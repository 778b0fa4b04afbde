"""Plays rounds: triggers runs, waits for the moment, carries out the fault, and waits until every promise holds."""

import time
from typing import Any

import httpx

from bench.chaos.faults import Faults
from bench.chaos.moments import Moments
from bench.chaos.plan import Round
from bench.chaos.promises import Promises
from infra.testing.stack import Stack

SETTLE_SECONDS, MOMENT_SECONDS = 120.0, 60.0
PIPELINE = "weather-pipeline"
PARAMETERS = {"refresh": True, "families": ["logistic-regression"], "years": 2, "gate": {"force": True}}


class Chaos:
    """A stack under faults.

    Every promise has to hold `settle_seconds` after one.
    """

    def __init__(self, stack: Stack, seed: int, settle_seconds: float = SETTLE_SECONDS) -> None:
        self.stack, self.seed, self.settle_seconds = stack, seed, settle_seconds
        self.started = time.monotonic()
        self.timeline: list[str] = []
        self.faults = Faults(stack, self.say)
        self.promises = Promises(stack, self.faults)
        variables = stack.variables()
        self.moments = Moments(variables["PREFECT_API_URL"], variables["PREFECT_API_AUTH_STRING"])
        with stack.prefect() as api:
            self.deployments = {each["name"]: each["id"] for each in api.post("/deployments/filter", json={}).json()}

    def close(self) -> None:
        """Close the connections to the stack."""
        self.moments.close()
        self.promises.close()

    def say(self, text: str) -> None:
        """Print a line of the timeline, in seconds since the round began."""
        line = f"{time.monotonic() - self.started:7.2f} s  {text}"
        self.timeline.append(line)
        print(line, flush=True)

    def trigger(self, name: str, parameters: dict[str, Any]) -> str:
        """Start a run of a deployment; return its id."""
        with self.stack.prefect() as api:
            answer = api.post(f"/deployments/{self.deployments[name]}/create_flow_run", json={"parameters": parameters})
            if answer.is_error:
                self.say(f"{name} cannot be triggered: {answer.text}")
            return str(answer.raise_for_status().json()["id"])

    def play(self, planned: Round) -> dict[str, Any]:
        """Play a round; return what came of it."""
        self.started, self.timeline = time.monotonic(), []
        print(f"\nround {planned.number} of seed {self.seed}: {planned.fault} {planned.target} at {planned.moment}")
        self.promises.begin()
        self.moments.connected.wait(30)
        self.moments.forget()
        runs: list[str] = []
        with self.faults.prepared(planned) as carry_out:
            if planned.moment != "idle":
                runs.append(self.trigger(PIPELINE, PARAMETERS))
                if planned.moment == "lock":
                    runs.append(self.trigger(PIPELINE, PARAMETERS))
                self.say(f"triggered {', '.join(runs)}")
            came = self.moments.wait_for(planned.moment, runs[0] if runs else "", MOMENT_SECONDS)
            time.sleep(planned.offset)
            self.say(planned.moment if came else f"{planned.moment} did not come")
            if planned.fault == "memory":
                runs.append(self.trigger("devour", {}))
            carry_out()
        over = time.monotonic()
        violations = self.settle(runs)
        seconds = time.monotonic() - over
        return {
            "seed": self.seed,
            "round": planned.number,
            "fault": planned.fault,
            "target": planned.target,
            "moment": planned.moment if came else f"{planned.moment} (missed)",
            "outcome": outcome(self.promises, runs) if not violations else "broken",
            "settled_seconds": round(seconds, 1),
            "violations": violations,
            "states": [describe(self.promises, run) for run in runs],
            "timeline": self.timeline,
        }

    def settle(self, runs: list[str]) -> list[str]:
        """Wait until every promise holds; return the violations that are left in the end."""
        deadline = time.monotonic() + self.settle_seconds
        violations, said = self.promises.violations(runs), ""
        while violations and time.monotonic() < deadline:
            if violations[0] != said:
                self.say(said := violations[0])
            time.sleep(1)
            violations = self.promises.violations(runs)
        self.say("settled" if not violations else f"BROKEN: {'; '.join(violations)}")
        return violations


def describe(promises: Promises, run: str) -> str:
    """Return a run's state and its reason."""
    try:
        found = promises.state(run)
        return f"{found['name']} {found['state_name']} (run {found['run_count']}): {found['state']['message']}"
    except httpx.HTTPError as error:
        return f"{run}: {error}"


def outcome(promises: Promises, runs: list[str]) -> str:
    """Return how the pipeline's run ended: completed at once, completed after another start, or ended truthfully."""
    if not runs:
        return "idle"
    found = promises.state(runs[0])
    if found["state_type"] != "COMPLETED":
        return "ended truthfully"
    return "completed" if found["run_count"] == 1 else "resumed"
