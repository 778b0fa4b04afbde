"""infra/compose/tls.yml: every service over HTTPS under a name of its own, for browsers and for clients on the host."""

import hashlib
import os
import shlex
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from playwright.sync_api import Browser, BrowserContext, expect
from websockets import Origin
from websockets.sync.client import connect

from infra.testing.browser import PATIENCE, visit
from infra.testing.servers import free_port
from infra.testing.stack import Stack, copy_checkout
from infra.testing.waiting import wait_until

pytestmark = pytest.mark.slow

SERVICES = ("prefect", "mlflow", "serving", "dashboard", "mail")
COMPOSE_FILE = "docker-compose.yml:infra/compose/tls.yml"
UPLOAD_BYTES = 300 << 20  # more than the proxy's memory, and it can write no file

# Names beneath localhost lead to this machine (RFC 6761). Browsers know that, and so does systemd's resolver, but not glibc.
RESOLVER = """
import socket
lookup = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **named: lookup(
    "127.0.0.1" if (host.decode() if isinstance(host, bytes) else str(host)).endswith(".localhost") else host, *rest, **named
)
"""

FLOW = """
from prefect import flow
from prefect.events import emit_event

@flow(log_prints=True)
def over_tls() -> None:
    emit_event("test.over-tls", resource={"prefect.resource.id": "test.over-tls"})

over_tls()
"""

ARTIFACTS = """
import hashlib, pathlib, mlflow
mlflow.set_experiment("over-tls")
with mlflow.start_run():
    mlflow.log_artifact("large.bin")
    folder = mlflow.artifacts.download_artifacts(artifact_uri=mlflow.get_artifact_uri(), dst_path="downloaded")
print(hashlib.file_digest(pathlib.Path(folder, "large.bin").open("rb"), "sha256").hexdigest())
"""

