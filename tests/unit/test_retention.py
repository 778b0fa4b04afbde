"""How long things are kept: the settings, what may be removed, and the report of `make storage`."""

from datetime import timedelta
from typing import Any

import pytest
from mlflow_server.retention import ID
from mlflow_server.retention import Settings as MLflowSettings
from prefect_server.retention import set_retention
from pydantic import ValidationError

from infra.backup.objects import Listed
from infra.storage.__main__ import show_clean_up, show_objects
from infra.storage.databases import OTHER, group_of
from infra.storage.docker import measure_images, measure_shared, measure_volumes, parse_size
from infra.storage.objects import measure_objects
from trainyard.cache_storage import Stored
from trainyard.provenance import snapshot_paths
from trainyard.retention import Disk, Retention, RetentionSettings, kind_of

RUN, MODEL = "0123456789abcdef0123456789abcdef", "m-0123456789abcdef0123456789abcdef"
NEEDED, UNNEEDED = sorted(snapshot_paths("a"))[0], sorted(snapshot_paths("b"))[0]


class TestSettings:
    def test_prefect_keeps_runs_90_days_and_events_7_unless_told_otherwise(self) -> None:
        environment: dict[str, str] = {}
        set_retention(environment)

        assert environment == {
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "P90D",
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P7D",
        }

    def test_prefect_keeps_everything_for_0_days(self) -> None:
        environment = {"RETENTION_FLOW_RUN_DAYS": "0", "RETENTION_EVENT_DAYS": "3"}
        set_retention(environment)

        assert environment["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "events"
        assert environment["PREFECT_SERVER_EVENTS_RETENTION_PERIOD"] == "P3D"

    @pytest.mark.parametrize("value", ["13", "-1", "ninety", "1e3", "٩٠", "99999"])
    def test_prefect_refuses_what_is_no_number_of_days(self, value: str) -> None:
        with pytest.raises(SystemExit, match=r"RETENTION_FLOW_RUN_DAYS is .* must be a whole number of days from 14"):
            set_retention({"RETENTION_FLOW_RUN_DAYS": value})

    def test_mlflow_s_settings_may_be_empty(self) -> None:
        assert MLflowSettings.read({"RETENTION_DELETED_DAYS": "", "RETENTION_TRIAL_DAYS": "0"}) == MLflowSettings(30, 0)

    def test_mlflow_refuses_what_is_no_number_of_days(self) -> None:
        with pytest.raises(SystemExit, match="RETENTION_TRIAL_DAYS is 'soon'"):
            MLflowSettings.read({"RETENTION_TRIAL_DAYS": "soon"})

    @pytest.mark.parametrize(("name", "value"), [("RETENTION_SNAPSHOT_DAYS", "6"), ("DISK_ALERT_PERCENT", "0")])
    def test_the_worker_refuses_what_would_lose_data_or_always_warn(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(name, value)

        with pytest.raises(ValidationError, match=name.lower()):
            RetentionSettings()


class TestResults:
    @pytest.mark.parametrize(
        ("path", "days", "is_removable"),
        [
            (NEEDED, 5000, False),
            (UNNEEDED, 31, True),
            (UNNEEDED, 29, False),
            (RUN, 91, True),
            (RUN, 89, False),
            ("cache/7-days/fit/a", 8, True),
            ("cache/7-days/fit/a", 6, False),
            ("cache/3650-days/keep-data/a", 3000, False),
            ("somebody's file.csv", 5000, False),
            (f"folder/{RUN}", 5000, False),
        ],
    )
    def test_they_are_removed_by_their_age_unless_a_version_needs_them(
        self, path: str, days: float, is_removable: bool
    ) -> None:
        retention = Retention(30, 90, frozenset({NEEDED}))

        assert retention.is_removable(Stored(path, timedelta(days=days), 1)) == is_removable

    def test_no_snapshot_is_removed_where_it_is_not_known_what_versions_need(self) -> None:
        assert not Retention(30, 90, None).is_removable(Stored(UNNEEDED, timedelta(days=5000), 1))

    @pytest.mark.parametrize("path", [UNNEEDED, RUN])
    def test_nothing_is_removed_after_0_days(self, path: str) -> None:
        assert not Retention(0, 0, frozenset()).is_removable(Stored(path, timedelta(days=5000), 1))

    def test_they_have_names_for_people(self) -> None:
        assert [kind_of(path) for path in (NEEDED, "cache/7-days/fit/a", RUN)] == [
            "snapshots of training data",
            "cached results",
            "results of runs",
        ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"models:/{MODEL}", [MODEL]),
        (f"mlflow-artifacts:/1/models/{MODEL}/artifacts", [MODEL]),
        (f"mlflow-artifacts:/1/{RUN}/artifacts/model", [RUN]),
        (f"runs:/{RUN}/model", [RUN]),
        (RUN * 2, []),
        ("5e0c7b0e-7d1a-4c3e-9f20-5d1b7a33c0de", []),
    ],
)
def test_what_a_version_names_is_found_in_any_source(text: str, found: list[str]) -> None:
    assert ID.findall(text) == found


