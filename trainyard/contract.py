"""The contract between the services: every name, path and format that one of them writes and another reads.

Producers and consumers import it, so that a name is spelled once. It imports the standard library only. Installations
hold data under these names: add to them, and read the former spelling (`FORMER_COLUMNS`) where one has to change.
docs/contract.md describes the formats.
"""

from typing import Any, Final
from urllib.parse import quote


class Tag:
    """Tags of MLflow runs, and of the model versions that they register."""

    FLOW_RUN_ID: Final = "prefect.flow_run_id"
    """The top-level flow run that logged this run."""
    FLOW_RUN_URL: Final = "prefect.flow_run_url"
    SUBFLOW_RUN_ID: Final = "prefect.subflow_run_id"
    """The subflow that logged this run."""
    LAST_FLOW_RUN_ID: Final = "prefect.last_flow_run_id"
    """The newest top-level flow run that ended in this training: an unchanged rerun reuses it."""
    LAST_SUBFLOW_RUN_ID: Final = "prefect.last_subflow_run_id"

    MODEL: Final = "model"
    """The registered model that a run is about."""
    MODEL_VERSION: Final = "model_version"
    CANDIDATE: Final = "candidate"
    """The candidate of a search that a child run evaluates."""
    ERROR: Final = "error"
    """Why a candidate failed."""
    CODE: Final = "code"
    """A digest of the code that made the model."""
    CODE_COMMIT: Final = "code.commit"
    """The commit of the project that trained."""
    CODE_DIRTY: Final = "code.dirty"
    """`true` where files differed from the commit."""
    CODE_LOCK: Final = "code.lock"
    """A digest of the versions of Python and all installed packages."""
    DATA_DIGEST: Final = "data.digest"
    """Of the training set and the holdout, which the result storage keeps under it."""
    PROBLEM_DIGEST: Final = "problem.digest"
    """Of the problem, which the result storage keeps under it."""
    AS_OF: Final = "as_of"
    """The day of a backtest: later rows were left out."""
    RECIPE: Final = "recipe"
    """A digest of what people decide about a training, its code and parameters; data and seeds do not count."""
    SPLIT: Final = "split"
    """How the holdout was chosen (`trainyard.splits`)."""
    TRAIN_ROWS: Final = "train_rows"
    """A digest of the training set."""
    TRAIN_LAST_TIME: Final = "train_last_time"
    """The newest time in the training set, ISO 8601, where the holdout is what came after it."""
    CANDIDATE_DIGEST: Final = "candidate_digest"
    """A digest of a candidate's evaluation: with the same digest, nothing new was learned."""
    EVALUATED_MODEL: Final = "evaluated_model"
    """The URI of the estimator that the metrics are of, fitted without the holdout; the version itself knows all rows."""

    GATE_DECISION: Final = "gate.decision"
    """`GateDecision`, on a model version."""
    GATE_REASON: Final = "gate.reason"
    GATE_DECIDED_AT: Final = "gate.decided_at"
    """ISO 8601, UTC."""
    GATE_COMPARED_WITH: Final = "gate.judged_against"
    """The version that was champion at the decision, or `NO_CHAMPION`."""
    GATE_THRESHOLDS: Final = "gate.terms"
    """The thresholds as JSON."""
    GATE_COMPARISONS: Final = "gate.comparisons"
    """On a champion: the number of comparisons with it by recipe, as JSON."""
    GATE_LAST_REASON: Final = "gate.last_reason"
    """On a champion: why the newest candidate did not replace it."""
    GATE_LAST_AT: Final = "gate.last_at"
    """ISO 8601, UTC."""
    GATE_LAST_CANDIDATE: Final = "gate.last_candidate"
    """The newest candidate's digest, and the thresholds, as JSON."""

    VERDICT: Final = "verdict"
    """`Verdict`, on a run of the experiment `MONITORING_EXPERIMENT`."""
    REASONS: Final = "reasons"
    ALERTS: Final = "alerts"
    """What a check's alert is about, as a list in JSON."""
    PROBLEM: Final = "problem"
    """`Problem`, on a run of the experiment `MONITORING_EXPERIMENT` whose predictions were scored."""

    # MLflow's own.
    PARENT_RUN_ID: Final = "mlflow.parentRunId"
    NOTE: Final = "mlflow.note.content"
    EXPERIMENT_KIND: Final = "mlflow.experimentKind"
    """Of an experiment: which of its pages the UI opens."""


