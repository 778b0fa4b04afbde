"""`make chaos ROUNDS=n SEED=s`: faults at random moments of running pipelines, with a check of every promise after each.

--rounds N       how many rounds
--seed S         decides all faults; a round of the same seed and number is the same
--first N        the number of the first round, to replay one or to go on
"""

import argparse
import json
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from bench.chaos.plan import plan
from bench.chaos.player import Chaos
from bench.chaos.report import RESULTS, tables
from infra.testing.stack import CHECKOUT, Stack, copy_checkout
from infra.testing.waiting import wait_until

HOG = '''
from prefect import flow


@flow
def devour():
    """Allocate memory without end."""
    blocks = []
    while True:
        blocks.append(bytearray(b"x" * (64 << 20)))
'''


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
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.strip()
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
        stack.environment["COMPOSE_FILE"] += ":bench/chaos/compose.yml:bench/chaos/volumes.yml"
        try:
            stack.up()
            stack.wait_for_first_run()
            wait_until(lambda: stack.model_versions(), 60, "the first model")
            arguments.results.parent.mkdir(exist_ok=True)
            with closing(Chaos(stack, arguments.seed)) as chaos:
                for number in range(arguments.first, arguments.first + arguments.rounds):
                    rows.append({"commit": commit, **chaos.play(plan(arguments.seed, number))})
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
