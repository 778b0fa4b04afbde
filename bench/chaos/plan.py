"""Which fault meets which service at which moment: decided by the seed and the number of the round alone."""

import random
from dataclasses import dataclass
from itertools import product

SERVICES = ("postgres", "minio", "prefect", "mlflow", "worker", "serving", "dashboard", "mail")
MOMENTS = ("scheduled", "pending", "started", "task", "lock", "upload", "register", "alias", "mail", "idle")
"""Of a run: before its first heartbeat (`started`), in a task, waiting for a lock, while its model is uploaded and
registered, while the alias moves, while the mail about it is sent; or without a run."""
FAULTS_OF_SERVICES = ("kill", "freeze", "cut", "restart")
FAULTS_OF_ALL = ("power", "power-in-random-order")
FAULTS_OF_RUNS = ("kill-run", "kill-warm", "memory")
FAULTS_OF_VOLUMES = ("disk",)
VOLUMES = ("postgres", "minio")
MIN_SECONDS, MAX_SECONDS = 3.0, 60.0
"""How long a service is frozen or cut off, or a disk full: the shorter, the more often."""
OFFSETS = {"task": (0.0, 1.0), "upload": (0.0, 1.0), "register": (1.0, 2.0), "alias": (0.0, 0.3), "mail": (0.0, 0.5)}
"""By moment, how many seconds pass at least and at most between its beginning and the fault. `register` begins as `upload`."""


@dataclass(frozen=True)
class Round:
    """A fault to come."""

    number: int
    fault: str
    target: str
    """A service, or `all`."""
    moment: str
    offset: float
    """Seconds from the moment's beginning to the fault."""
    seconds: float
    """How long the fault lasts, where it does."""
    shuffle: int
    """Seeds the order in which containers start after a power cut."""


def pairs() -> list[tuple[str, str]]:
    """Return each fault with each of its targets."""
    return [
        *product(FAULTS_OF_SERVICES, SERVICES),
        *product(FAULTS_OF_ALL, ("all",)),
        *product(FAULTS_OF_RUNS, ("worker",)),
        *product(FAULTS_OF_VOLUMES, VOLUMES),
    ]


def plan(seed: int, number: int) -> Round:
    """Return a round; every fault meets every target at every moment before one comes again."""
    everything = list(product(pairs(), MOMENTS))
    lap, place = divmod(number, len(everything))
    random.Random(f"{seed}/{lap}").shuffle(everything)
    (fault, target), moment = everything[place]
    dice = random.Random(f"{seed}/{number}")
    return Round(
        number=number,
        fault=fault,
        target=target,
        moment=moment,
        offset=round(dice.uniform(*OFFSETS.get(moment, (0.0, 0.0))), 2),
        seconds=round(MIN_SECONDS * (MAX_SECONDS / MIN_SECONDS) ** dice.random(), 1),
        shuffle=dice.randrange(1 << 30),
    )
