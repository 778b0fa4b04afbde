"""For all tests: nothing that they start reports to anybody outside."""

import os

os.environ.update(DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true")