Boot = Callable[..., AbstractContextManager[Stack]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Iterator[Stack]:
    """The services that people reach, and the worker, with the proxy in front and its own authority."""
    home = tmp_path_factory.mktemp("tls")
    copy_checkout(home)
    stack = with_tls(home, FIRST_RUN="")
    with boot(stack, lambda stack: stack.up("proxy", "worker", *SERVICES)):
        yield stack


def with_tls(home: Path, **settings: str) -> Stack:
    """Return a stack with the proxy on free ports, whose commands resolve names beneath localhost."""
    (home / "resolver").mkdir(exist_ok=True)
    (home / "resolver/sitecustomize.py").write_text(RESOLVER)
    ports = {name: str(free_port()) for name in ("HTTP_PORT", "HTTPS_PORT")}
    return Stack(home, COMPOSE_FILE=COMPOSE_FILE, PYTHONPATH=str(home / "resolver"), **ports, **settings)


def address(stack: Stack, service: str) -> str:
    return f"https://{service}.localhost:{stack.environment['HTTPS_PORT']}"


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name lead to this machine."""
    lookup = socket.getaddrinfo
    monkeypatch.setattr("socket.getaddrinfo", lambda _, *rest, **named: lookup("127.0.0.1", *rest, **named))


@pytest.fixture(scope="module")
def trust(tls: Stack) -> ssl.SSLContext:
    """What a client has that trusts the authority and no other."""
    return ssl.create_default_context(cadata=tls.shell("make -s ca").stdout)


@pytest.fixture
def client(trust: ssl.SSLContext) -> Iterator[httpx.Client]:
    with httpx.Client(verify=trust, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def credentials(tls: Stack) -> dict[str, str]:
    return tls.variables()


def test_nothing_but_the_proxy_is_published(tls: Stack) -> None:
    published = {
        (service, port, binding["HostIp"], binding["HostPort"])
        for service, container in tls.containers().items()
        for port, bindings in (container["NetworkSettings"]["Ports"] or {}).items()
        for binding in bindings or []
    }

    http, https = tls.environment["HTTP_PORT"], tls.environment["HTTPS_PORT"]
    assert published == {("proxy", "80/tcp", "127.0.0.1", http), ("proxy", f"{https}/tcp", "127.0.0.1", https)}


def test_the_proxy_has_no_more_rights_than_it_needs(tls: Stack) -> None:
    container = tls.containers()["proxy"]

    assert set(container["NetworkSettings"]["Networks"]) == {f"{tls.project}_platform"}
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert container["HostConfig"]["ReadonlyRootfs"]
    assert {mount["Destination"] for mount in container["Mounts"] if mount["RW"]} == {"/data"}


def test_commands_show_the_public_names_and_the_authority(tls: Stack, credentials: dict[str, str]) -> None:
    shown = tls.shell("make info").stdout

    for service in SERVICES:
        assert f" {address(tls, service)} " in shown
    assert "`make ca` prints the one to trust" in shown
    assert credentials["PREFECT_API_URL"] == f"{address(tls, 'prefect')}/api"
    assert credentials["MLFLOW_TRACKING_URI"] == address(tls, "mlflow")


@pytest.mark.parametrize("service", SERVICES)
def test_http_is_redirected_to_https(tls: Stack, service: str) -> None:
    answer = httpx.get(f"http://{service}.localhost:{tls.environment['HTTP_PORT']}/some/page?a=1")

    assert answer.status_code == 308
    assert answer.headers["location"] == f"{address(tls, service)}/some/page?a=1"


@pytest.mark.parametrize(
    ("service", "path"),
    [
        ("prefect", "/api/health"),
        ("mlflow", "/health"),
        ("serving", "/health/live"),
        ("dashboard", "/health"),
        ("mail", "/livez"),
    ],
)
def test_a_service_answers_under_its_name_to_those_who_trust_the_authority(
    tls: Stack, client: httpx.Client, service: str, path: str
) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(address(tls, service) + path)
    answer = client.get(address(tls, service) + path)

    assert answer.status_code == 200, answer.text
    assert "alt-svc" not in answer.headers, "no UDP port is published"
    assert "strict-transport-security" not in answer.headers, "of the internal authority"


def test_another_name_is_served_by_no_one(tls: Stack, client: httpx.Client) -> None:
    with pytest.raises(httpx.ConnectError, match=r"(?i)tls|ssl"):
        client.get(address(tls, "minio"))


def test_redirects_of_a_service_stay_on_https(tls: Stack, client: httpx.Client, credentials: dict[str, str]) -> None:
    user, password = credentials["PREFECT_API_AUTH_STRING"].split(":", 1)
    answer = client.get(f"{address(tls, 'prefect')}/api/health/", auth=(user, password))

    assert answer.status_code == 307
    assert answer.headers["location"] == f"{address(tls, 'prefect')}/api/health"


def test_prefects_client_on_the_host_sends_runs_and_events(
    tls: Stack, client: httpx.Client, credentials: dict[str, str]
) -> None:
    (tls.home / "over_tls.py").write_text(FLOW)
    pool = tls.shell('eval "$(make -s env)"; prefect work-pool inspect training').stdout
    tls.shell('eval "$(make -s env)"; python over_tls.py')
    user, password = credentials["PREFECT_API_AUTH_STRING"].split(":", 1)

    def search(path: str, query: dict[str, Any]) -> Any:
        answer = client.post(f"{credentials['PREFECT_API_URL']}{path}", json=query, auth=(user, password))
        return answer.raise_for_status().json()

    assert "warm-process" in pool
    runs = search("/flow_runs/filter", {"flows": {"name": {"any_": ["over-tls"]}}})
    assert [run["state"]["type"] for run in runs] == ["COMPLETED"]
    query = {"filter": {"event": {"name": ["test.over-tls"]}}}
    wait_until(
        lambda: search("/events/filter", query)["events"], 30, "the event, which is sent over a WebSocket", every=0.5
    )


def test_mlflows_client_on_the_host_sends_and_fetches_large_artifacts(tls: Stack) -> None:
    with (tls.home / "large.bin").open("wb+") as file:
        file.truncate(UPLOAD_BYTES)
        expected = hashlib.file_digest(file, "sha256").hexdigest()
    found = tls.shell(f'eval "$(make -s env)"; python -c {shlex.quote(ARTIFACTS)}')

    assert found.stdout.split()[-1] == expected
    limit = tls.containers()["proxy"]["HostConfig"]["Memory"]
    assert limit < UPLOAD_BYTES
    assert not tls.containers()["proxy"]["State"]["OOMKilled"]


def test_the_variables_of_the_host_s_clients_keep_the_authorities_that_the_shell_trusted(tls: Stack) -> None:
    (tls.home / "company.pem").write_text("# the company's\n")
    before = {"SSL_CERT_FILE": str(tls.home / "company.pem")}
    environment = shlex.join(f"{name}={value}" for name, value in before.items())
    tls.shell(f'export {environment}; eval "$(make -s env)"; eval "$(make -s env)"')
    bundle = (tls.home / ".certificates.pem").read_text()

    assert bundle.startswith("# the company's\n")
    assert bundle.count("BEGIN CERTIFICATE") == 1


@pytest.fixture
def context(tls: Stack, browser: Browser, credentials: dict[str, str]) -> Iterator[BrowserContext]:
    """A browser's window; it knows the authority no more than a colleague's does who clicks on."""
    with browser.new_context(ignore_https_errors=True) as context:
        context.set_default_timeout(PATIENCE)
        yield context


def test_prefects_ui_signs_in_and_shows_the_flows(
    tls: Stack, context: BrowserContext, credentials: dict[str, str]
) -> None:
    with context.new_page() as page:
        password = page.locator("input[type=password]")
        visit(page, address(tls, "prefect"), password)
        password.fill(credentials["PREFECT_API_AUTH_STRING"])
        password.press("Enter")
        expect(page.get_by_role("link", name="Deployments").first).to_be_visible()
        visit(page, f"{address(tls, 'prefect')}/flows", page.get_by_text("cat-facts").first)


def test_mlflows_ui_writes(tls: Stack, browser: Browser, credentials: dict[str, str]) -> None:
    login: Any = {
        "username": credentials["MLFLOW_TRACKING_USERNAME"],
        "password": credentials["MLFLOW_TRACKING_PASSWORD"],
        "origin": address(tls, "mlflow"),
    }
    with (
        browser.new_context(http_credentials=login, ignore_https_errors=True) as context,
        context.new_page() as page,
    ):
        page.set_default_timeout(PATIENCE)
        create = page.get_by_role("button", name="Create", exact=True).first
        visit(page, f"{address(tls, 'mlflow')}/#/experiments", create)
        create.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("textbox").first.fill("made-in-the-browser")
        dialog.get_by_role("button", name="Create", exact=True).click()

        expect(page.get_by_text("made-in-the-browser").first).to_be_visible()


def test_the_dashboard_s_cookies_are_for_https_alone(tls: Stack, context: BrowserContext) -> None:
    url, user, password = tls.dashboard()
    with context.new_page() as page:
        visit(page, url, page.get_by_label("User"))
        page.get_by_label("User").fill(user)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button").first.click()
        page.wait_for_url(f"{url}/")

    cookies = context.cookies(url)
    assert cookies
    assert all(cookie["secure"] and cookie["httpOnly"] for cookie in cookies)


def test_the_mail_server_announces_a_mail_over_a_websocket(tls: Stack, trust: ssl.SSLContext) -> None:
    login = tls.exec("mail", "cat", "/run/secrets/login").stdout.strip()
    headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
    send = (
        "import smtplib, email.message as e; m = e.EmailMessage(); m['Subject'] = 'over TLS'; m['From'] = m['To'] = 'a@b.c';"
        "smtplib.SMTP('mail', 1025).send_message(m)"
    )
    url = address(tls, "mail")
    events = f"{url.replace('https', 'wss')}/api/events"
    with connect(events, ssl=trust, origin=Origin(url), additional_headers=headers, open_timeout=60) as websocket:
        tls.python("worker", send)

        wait_until(lambda: "over TLS" in str(websocket.recv(30)), 30, "the mail's event")


SIGN_IN = """
import http.client, json, socket, ssl, sys
service, port, name, forwarded = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
raw = socket.create_connection((service, int(port)))
connection = http.client.HTTPConnection(service)
connection.sock = context.wrap_socket(raw, server_hostname=name.partition(":")[0]) if service == "proxy" else raw
connection.request("POST", "/login", "user=admin&password=wrong", {"Host": name, "Origin": "https://" + name,
    "Content-Type": "application/x-www-form-urlencoded", **({"X-Forwarded-For": forwarded} if forwarded else {})})
print(connection.getresponse().status)
"""


def test_sign_ins_are_limited_by_the_caller_that_the_proxy_names(tls: Stack, client: httpx.Client) -> None:
    url, user, _ = tls.dashboard()
    wrong = {"user": user, "password": "wrong"}

    def post(number: int) -> int:
        forged = {"Origin": url, "X-Forwarded-For": f"192.0.2.{number}"}
        return client.post(f"{url}/login", data=wrong, headers=forged).status_code

    name, port = url.removeprefix("https://"), tls.environment["HTTPS_PORT"]

    def post_from_a_container(service: str, service_port: str, forwarded: str = "") -> int:
        return int(tls.exec("worker", "python", "-c", SIGN_IN, service, service_port, name, forwarded).stdout)

    statuses = [post(number) for number in range(6)]
    other = post_from_a_container("proxy", port)
    beside = [post_from_a_container("dashboard", "8501", f"192.0.2.{number}") for number in range(6)]

    assert statuses == [401] * 5 + [429], "a caller's own header changes nothing"
    assert other == 401, "another caller has attempts of its own"
    assert beside == [401] * 4 + [429] * 2, "the header is believed from the proxy alone: this is that other caller"


def test_a_port_that_is_taken_is_named_with_its_setting(tls: Stack) -> None:
    for setting in ("HTTP_PORT", "HTTPS_PORT"):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            refused = tls.shell(f"{setting}={taken.getsockname()[1]} infra/checks/require-ports", check=False)

        assert f"set {setting} in .env" in refused.stderr


# --- The other issuers: the proxy alone, in front of services that are not there ------------------------------------

ACME_SERVER = """
services:
  acme:
    image: ${PROXY_IMAGE:-caddy:2}
    command: [caddy, run, --config, /etc/caddy/Caddyfile]
    configs: [{source: acme, target: /etc/caddy/Caddyfile}]
    networks: {platform: {aliases: [acme.test]}}
  proxy:
    networks: {platform: {aliases: [prefect.ml.test, mlflow.ml.test, serving.ml.test, dashboard.ml.test, mail.ml.test]}}
configs:
  acme:
    content: |
      {
        skip_install_trust
      }
      https://acme.test {
        tls internal
        acme_server
      }
