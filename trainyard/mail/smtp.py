"""Sending a mail by SMTP, and saying of each recipient who did not get it whether another try is worth it."""

import smtplib
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from enum import StrEnum

TIMEOUT_SECONDS = 10.0


class Tls(StrEnum):
    """How the connection is encrypted: not at all, after a plain greeting, or from its first byte."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


@dataclass(frozen=True)
class Server:
    """A mail server and the account there, if it wants one."""

    host: str
    port: int
    tls: Tls = Tls.NONE
    user: str = ""
    password: str = ""


@dataclass(frozen=True)
class Undelivered:
    """Recipients who did not get the mail, and why; temporary if they may get it later."""

    recipients: Sequence[str]
    reason: str
    temporary: bool


def send(mail: EmailMessage, sender: str, recipients: Sequence[str], server: Server) -> list[Undelivered]:
    """Send a mail.

    Returns:
        Who did not get it; empty where all did. What goes wrong with the server is said so, and not raised.
    """
    try:
        connection = connect(server)
        try:
            refused = connection.send_message(mail, sender, recipients)
        finally:
            # The mail is the server's by now, or is not; how they part changes nothing.
            with suppress(OSError):
                connection.quit()
            connection.close()
    except smtplib.SMTPRecipientsRefused as error:
        return refusals(error.recipients)
    except smtplib.SMTPResponseException as error:
        answer = (error.smtp_code, error.smtp_error)
        return [Undelivered(recipients, said(answer, server), is_temporary(answer))]
    except smtplib.SMTPNotSupportedError as error:
        return [Undelivered(recipients, f"{place(server)} cannot do what the settings ask for: {error}", False)]
    except OSError as error:  # of smtplib's own as well: the connection broke
        return [Undelivered(recipients, f"{place(server)} does not answer: {error}", True)]
    return refusals(refused)


def connect(server: Server) -> smtplib.SMTP:
    """Return a connection over which mails can be sent.

    Raises:
        OSError: There is none; smtplib's errors are of this kind too.
    """
    context = ssl.create_default_context()
    if server.tls is Tls.TLS:
        connection: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_SECONDS, context=context)
    else:
        connection = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_SECONDS)
    try:
        if server.tls is Tls.STARTTLS:
            connection.starttls(context=context)
        if server.user:
            connection.login(server.user, server.password)
    except BaseException:
        connection.close()
        raise
    return connection


def refusals(answers: Mapping[str, tuple[int, bytes]]) -> list[Undelivered]:
    """Return the recipients whom the server refused, by whether it may take them later."""
    found = []
    for temporary in (True, False):
        some = {name: answer for name, answer in answers.items() if is_temporary(answer) is temporary}
        if some:
            reason = said(next(iter(some.values())))
            found.append(Undelivered(list(some), reason, temporary))
    return found


def is_temporary(answer: tuple[int, bytes | str]) -> bool:
    """Tell whether the server means "not now" (4xx, or a broken answer) and not "no" (5xx)."""
    return answer[0] < 500


def said(answer: tuple[int, bytes | str], server: Server | None = None) -> str:
    """Return the server's answer in one line."""
    code, text = answer
    words = text.decode(errors="replace") if isinstance(text, bytes) else text
    return f"{place(server) if server else 'the mail server'} said {code} {' '.join(words.split())}"


def place(server: Server) -> str:
    """Name a server in a message."""
    return f"the mail server {server.host}:{server.port}"
