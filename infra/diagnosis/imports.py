"""Whether the code of deployments can be imported, in a process of its own: flows' modules may do anything.

As a program it imports what standard input names, a JSON list of [folder, entrypoint], and prints one line of JSON for each:
what is wrong, or null.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainyard.diagnosis import Finding

SECONDS = 120.0
Code = tuple[str, str]
"""Folder and entrypoint."""


def find_code(deployment: Mapping[str, Any]) -> Code | None:
    """Return where the code of a deployment is on the worker; None where it is fetched for each run, or unknown."""
    steps = [dict(step) for step in deployment.get("pull_steps") or []]
    names = {name.rpartition(".")[2] for step in steps for name in step}
    if not deployment.get("entrypoint") or not names <= {"set_working_directory"}:
        return None
    folders = [step[name]["directory"] for step in steps for name in step]
    return str(folders[-1] if folders else deployment.get("path") or "."), str(deployment["entrypoint"])


def examine_code_of_deployments(deployments: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Return which deployments' code does not import.

    Args:
        deployments: As Prefect lists them.
    """
    by_code: dict[Code, list[str]] = {}
    for deployment in deployments:
        if code := find_code(deployment):
            by_code.setdefault(code, []).append(deployment["name"])
    findings = []
    for code, problem in import_all(list(by_code)).items():
        if problem:
            names = ", ".join(sorted(by_code[code]))
            remedy = f"correct {code[1].rpartition(':')[0] or code[1]}; an edit takes effect on the next run"
            if problem.startswith("ModuleNotFoundError"):
                remedy = "add the package to your project's pyproject.toml, then make lock and make up; or correct the import"
            findings.append(Finding(f"The code of the deployment {names} does not import: {problem}.", remedy))
    return findings


def import_all(codes: Sequence[Code], seconds: float = SECONDS) -> dict[Code, str | None]:
    """Import entrypoints in other processes; return what is wrong with each, or None."""
    results: dict[Code, str | None] = {}
    while left := [code for code in codes if code not in results]:
        try:
            process = subprocess.run(
                [sys.executable, "-m", __name__],
                input=json.dumps(left),
                capture_output=True,
                text=True,
                timeout=seconds,
            )
            output, end = process.stdout, f"its import ended the process with exit code {process.returncode}"
        except subprocess.TimeoutExpired as error:
            written = error.stdout or b""
            output = written.decode() if isinstance(written, bytes) else written
            end = f"its import took longer than {seconds:g} s"
        answers = [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]
        results |= dict(zip(left, answers, strict=False))
        if len(answers) < len(left):
            results[left[len(answers)]] = end
    return results


MARK = "imported: "  # modules may print lines of their own


def import_entrypoint(folder: str, entrypoint: str) -> str | None:
    """Import a flow as a run does; return what is wrong, or None."""
    from prefect.exceptions import ScriptError
    from prefect.flows import load_flow_from_entrypoint

    try:
        os.chdir(folder)
        load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except Exception as error:  # noqa: BLE001 - a module may raise anything
        cause = error.user_exc if isinstance(error, ScriptError) else error
        lines = str(cause).strip().splitlines()
        return f"{type(cause).__name__}: {lines[0] if lines else 'without a message'}"[:300]
    return None


if __name__ == "__main__":
    for folder, entrypoint in json.load(sys.stdin):
        print(f"{MARK}{json.dumps(import_entrypoint(folder, entrypoint))}", flush=True)