class Alias:
    """Aliases of a registered model's versions; each stands on one version at most."""

    CHAMPION: Final = "champion"
    """Served, and what a candidate is compared with."""
    PREVIOUS: Final = "previous"
    """The champion before it, which `rollback` returns to."""
    CHALLENGER: Final = "challenger"
    """The newest version that the gate did not promote."""


class GateDecision:
    """Values of `Tag.GATE_DECISION`."""

    PROMOTED: Final = "promoted"
    CHALLENGER: Final = "challenger"


NO_CHAMPION: Final = "none"


class Verdict:
    """Values of `Tag.VERDICT`."""

    OK: Final = "ok"
    ALERT: Final = "alert"
    TOO_FEW: Final = "too-few"


class Problem:
    """Kinds of problems, by which predictions are scored; values of `Tag.PROBLEM`."""

    BINARY: Final = "binary"
    """Probabilities of the second of two classes."""
    MULTICLASS: Final = "multiclass"
    """Probabilities of more classes, or of two that are not 0 and 1 in the tables."""
    CLASSES: Final = "classes"
    """Classes without probabilities."""
    REGRESSION: Final = "regression"
    """Numbers."""


MONITORING_EXPERIMENT: Final = "monitoring"


class Artifact:
    """Paths of a run's tables; each holds the JSON of `trainyard.evaluation.as_table`."""

    HOLDOUT: Final = "evaluation/holdout.json"
    """A row for each row of the holdout: `TIME`, `OBSERVED`, and a column of predictions for the model and each baseline.

    Predictions are the probability of 1 where the target is 0 or 1; the probability of the true class where there are more
    classes, or the class where the estimator has no probabilities; or a number.
    """
    TRAINING_SAMPLE: Final = "evaluation/training_sample.json"
    """Rows that the model was fitted on: the features, `TIME` and `PREDICTION`."""
    IMPORTANCE: Final = "evaluation/importance.json"
    """A row for each feature, the most important first: the columns of `ImportanceColumn`."""
    DRIFT: Final = "monitoring/drift.json"
    """A row for each column: `DRIFT_COLUMNS`."""
    FORECASTS: Final = "monitoring/forecasts.json"
    """A row for each prediction that is about a subject and a time: `FORECAST_COLUMNS`."""
    OUTCOMES: Final = "monitoring/outcomes.json"
    """A row for each prediction of the checked version with a ground truth, by hook or label: `OUTCOME_COLUMNS`."""


class ImportanceColumn:
    """Columns of `Artifact.IMPORTANCE`: the rise of the metric when a feature is shuffled, over some repetitions."""

    FEATURE: Final = "feature"
    MEAN: Final = "mean"
    STANDARD_DEVIATION: Final = "standard_deviation"


class Table:
    """The JSON of a table: {"columns": [names], "data": [[cells of a row], ...]}."""

    COLUMNS: Final = "columns"
    DATA: Final = "data"


class Column:
    """Columns of the tables of `Artifact`."""

    TIME: Final = "time"
    """The moment that a row is about, ISO 8601; empty where it has none."""
    OBSERVED: Final = "observed"
    """The ground truth; null while it is not known."""
    PREDICTION: Final = "prediction"
    MODEL: Final = "model"
    """The model's predictions, beside those of the baselines."""
    SUBJECT: Final = "subject"
    """What a prediction is about, such as a place."""
    ISSUED_AT: Final = "issued_at"
    VERSION: Final = "version"
    PROBABILITY: Final = "probability"
    TRAINING_MEAN: Final = "training_mean"
    RECENT_MEAN: Final = "recent_mean"
    LEAD_DAYS: Final = "lead_days"
    """Days from a forecast to the time that it is about, rounded up."""
    TRUE_PROBABILITY: Final = "true_probability"
    """The probability that a classifier gave the true class."""
    LOSS: Final = "loss"
    BASELINE_LOSS: Final = "baseline_loss"


