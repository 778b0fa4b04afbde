"""Write docs/benchmarks.md from the results that the other modules saved."""

import json
from pathlib import Path
from typing import Any

from bench.report import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Written by `make bench` (`bench/page.py`) from the files in `bench/results`; do not edit it by hand. Each figure stands
beside its peer of the same run. Seconds are medians with the 95th percentile behind them, unless said otherwise.
"""


def both(numbers: dict[str, float]) -> str:
    """Return median and 95th percentile of a summary."""
    return f"{numbers['median']:.2f} / {numbers['p95']:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def start(results: dict[str, Any]) -> str:
    """`docker compose up -d --wait`."""
    names = {"first": "first start, empty volumes", "second": "after `down`", "again": "everything running"}
    rows = [
        [title, both(results[f"{name}_seconds"]), str(results[f"{name}_seconds"]["n"])] for name, title in names.items()
    ]
    return table(["`docker compose up -d --wait`", "s", "n"], rows)


def demo(results: dict[str, Any]) -> str:
    """`make demo`, less the installation."""
    later = ", ".join(f"{seconds:.0f}" for seconds in results["later_seconds"])
    return table(["`make demo`, installed", "s"], [["first", f"{results['first_seconds']:.0f}"], ["later", later]])


def latency(results: dict[str, Any]) -> str:
    """From the trigger to Running and to Completed."""
    rows = [
        [flow, worker, both(times["to_running_seconds"]), both(times["to_completed_seconds"])]
        for flow, workers in results.items()
        for worker, times in workers.items()
    ]
    return table(["flow", "worker", "trigger to Running", "trigger to Completed"], rows)


def throughput(results: dict[str, Any]) -> str:
    """Many trivial runs triggered at once, until the last has ended; medians."""
    rows = [
        [number, limit, *(f"{case[w]['median']:.1f}" if w in case else "" for w in ("stock, 1 s poll", "warm"))]
        for number, limits in results.items()
        for limit, case in limits.items()
    ]
    return table(["runs", "limit of the pool", "stock, 1 s poll", "warm"], rows)


def idle(results: dict[str, Any]) -> str:
    """Memory in MiB as `docker stats` counts it, and CPU seconds a minute, with no run under way."""
    services = [*sorted({service for case in results.values() for service in case["memory_mib"]} - {"all"}), "all"]
    rows = []
    for service in services:
        row = [service]
        for case in results.values():
            used, cpu = case["memory_mib"].get(service), case["cpu_seconds_a_minute"].get(service)
            row.append("" if used is None else f"{used:.0f} MiB, {cpu:.2f} s")
        rows.append(row)
    return table(["service", *(f"with the {name} worker" for name in results)], rows)


def pipeline(results: dict[str, Any]) -> str:
    """The weather pipeline on the stack, computed anew and unchanged, and the same functions in a plain script."""
    rows = [
        ["pipeline, trigger to Completed", both(results["pipeline_trigger_to_completed_seconds"])],
        ["the same again, nothing changed", both(results["unchanged_trigger_to_completed_seconds"])],
        ["plain script", both(results["plain_script_seconds"])],
        ["plain script, its imports left out", both(results["plain_script_without_imports_seconds"])],
        ["of that, MLflow", both(results["plain_script_mlflow_seconds"])],
        ["pipeline / plain script", f"{results['ratio_to_plain_script']:.2f}"],
        ["pipeline / plain script, its imports left out", f"{results['ratio_to_plain_script_without_imports']:.2f}"],
        ["unchanged / first", f"{results['ratio_of_an_unchanged_run']:.2f}"],
        ["share of a run spent in MLflow calls", f"{results['share_mlflow']:.2f}"],
        ["share of a run spent in Prefect", f"{results['share_prefect']:.2f}"],
    ]
    return table(["weather pipeline", "s"], rows)


def serving(results: dict[str, Any]) -> str:
    """Predictions for one row, asked for over eight connections at once; the estimator alone is asked by one caller."""
    rows, swaps = [], []
    for model, found in results["models"].items():
        servers = {name: each for name, each in found.items() if isinstance(each, dict) and "milliseconds" in each}
        theirs = servers["mlflow models serve"]["requests_per_second"]["median"]
        for name, server in servers.items():
            rate, wait = server["requests_per_second"]["median"], server["milliseconds"]
            waits = f"{wait['median']:.1f} / {wait['p99']:.1f}"
            rows.append([model, name, f"{rate:.0f}", f"{rate / theirs:.1f}", waits, f"{server['idle_memory_mib']:.0f}"])
        alone = found["predict_alone_milliseconds"]
        rows.append(
            [model, "the estimator alone", f"{1000 / alone:.0f}", f"{1000 / alone / theirs:.1f}", f"{alone:.1f}", ""]
        )
        swaps.append([model, both(found["swap_seconds"]), f"{found['swap_seconds']['n']:.0f}"])
    head = ["model", "server", "requests/s", "times mlflow models serve", "ms, median / p99", "idle MiB"]
    return f"{table(head, rows)}\n{table(['from the alias to the first answer of the new version', 's', 'n'], swaps)}"


def dashboard(results: dict[str, Any]) -> str:
    """The dashboard in Chromium, with 500 flow runs and 60 trainings, each reading too old to be shown as it is."""
    rows = [
        ["first visit, first paint", both(results["first_paint_seconds"])],
        ["first visit, all charts drawn", both(results["whole_page_seconds"])],
        ["next page, first paint", both(results["next_first_paint_seconds"])],
        ["first visit after a restart, first paint", f"{results['after_a_restart']['first_paint_seconds']:.2f}"],
    ]
    memory = results["memory_mib"]
    return (
        table(["dashboard", "s"], rows)
        + f"\nMemory of its processes: {memory['before_a_visit']:.0f} MiB idle before a visit, "
        + f"{memory['after_visits']:.0f} MiB after {results['first_paint_seconds']['n']} visits.\n"
    )


SECTIONS = (start, demo, latency, throughput, idle, pipeline, serving, dashboard)


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for section in SECTIONS:
        file = RESULTS / f"{section.__name__}.json"
        if file.exists():
            document = json.loads(file.read_text())
            where = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
            title = (section.__doc__ or "").rstrip(".")
            parts += [f"## {title}\n", section(document["results"]), f"{document['date']}; {where}.\n"]
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
