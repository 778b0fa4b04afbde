"""`make chaos ROUNDS=n SEED=s`: faults at random moments of running pipelines, with a check of every promise after each.

--rounds N       how many rounds
--seed S         decides all faults; a round of the same seed and number is the same
--first N        the number of the first round, to replay one or to go on
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from bench.chaos.faults import Faults
from bench.chaos.moments import Moments
from bench.chaos.plan import Round, plan
from bench.chaos.promises import Promises
from bench.chaos.report import RESULTS, tables
from infra.provision.follow import find_deployment
from infra.testing.stack import Stack, copy_checkout
from infra.testing.waiting import wait_until

SETTLE_SECONDS, MOMENT_SECONDS = 120.0, 60.0
PIPELINE = "weather-pipeline"
PARAMETERS = {"refresh": True, "families": ["logistic-regression"], "years": 2, "gate": {"min_improvement": 0}}
HOG = '''
from prefect import flow


@flow
def devour():
    """Allocate memory without end."""
    blocks = []
    while True:
        blocks.append(bytearray(b"x" * (64 << 20)))
'''


class Chaos:
    """A stack under faults."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.stack, self.seed = stack, seed
        self.started = time.monotonic()
        self.timeline: list[str] = []
        self.faults = Faults(stack, self.say)
        variables = stack.variables()
        self.moments = Moments(variables["PREFECT_API_URL"], variables["PREFECT_API_AUTH_STRING"])
        with stack.prefect() as api:
            self.deployments = {name: find_deployment(api, name)["id"] for name in (PIPELINE, "devour")}

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
        promises = Promises(self.stack, self.faults)
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
        violations = self.settle(promises, runs)
        seconds = time.monotonic() - over
        return {
            "seed": self.seed,
            "round": planned.number,
            "fault": planned.fault,
            "target": planned.target,
            "moment": planned.moment if came else f"{planned.moment} (missed)",
            "outcome": outcome(promises, runs) if not violations else "broken",
            "settled_seconds": round(seconds, 1),
            "violations": violations,
            "states": [describe(promises, run) for run in runs],
            "timeline": self.timeline,
        }

    def settle(self, promises: Promises, runs: list[str]) -> list[str]:
        """Wait until every promise holds; return the violations that are left after two minutes."""
        deadline = time.monotonic() + SETTLE_SECONDS
        violations, said = promises.violations(runs), ""
        while violations and time.monotonic() < deadline:
            if violations[0] != said:
                self.say(said := violations[0])
            time.sleep(1)
            violations = promises.violations(runs)
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


def main() -> None:
    """Play rounds, append each to the results, and print the tables; exit with 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        copy_checkout(home)
        (home / "flows/devour.py").write_text(HOG)
        with (home / "prefect.yaml").open("a") as project:
            project.write(
                "\n  - name: devour\n    entrypoint: flows/devour.py:devour\n    work_pool: *training\n    tags: [mail]\n"
            )
        stack = Stack(home, SCHEDULES_ACTIVE="false")
        stack.environment["COMPOSE_FILE"] += ":bench/chaos/compose.yml"
        try:
            stack.up()
            stack.wait_for_first_run()
            wait_until(lambda: stack.model_versions(), 60, "the first model")
            chaos = Chaos(stack, arguments.seed)
            arguments.results.parent.mkdir(exist_ok=True)
            for number in range(arguments.first, arguments.first + arguments.rounds):
                rows.append(chaos.play(plan(arguments.seed, number)))
                with arguments.results.open("a") as results:
                    results.write(json.dumps(rows[-1]) + "\n")
        finally:
            stack.remove()
    print(f"\n{tables(rows)}")
    broken = [row["round"] for row in rows if row["outcome"] == "broken"]
    if broken:
        raise SystemExit(
            f"Broken promises in the rounds {broken} of seed {arguments.seed}; replay one with FIRST=n ROUNDS=1."
        )


if __name__ == "__main__":
    main()