FORECAST_COLUMNS: Final = (
    Column.SUBJECT,
    Column.TIME,
    Column.ISSUED_AT,
    Column.VERSION,
    Column.PROBABILITY,
    Column.OBSERVED,
    Column.LEAD_DAYS,
)
OUTCOME_COLUMNS: Final = (
    Column.SUBJECT,
    Column.TIME,
    Column.ISSUED_AT,
    Column.VERSION,
    Column.PREDICTION,
    Column.OBSERVED,
    Column.TRUE_PROBABILITY,
    Column.LEAD_DAYS,
    Column.LOSS,
    Column.BASELINE_LOSS,
)
"""Of these, `PREDICTION` and `OBSERVED` are a class or a number."""
DRIFT_COLUMNS: Final = (
    "column",
    "psi",
    "statistic",
    "p_value",
    Column.TRAINING_MEAN,
    Column.RECENT_MEAN,
    "drifted",
    "training_nulls",
    "recent_nulls",
    "outside",
    "test",
    "reason",
)
FORMER_COLUMNS: Final = {
    Artifact.FORECASTS: {"place": Column.SUBJECT, "day": Column.TIME},
    Artifact.DRIFT: {"ks_statistic": "statistic", "ks_p_value": "p_value"},
}
"""By artifact, the names that columns had before 0.2.0 and have now."""


def table_rows(table: Any, artifact: str) -> list[dict[str, Any]]:
    """Return a table's rows by column name, under today's names; a row with another number of cells is left out.

    Args:
        table: The JSON of a table, or anything else, which has no rows.
        artifact: A path of `Artifact`.
    """
    if not isinstance(table, dict) or not {Table.COLUMNS, Table.DATA} <= table.keys():
        return []
    former = FORMER_COLUMNS.get(artifact, {})
    names = [former.get(name, name) for name in table[Table.COLUMNS]]
    return [dict(zip(names, row, strict=True)) for row in table[Table.DATA] if len(row) == len(names)]


class ScoreName:
    """Names of a training's metrics: `model_log_loss`, `climatology_log_loss`; and of a monitoring run's."""

    MODEL_PREFIX: Final = "model_"
    LIVE_PREFIX: Final = "live_"
    HOLDOUT_PREFIX: Final = "holdout_"


class Record:
    """A request that serving answered, as `GET /models/NAME/predictions` lists it.

    `inputs` and `outputs` are tables; `outputs` has the column `prediction` and, for a classifier, a column
    `probability_N` for each class. `about` is null, or says what the rows are about where the service made them itself.
    """

    PREDICTION_ID: Final = "prediction_id"
    """What the answer named the prediction by (`PredictionHeader.ID`); null in records from before 0.3.0."""
    CLASSES: Final = "classes"
    """A classifier's classes in the order of its probabilities; null for a regressor."""
    LABELS: Final = "labels"
    """The posted ground truth of each row, null where it is not known; null without any."""
    ABOUT: Final = "about"
    SUBJECT: Final = "subject"
    TIMES: Final = "times"
    """ISO 8601, one for each row."""
    PROBABILITY_PREFIX: Final = "probability_"


class Label:
    """A posted label: the ground truth of one row of an earlier prediction (`POST /models/NAME/labels`)."""

    ID: Final = "id"
    """The prediction's id."""
    ROW: Final = "row"
    """Counted from 0; it may be left out where the prediction has one row."""
    VALUE: Final = "value"
    """One of the model's classes, or a number."""


class PredictionHeader:
    """Headers of each answer with predictions."""

    ID: Final = "X-Prediction-Id"
    """What labels name the request by (`Label.ID`)."""
    RECORDED: Final = "X-Prediction-Recorded"
    """`true`, or `false` where the request is not recorded, so that labels for it are not stored."""


