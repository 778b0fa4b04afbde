"""Whether the mail server takes a mail of the platform; none is sent."""

import contextlib
import smtplib

from pydantic import ValidationError

from trainyard.diagnosis import Finding
from trainyard.mail import smtp
from trainyard.mail.settings import MailSettings, describe_errors

ACCEPTED, FORWARDED = 250, 251
REMEDY = "correct {} in .env, then make up"


def examine_mail() -> list[Finding]:
    """Return why mails cannot be sent, from a session that ends before the mail's text."""
    try:
        settings = MailSettings()
    except ValidationError as error:
        return [Finding(f"No mail can be sent: {describe_errors(error)}", "correct it in .env, then make up")]
    server = settings.server
    try:
        connection = smtp.connect(server)
    except smtplib.SMTPAuthenticationError as error:
        return [_refusal(server, (error.smtp_code, error.smtp_error), "SMTP_USER and SMTP_PASSWORD")]
    except smtplib.SMTPResponseException as error:
        return [_refusal(server, (error.smtp_code, error.smtp_error), "SMTP_HOST, SMTP_PORT and SMTP_TLS")]
    except OSError as error:  # smtplib's other errors are of this type
        problem = f"No mail can be sent: {server} does not answer: {error}."
        return [Finding(problem, REMEDY.format("SMTP_HOST, SMTP_PORT and SMTP_TLS"))]
    try:
        connection.ehlo_or_helo_if_needed()
        if (reply := connection.mail(settings.mail_from))[0] != ACCEPTED:
            return [_refusal(server, reply, "MAIL_FROM")]
        replies = {to: connection.rcpt(to) for to in settings.mail_to}
        with contextlib.suppress(OSError):  # it no longer matters
            connection.quit()
    except OSError as error:
        return [Finding(f"No mail can be sent: {server} ended the session: {error}.", REMEDY.format("SMTP_HOST"))]
    finally:
        connection.close()
    return [
        _refusal(server, reply, "MAIL_TO", f"to {to} ")
        for to, reply in replies.items()
        if reply[0] not in (ACCEPTED, FORWARDED)
    ]


def _refusal(server: smtp.Server, reply: smtp.Reply, setting: str, about: str = "") -> Finding:
    return Finding(f"No mail {about}can be sent: {smtp.format_reply(reply, server)}.", REMEDY.format(setting))
