"""The worker where there is no warm process."""

from pathlib import Path

from tests.integration.warm_process.harness import Server, read_note, worker


def test_runs_start_the_stock_way(orchestrator: Server, pool: str, tmp_path: Path, note: Path) -> None:
    settings = {"WARM_PROCESS_ENABLED": "false", "ready": "Runs start the stock way"}
    with worker(orchestrator, pool, tmp_path, **settings) as found:
        run = orchestrator.trigger(orchestrator.deploy(pool, "describe"), path=str(note))
        orchestrator.expect(run, "Completed", seconds=60)
        assert not read_note(note)["warm"]
        why = [line for line in orchestrator.logs(run) if "new interpreter" in line]
        assert why == [
            "Starting a new interpreter for this run: the warm process is switched off (WARM_PROCESS_ENABLED)."
        ]
        # A run that was started the stock way is not left Running either.
        note.unlink()
        run = orchestrator.trigger(orchestrator.deploy(pool, "wait"), path=str(note))
        read_note(note, seconds=60)
        found.stop()
        assert orchestrator.state(run) == "Crashed"