def test_a_disk_is_as_full_as_people_see_it() -> None:
    disk = Disk(used=850_000_000_000, total=1_000_000_000_000)

    assert disk.percent == 85
    assert disk.describe() == "The disk with the data is 85 % full: 150.0 GB of 1,000.0 GB are free."
    assert Disk(0, 0).percent == 100


class TestStorage:
    @pytest.mark.parametrize(("text", "size"), [("0B", 0), ("1.5GB", 1_500_000_000), ("12.3kB", 12_300), ("N/A", 0)])
    def test_docker_s_sizes_are_read(self, text: str, size: int) -> None:
        assert parse_size(text) == size

    def test_volumes_and_images_are_those_of_the_installation(self) -> None:
        label = "com.docker.compose.project"
        docker = {
            "Volumes": [
                {"Name": "staging_postgres", "Labels": f"a=b,{label}=staging", "Size": "2MB"},
                {"Name": "staging-2_postgres", "Labels": f"{label}=staging-2", "Size": "3MB"},
                {"Name": "unnamed", "Labels": "", "Size": "4MB"},
            ],
            "Images": [
                {"Repository": "staging-worker", "Tag": "1", "UniqueSize": "5MB", "SharedSize": "6MB"},
                {"Repository": "postgres", "Tag": "17", "UniqueSize": "7MB", "SharedSize": "0B"},
                {"Repository": "other", "Tag": "1", "UniqueSize": "8MB", "SharedSize": "9MB"},
            ],
        }
        names = ["staging-worker:1", "postgres:17", "not-built:1"]

        assert measure_volumes(docker, "staging") == {"postgres": 2_000_000}
        assert measure_images(docker, names) == {"staging-worker:1": 5_000_000, "postgres:17": 7_000_000}
        assert measure_shared(docker, names) == 6_000_000

    def test_tables_have_groups(self) -> None:
        tables = [("prefect", "flow_run_state"), ("prefect", "log"), ("prefect", "block_document"), ("mlflow", "params"),
                  ("serving", "predictions"), ("mlflow_accounts", "users")]  # fmt: skip

        assert [group_of(*each) for each in tables] == [
            "runs, tasks and their states",
            "logs",
            OTHER,
            "runs, parameters and tags",
            "recorded predictions",
            OTHER,
        ]

    def test_the_report_says_what_is_removed_its_size_and_the_setting(self) -> None:
        names = [f"1/{RUN}/artifacts/a", f"1/models/{MODEL}/artifacts/b", "1/traces/tr-1/artifacts/c", "1/x"]
        objects = measure_objects(Listed(0, name, "mlflow", 1_000_000 * (n + 1), "") for n, name in enumerate(names))
        live: dict[str, Any] = {
            "removable_results": {"cached results": {"count": 1, "bytes": 500_000}},
            "flow_runs": 12,
            "retention_flow_run_days": 90,
            "retention_snapshot_days": 30,
            "mlflow": {"runs": [RUN], "models": [MODEL], "trials": [], "deleted_days": 30, "trial_days": 0},
        }

        section = "\n".join(show_objects(objects, {}))
        plan = "\n".join(show_clean_up(live, objects))

        assert {kind: usage.size // 1_000_000 for kind, usage in objects.kinds.items()} == {
            "files of runs": 1,
            "models": 2,
            "traces": 3,
            "other": 4,
        }
        assert "10.0 MB" in section.splitlines()[1]
        assert "12 flow runs of Prefect" in plan
        assert "[RETENTION_FLOW_RUN_DAYS: after 90 days]" in plan
        assert "1 deleted run, 1 model of MLflow" in plan
        assert "3.0 MB" in plan
        assert "0.5 MB   1 object" in plan
        assert "[RETENTION_TRIAL_DAYS: never]" in plan
