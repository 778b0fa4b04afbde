"""How a worker learns of runs: by events, and by polling while the stream is cut."""

from pathlib import Path

from tests.integration.warm_process.harness import Proxy, Server, read_note, worker


def test_the_event_stream_is_cut_and_restored(orchestrator: Server, pool: str, tmp_path: Path, note: Path) -> None:
    proxy = Proxy(orchestrator.address)
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "3", "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "2"}
    try:
        with worker(orchestrator, pool, tmp_path, api=proxy.address, **settings) as found:
            deployment = orchestrator.deploy(pool, "trivial")
            orchestrator.expect(orchestrator.trigger(deployment), "Completed", seconds=10)

            proxy.cut_events()
            found.wait_for_text("The event stream was cut; polling continues")
            run = orchestrator.trigger(orchestrator.deploy(pool, "wait"), path=str(note))
            read_note(note)
            orchestrator.cancel(run)
            orchestrator.expect(run, "Cancelled", seconds=15)

            proxy.restore()

            found.wait_for_text("The event stream is back; runs start at once again.")
            orchestrator.expect(orchestrator.trigger(deployment), "Completed", seconds=10)
    finally:
        proxy.close()
