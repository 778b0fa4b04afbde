"""Runs in the privileged agent container: `agent.py COMMAND ARGUMENT...`.

kill PID...       kill -9 services: the first process below each container's init
kill-warm PID     kill -9 the warm process of the worker
kill-run PID      kill -9 the process of one flow run; prints its pid, or nothing if no run is active
cut, heal PID     drop all packets of the container, and let them pass again
processes PID     print the command lines below the container's init, a line each
fill, free NAME   leave no space on the volume, and give it back

PID is a container's first process, by its number on the host.
"""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

ZYGOTE = "warm_process.zygote"


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Return all processes below one, parents first."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def command_line(pid: int) -> str:
    """Return a process's arguments, or nothing for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def zygote(pid: int) -> list[int]:
    """Return the warm process, whose children are the runs."""
    zygotes = [each for each in descendants(pid) if ZYGOTE in command_line(each)]
    return [each for each in zygotes if not any(each in children(other) for other in zygotes)]


def kill(pids: list[int]) -> None:
    """Kill processes and print them."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        print(pid)


def fill(file: Path) -> None:
    """Write zeros until no space is left."""
    with file.open("wb") as target:
        try:
            while True:
                target.write(bytes(1 << 20))
                target.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def main(command: str, *arguments: str) -> None:
    """Carry out a command."""
    if command in ("fill", "free"):
        file = Path("/volumes", arguments[0], "chaos")
        fill(file) if command == "fill" else file.unlink(missing_ok=True)
        return
    pids = [int(each) for each in arguments]
    match command:
        case "kill":
            kill([child for pid in pids for child in children(pid)[:1]])
        case "kill-warm":
            kill(zygote(pids[0]))
        case "kill-run":
            kill([run for warm in zygote(pids[0]) for run in children(warm)][:1])
        case "cut" | "heal":
            action = "-I" if command == "cut" else "-D"
            for chain, device in (("INPUT", "-i"), ("OUTPUT", "-o")):
                rule = ["iptables", "-w", action, chain, device, "eth+", "-j", "DROP"]
                subprocess.run(["nsenter", "-t", arguments[0], "-n", *rule], check=True)
        case "processes":
            print("\n".join(filter(None, map(command_line, descendants(pids[0])))))


main(*sys.argv[1:])