"""


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Stack]:
    """A stack of which only the proxy is started, at names beneath ml.test."""
    copy_checkout(tmp_path)
    (tmp_path / "certificates").mkdir()
    (tmp_path / "acme.yml").write_text(ACME_SERVER)
    stack = with_tls(tmp_path, PUBLIC_HOST="ml.test", TLS_FOLDER="./certificates")
    stack.environment["COMPOSE_FILE"] += ":acme.yml"
    try:
        yield stack
    finally:
        stack.remove()


def certificate_of(stack: Stack, service: str, trust: ssl.SSLContext) -> httpx.Response | None:
    """Return an answer under a service's name, or None while the proxy has no certificate that is trusted."""
    try:
        return httpx.get(f"https://{service}.ml.test:{stack.environment['HTTPS_PORT']}", verify=trust)
    except httpx.TransportError:
        return None


def test_certificates_are_requested_by_acme(alone: Stack) -> None:
    alone.shell("docker compose up --detach --no-deps acme")
    root = wait_until(
        lambda: alone.shell("docker compose exec -T acme cat /data/caddy/pki/authorities/local/root.crt", check=False).stdout,
        30, "the ACME server's certificate",
    )  # fmt: skip
    (alone.home / "certificates/root.pem").write_text(root)
    alone.environment |= {
        "TLS_ISSUER": "acme",
        "ACME_DIRECTORY": "https://acme.test/acme/local/directory",
        "ACME_ROOTS": "/certificates/root.pem",
    }
    alone.shell("docker compose up --detach --wait --no-deps proxy")
    trust = ssl.create_default_context(cadata=root)

    for service in SERVICES:
        answer = wait_until(lambda: certificate_of(alone, service, trust), 60, f"{service}'s certificate", every=0.5)  # noqa: B023
        assert answer.status_code == 502, "the service is not there"
        assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_certificates_of_one_s_own_are_read_from_a_folder(alone: Stack) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "own")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("*.ml.test")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    folder = alone.home / "certificates"
    (folder / "certificate.pem").write_bytes(certificate)
    no_password = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pem").chmod(0o600)
    if os.geteuid() == 0:
        os.chown(folder / "key.pem", 4711, 4711)  # as the key of a user, which is not root's
    alone.environment["TLS_ISSUER"] = "files"

    checked = alone.shell("infra/checks/require-readable", check=False)
    alone.shell("docker compose up --detach --wait --no-deps proxy")

    assert not checked.stderr
    trust = ssl.create_default_context(cadata=certificate.decode())
    for service in SERVICES:
        answer = certificate_of(alone, service, trust)
        assert answer is not None
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
