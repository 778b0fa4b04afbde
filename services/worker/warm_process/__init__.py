"""The worker type `warm-process`: each flow run is forked from a process that is already warm.

`worker` is the Prefect worker, `wake` the event stream that wakes it, `warm` its connection to the
warm process, `zygote` that process and `child` what a fork of it does. `settle` gives a run that
could not report its own end a truthful one, `reasons` words it, `ledger` remembers runs for the
next worker, `mlflow_runs` ends what such a run left open in MLflow. docs/how-a-run-starts.md tells
how they play together.
"""