FORMER_ABOUT: Final = {"place": Record.SUBJECT, "days": Record.TIMES}
"""The keys of a record's `about` before 0.2.0."""


def record_about(record: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the subject of a record and the time of each of its rows; empty where it is about nothing."""
    about = {FORMER_ABOUT.get(key, key): value for key, value in (record.get(Record.ABOUT) or {}).items()}
    return about.get(Record.SUBJECT, ""), list(about.get(Record.TIMES) or [])


class State:
    """Prefect's states: types, and the names that the platform gives or looks for."""

    FINAL_TYPES: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
    ALERT: Final = "Alert"
    """The name of a completed run that found something which people should know."""
    ALERT_PERSISTS: Final = "AlertPersists"
    """The name of a completed run that found only what a run of the last days ended in `ALERT` for."""
    WAITING: Final = "Waiting"
    """The name of the running state of a run that waits for a lock."""
    AWAITING_RERUN: Final = "AwaitingRerun"
    """The name of a run that crashed and is scheduled again."""
    SKIPPED: Final = "Skipped"
    """The name of a cancelled run of a schedule that was due again before the run could start."""
    AWAITING_SLOT: Final = "AwaitingConcurrencySlot"
    """Prefect's name for a run that waits for a slot of its deployment's concurrency limit."""
    CACHED: Final = "Cached"
    """Prefect's name for a task that was taken from the cache."""


class LostRun:
    """What the server says of a run that it has ended because nothing was heard of its worker."""

    NO_HEARTBEAT: Final = "it sent no heartbeat"
    NOT_STARTED: Final = "the worker that claimed it did not start it"
    LOCK: Final = "settle-lost-runs"
    """The lock of the workers that run it again."""


def is_lost(message: str) -> bool:
    """Return whether a Crashed state's message says that the run was lost."""
    return LostRun.NO_HEARTBEAT in message or LostRun.NOT_STARTED in message


class Event:
    """Names of Prefect's events."""

    FLOW_RUN: Final = "prefect.flow-run"
    """The prefix of a flow run's events and resource ids."""
    FLOW_RUN_PENDING: Final = "prefect.flow-run.Pending"
    FLOW_RUN_SCHEDULED: Final = "prefect.flow-run.Scheduled"
    FLOW_RUN_RUNNING: Final = "prefect.flow-run.Running"
    FLOW_RUN_CANCELLING: Final = "prefect.flow-run.Cancelling"
    FLOW_RUN_CRASHED: Final = "prefect.flow-run.Crashed"
    FLOW_RUN_HEARTBEAT: Final = "prefect.flow-run.heartbeat"
    WORK_POOL: Final = "prefect.work-pool"
    """The prefix of a work pool's resource id."""


MAIL_EVENTS: Final = ("Completed", "Failed", "Crashed")
"""The ends of a run that MAIL_EVENTS may name."""


class RunTag:
    """Tags of Prefect's deployments and flow runs."""

    MAIL: Final = "mail"
    """A mail is sent when the run ends."""
    MAIL_ALERTS: Final = "mail-alerts"
    """A mail is sent when the run fails, crashes or ends in `State.ALERT`."""
    FIRST_RUN: Final = "first-run"
    """The deployment runs once when the installation is made."""
    RETRAINING: Final = "retraining"
    PLATFORM: Final = "trainyard"
    """Made by the platform itself."""


class Resource:
    """Names of what provisioning makes in Prefect."""

    WORK_POOL: Final = "training"
    WORK_POOL_TYPE: Final = "warm-process"
    MAIL_QUEUE: Final = "mail"
    PLATFORM_QUEUE: Final = "platform"
    """The work queue of the platform's runs that only workers on the installation's own host can do."""
    RESULTS_BLOCK: Final = "results"
    RESULTS_BLOCK_TYPE: Final = "s3-bucket"
    SEND_MAIL: Final = "send-mail"
    """The flow and the deployment that send mail."""
    MONITOR: Final = "monitor"
    RECONCILE: Final = "reconcile"
    CRASH_LOST_RUNS: Final = "crash-lost-runs"
    CRASH_UNSTARTED_RUNS: Final = "crash-unstarted-runs"
    CANCEL_LOST_RUNS: Final = "cancel-lost-runs"
    MAIL_RUN_EVENTS: Final = "mail-run-events"
    MAIL_ALERTS: Final = "mail-alerts"
    PROVISIONED: Final = "trainyard_provisioned"
    """The variable that holds a digest of what the platform was provisioned with last."""
    POOL_TEMPLATE: Final = "trainyard_pool_template"
    """The variable that holds a digest of what the work pool's job template was made of."""
    DEPLOYED: Final = "trainyard_deployed"
    """The variable that holds a digest of the project's deployments; of a further project it ends in the work queue."""
    DIAGNOSIS: Final = "trainyard_diagnosis"
    """The variable that holds what `make doctor` found last (`trainyard.diagnosis.Report`)."""
    FIRST_RUNS: Final = "trainyard_first_runs"
    """The variable that holds the ids of the flows that had the installation's first run."""


class Account:
    """MLflow's accounts for services; the admin's name is a setting."""

    WORKER: Final = "worker"
    SERVING: Final = "serving"
    DASHBOARD: Final = "dashboard"


class Bucket:
    """Buckets of the object store."""

    MLFLOW: Final = "mlflow"
    RESULTS: Final = "prefect-results"


class ModelMetadata:
    """Keys of the metadata in a logged model's MLmodel file."""

    DTYPES: Final = "trainyard.dtypes"
    """By column of the signature, the frame's type that the estimator was fitted on, as pandas names it."""
    MISSING_NAN: Final = "trainyard.missing_nan"
    """The columns of the type `object` whose missing values are NaN and not None."""


class ServingPath:
    """Paths of the serving API."""

    MODELS: Final = "/models"
    TRAFFIC: Final = "/traffic"
    """The last hour's requests, errors and latency by model and version (`serving.api.status.TrafficResponse`)."""

    @staticmethod
    def of_model(model: str, page: str) -> str:
        """Return a page of a model: `predict`, `predictions`, `labels`, `forecast` or `shadow`."""
        return f"/models/{quote(model, safe='')}/{page}"


LOCKS_PATH: Final = "/locks"
"""Who holds which lock: a path that the platform adds to Prefect's API."""

RETENTION_PATH: Final = "/trainyard/retention"
"""What is removed from MLflow, and what registered versions need: a path that the platform adds to MLflow's server."""

FLOW_RUN_DAYS: Final = 90
"""How long Prefect's runs and their results are kept, unless RETENTION_FLOW_RUN_DAYS says otherwise."""

MAX_DAYS: Final = 36_500
"""The longest time of a setting in days; 0 is for no end."""


class MLflowPage:
    """Addresses of pages in MLflow's UI; `ui` is its address without a slash at the end."""

    @staticmethod
    def run(ui: str, experiment_id: str, run_id: str) -> str:
        """Return the page of a run."""
        return f"{ui}/#/experiments/{experiment_id}/runs/{run_id}"

    @staticmethod
    def model(ui: str, model: str) -> str:
        """Return the page of a registered model."""
        return f"{ui}/#/models/{quote(model, safe='')}"

    @staticmethod
    def version(ui: str, model: str, version: int) -> str:
        """Return the page of a model version."""
        return f"{MLflowPage.model(ui, model)}/versions/{version}"


class PrefectPage:
    """Addresses of pages in Prefect's UI; `ui` is its address without a slash at the end."""

    @staticmethod
    def flow_run(ui: str, flow_run_id: str) -> str:
        """Return the page of a flow run."""
        return f"{ui}/runs/flow-run/{flow_run_id}"

    @staticmethod
    def work_pool(ui: str, name: str) -> str:
        """Return the page of a work pool."""
        return f"{ui}/work-pools/work-pool/{quote(name, safe='')}"


HOOKS_FILE: Final = "trainyard.toml"
"""The file of a project's folder under flows/ that declares the hooks of its models (trainyard.hooks)."""
