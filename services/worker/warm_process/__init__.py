"""The worker type `warm-process`: each flow run is forked from a process that has already imported what flows import.

`worker` is the Prefect worker; `events` and `polling` tell it of runs, `checks` compares them with the server, `live_runs`
ends their processes, `endings` and `settle` give them their next states, `cold_start` runs those that cannot be forked.
`supervisor` talks to the warm process (`zygote`) by `protocol`; `child` is what a fork of it does. `ledger` records runs for
the next worker. `watch` ends the runs that exceed their `limits`; `memory` and `cgroup` measure, `threads` follows the cores.
docs/how-a-run-starts.md explains how they work together.
"""
