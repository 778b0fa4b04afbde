"""`python -m warm_process status|summary`: the memory that live workers on this machine use, as JSON or in a sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from warm_process.ledger import live_workers
from warm_process.memory import read_rollup
from warm_process.settings import WarmProcessSettings

_MIB = 1 << 20


def status(root: Path) -> list[dict[str, Any]]:
    """Describe each live worker: its processes with their memory in MiB, and its preloaded modules."""
    return [
        {
            "worker": worker["worker"],
            "pool": worker["pool"],
            "processes": {
                "worker": _memory(worker["pid"]),
                "warm process": _memory(worker.get("warm_pid")),
                **{f"run {flow_run_id}": _memory(pid) for flow_run_id, pid in worker["runs"].items()},
            },
            "ready_after_seconds": worker.get("seconds"),
            "preloaded": worker.get("preloaded", []),
            "failed": worker.get("failed", {}),
        }
        for worker in live_workers(root)
    ]


def _memory(pid: int | None) -> dict[str, float] | None:
    """Read resident, proportional and private memory; None if the process has ended."""
    if pid is None:
        return None
    sizes = read_rollup(pid)
    if not sizes:
        return _resident(pid)
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {
        "rss": round(sizes["Rss"] / _MIB, 1),
        "pss": round(sizes["Pss"] / _MIB, 1),
        "private": round(private / _MIB, 1),
    }


def _resident(pid: int) -> dict[str, float] | None:
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return {"rss": round(int(shown.stdout) / 1024, 1)} if shown.stdout.strip() else None


def summary(worker: dict[str, Any]) -> str:
    """Describe a worker's warm process in a sentence."""
    memory = worker["processes"]["warm process"]
    if memory is None:
        return f"{worker['worker']} has no warm process: every run is a cold start."
    line = (
        f"{worker['worker']} keeps a warm process: {memory['rss']:.0f} MiB resident"
        f", {memory.get('private', memory['rss']):.0f} MiB of them private; {len(worker['preloaded'])} modules preloaded"
        f" in {worker['ready_after_seconds']} s."
    )
    if worker["failed"]:
        line += f" Could not be imported: {', '.join(worker['failed'])}."
    return line


if __name__ == "__main__":
    workers = status(WarmProcessSettings().state_dir)
    match sys.argv[1:]:
        case ["status"]:
            print(json.dumps(workers, indent=2))  # noqa: T201
        case ["summary"]:
            print(*map(summary, workers), sep="\n")  # noqa: T201
        case _:
            sys.exit("usage: python -m warm_process status|summary")
