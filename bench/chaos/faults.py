"""Carries out faults against a composed stack."""

import random
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.chaos.plan import SERVICES, Round
from infra.testing.stack import Stack

Say = Callable[[str], None]


class Faults:
    """Does to a stack what a round asks for, and undoes what lasts."""

    def __init__(self, stack: Stack, say: Say) -> None:
        self.stack, self.say = stack, say

    def agent(self, command: str, *arguments: object) -> str:
        """Run a command of `agent.py`; return what it prints."""
        words = ["docker", "compose", "exec", "-T", "agent", "python", "/agent.py", command, *map(str, arguments)]
        return self.stack.shell(shlex.join(words)).stdout

    def pids(self) -> dict[str, int]:
        """Return the first process of each running service, by its number on the host."""
        return {service: each["State"]["Pid"] for service, each in self.stack.containers().items()}

    @contextmanager
    def prepared(self, planned: Round) -> Iterator[Callable[[], None]]:
        """Yield a function that carries out the round's fault and returns when it is over."""
        pids = self.pids()
        target, name = planned.target, f"{self.stack.project}-{planned.target}-1"

        def lasting(begin: Callable[[], object], end: Callable[[], object]) -> None:
            begin()
            self.say(f"{planned.fault} {target} for {planned.seconds} s")
            try:
                time.sleep(planned.seconds)
            finally:
                end()
            self.say(f"{planned.fault} {target} is over")

        def carry_out() -> None:
            match planned.fault:
                case "freeze":
                    docker = self.stack.shell
                    lasting(lambda: docker(f"docker pause {name}"), lambda: docker(f"docker unpause {name}"))
                case "cut":
                    pid = pids[target]
                    lasting(lambda: self.agent("cut", pid), lambda: self.agent("heal", pid))
                case "disk":
                    lasting(lambda: self.agent("fill", target), lambda: self.agent("free", target))
                case "kill":
                    self.say(f"kill -9 {target}: {self.agent('kill', pids[target]).split()}")
                case "kill-run" | "kill-warm":
                    self.say(f"{planned.fault}: {self.agent(planned.fault, pids[target]).split()}")
                case "restart":
                    self.say(f"restart {target}")
                    self.stack.shell(f"docker compose restart {target}")
                case "power":
                    self.say("kill -9 everything; Docker restarts it")
                    self.agent("kill", *(pids[service] for service in SERVICES))
                case "power-in-random-order":
                    self._power_in_random_order(planned.shuffle)
                case "memory":
                    self.say("a run allocates without end")  # the runner has triggered it

        yield carry_out

    def _power_in_random_order(self, seed: int) -> None:
        names = [f"{self.stack.project}-{service}-1" for service in SERVICES]
        self.stack.shell(f"docker kill {' '.join(names)}")
        random.Random(seed).shuffle(names)
        self.say("everything is killed and starts as " + ", ".join(name.split("-")[-2] for name in names))
        self.stack.shell(f"docker start {' '.join(names)}")  # in this order
