"""Send a mail over SMTP, and classify what was not delivered by whether a retry can help."""

import smtplib
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from enum import StrEnum

TIMEOUT_SECONDS = 10.0
Reply = tuple[int, bytes | str]
"""The code and the text of a server's reply."""


class Tls(StrEnum):
    """Encryption of the connection: none, STARTTLS after a plain greeting, or TLS from the first byte."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


@dataclass(frozen=True)
class Server:
    """A mail server, and the account there if it requires one."""

    host: str
    port: int
    tls: Tls = Tls.NONE
    user: str = ""
    password: str = ""

    def __str__(self) -> str:
        return f"the mail server {self.host}:{self.port}"


@dataclass(frozen=True)
class Undelivered:
    """Recipients who did not get the mail, and why; a retry may help if the failure is temporary."""

    recipients: Sequence[str]
    reason: str
    temporary: bool


def send(mail: EmailMessage, sender: str, recipients: Sequence[str], server: Server) -> list[Undelivered]:
    """Send a mail; failures of the server are returned and not raised.

    Returns:
        The recipients who did not get it; empty if all did.
    """
    try:
        connection = connect(server)
        try:
            refused = connection.send_message(mail, sender, recipients)
        finally:
            with suppress(OSError):  # it no longer matters: the server has accepted or refused the mail
                connection.quit()
            connection.close()
    except smtplib.SMTPRecipientsRefused as error:
        return group_refused(error.recipients, server)
    except smtplib.SMTPResponseException as error:
        reply = (error.smtp_code, error.smtp_error)
        return [Undelivered(recipients, format_reply(reply, server), is_temporary(reply))]
    except smtplib.SMTPNotSupportedError as error:
        return [Undelivered(recipients, f"{server} does not support the settings: {error}", temporary=False)]
    except OSError as error:  # includes smtplib's errors of a broken connection
        return [Undelivered(recipients, f"{server} does not answer: {error}", temporary=True)]
    return group_refused(refused, server)


def connect(server: Server) -> smtplib.SMTP:
    """Connect and log in.

    Raises:
        OSError: The server does not answer, or refuses; smtplib's errors are of this type.
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


def group_refused(replies: Mapping[str, Reply], server: Server) -> list[Undelivered]:
    """Return the refused recipients in two groups, temporary failures and permanent ones.

    Args:
        replies: The server's reply by recipient.
        server: The server, for the message.
    """
    groups = []
    for temporary in (True, False):
        group = {name: reply for name, reply in replies.items() if is_temporary(reply) is temporary}
        if group:
            reason = format_reply(next(iter(group.values())), server)
            groups.append(Undelivered(list(group), reason, temporary))
    return groups


def is_temporary(reply: Reply) -> bool:
    """Return whether a reply is a temporary failure (4xx, or not a valid code) and not a permanent one (5xx)."""
    return reply[0] < 500


def format_reply(reply: Reply, server: Server) -> str:
    """Return a server's reply in one line."""
    code, text = reply
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
    return f"{server} replied {code} {' '.join(decoded.split())}"
