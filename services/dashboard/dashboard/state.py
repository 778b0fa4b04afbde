"""The objects that all requests share, on `app.state.dashboard`."""

from dataclasses import dataclass

from jinja2 import Environment
from starlette.requests import Request

from dashboard.auth import SessionManager, SignInLimiter
from dashboard.mlflow_source import MLflowSource
from dashboard.prefect_source import PrefectSource
from dashboard.rendering import StaticFile, load_static_files, load_templates
from dashboard.rest import RestClient
from dashboard.serving_source import ServingSource
from dashboard.settings import Settings
from dashboard.snapshots import SnapshotCache
from dashboard.ui import UIAddresses
from dashboard.view import ViewLoader


@dataclass(frozen=True)
class DashboardState:
    """Clients, caches and templates of one application."""

    clients: tuple[RestClient, ...]
    snapshots: SnapshotCache
    views: ViewLoader
    sessions: SessionManager
    sign_in_limiter: SignInLimiter
    proxy: str | None
    ui: UIAddresses
    static_files: dict[str, StaticFile]
    templates: Environment

    @classmethod
    def from_settings(cls, settings: Settings) -> "DashboardState":
        """Create everything that the settings describe."""
        mlflow = RestClient("MLflow", settings.mlflow_tracking_uri, settings.mlflow_login)
        prefect = RestClient("Prefect", settings.prefect_api_url, settings.prefect_login)
        clients, serving = [mlflow, prefect], None
        if settings.serving_url:
            key = settings.serving_reading_key
            clients.append(RestClient("Serving", settings.serving_url, bearer=key.get_secret_value() if key else None))
            serving = ServingSource(clients[-1])
        snapshots = SnapshotCache(settings.dashboard_cache_seconds)
        static_files = load_static_files(settings.dashboard_bundle)
        return cls(
            clients=tuple(clients),
            snapshots=snapshots,
            views=ViewLoader(MLflowSource(mlflow), PrefectSource(prefect), serving, snapshots, settings.dashboard_rows),
            sessions=SessionManager(
                settings.dashboard_user,
                settings.dashboard_password.get_secret_value(),
                settings.dashboard_session_key.get_secret_value(),
                settings.dashboard_session_seconds,
            ),
            sign_in_limiter=SignInLimiter(),
            proxy=settings.dashboard_proxy,
            ui=UIAddresses(settings.mlflow_ui_url.rstrip("/"), settings.prefect_ui_url.rstrip("/")),
            static_files=static_files,
            templates=load_templates(static_files),
        )

    async def close(self) -> None:
        """Cancel the refreshes in progress and close the connections."""
        await self.snapshots.close()
        for client in self.clients:
            await client.close()


def state_of(request: Request) -> DashboardState:
    """Return the state of the application that handles a request."""
    state: DashboardState = request.app.state.dashboard
    return state
