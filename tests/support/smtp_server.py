"""A mail server on loopback whose replies a test can script. Standard library only."""

import base64
import email
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self, cast


@dataclass
class Received:
    """A mail that the server accepted, with the addresses of its envelope."""

    sender: str
    recipients: list[str]
    mail: EmailMessage
    encrypted: bool
    login: str = ""

    def text(self, subtype: str = "plain") -> str:
        """Return the plain or HTML body."""
        body = self.mail.get_body((subtype,))
        assert body is not None
        return str(body.get_content())


@dataclass
class SmtpServer:
    """A server that keeps the mails it accepts.

    Args:
        replies: Replies in place of the usual ones, such as {"RCPT TO:<a@b.c>": "451 later"}; the longest key that the
            client's line starts with counts. CONNECT and END OF DATA stand for these moments; an empty reply closes
            the connection.
        tls: A certificate, for STARTTLS or for TLS from the first byte.
        implicit: Whether TLS starts with the first byte.
        login: `user:password` that the server requires before a mail.
    """

    replies: dict[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    login: str = ""
    port: int = 0
    mails: list[Received] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = Listener(("127.0.0.1", self.port), Session)
        self._server.smtp = self
        self.port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Listener(ThreadingTCPServer):
    """Accepts connections."""

    allow_reuse_address = True
    daemon_threads = True
    smtp: SmtpServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: a client that does not trust the certificate drops the connection."""


class Session(StreamRequestHandler):
    """The session of one client."""

    def handle(self) -> None:
        """Reply until the client quits or the connection ends."""
        smtp = cast("Listener", self.server).smtp
        self.encrypted, self.user = False, ""
        if smtp.tls and smtp.implicit:
            self.encrypt(smtp.tls)
        if not self.reply(self.scripted_reply("CONNECT") or "220 ready"):
            return
        sender, recipients = "", list[str]()
        while line := self.rfile.readline().decode().strip():
            command = line.upper()
            if scripted := self.scripted_reply(line):
                if not self.reply(scripted):
                    return
            elif command.startswith("EHLO"):
                extensions = ["STARTTLS"] if smtp.tls and not self.encrypted else []
                extensions += ["AUTH PLAIN"] if smtp.login else []
                lines = ["loopback", "8BITMIME", *extensions]
                self.reply("\r\n".join(f"250{'-' if text is not lines[-1] else ' '}{text}" for text in lines))
            elif command == "STARTTLS" and smtp.tls:
                self.reply("220 ready for TLS")
                self.encrypt(smtp.tls)
            elif command.startswith("AUTH PLAIN "):
                self.user = ":".join(base64.b64decode(line.split()[2]).decode().split("\0")[1:])
                self.reply("235 accepted" if self.user == smtp.login else "535 wrong user or password")
            elif smtp.login and self.user != smtp.login and command.startswith("MAIL"):
                self.reply("530 authentication required")
            elif command.startswith("MAIL FROM:"):
                sender, recipients = line[10:].split()[0].strip("<>"), []
                self.reply("250 ok")
            elif command.startswith("RCPT TO:"):
                recipients.append(line[8:].split()[0].strip("<>"))
                self.reply("250 ok")
            elif command == "DATA":
                self.reply("354 end with a dot")
                mail = email.message_from_bytes(self.read_mail(), policy=default)
                if scripted := self.scripted_reply("END OF DATA"):
                    self.reply(scripted)
                    continue
                smtp.mails.append(Received(sender, recipients, mail, self.encrypted, self.user))
                self.reply("250 accepted")
            else:
                self.reply("221 bye" if command == "QUIT" else "250 ok")

    def scripted_reply(self, line: str) -> str | None:
        """Return the test's reply to a line, if it has one."""
        replies = cast("Listener", self.server).smtp.replies
        matching = [prefix for prefix in replies if line.upper().startswith(prefix.upper())]
        return replies[max(matching, key=len)] if matching else None

    def read_mail(self) -> bytes:
        """Return the lines up to the single dot."""
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        return b"".join(lines)

    def reply(self, text: str) -> bool:
        """Send a line; return whether the session goes on, which an empty line and 421 end."""
        if text:
            self.wfile.write(f"{text}\r\n".encode())
        return bool(text) and not text.startswith("421")

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Start TLS."""
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = cast("Any", self.connection.makefile("wb", buffering=0))
        self.encrypted = True

    def finish(self) -> None:
        """Close the TLS connection too."""
        super().finish()
        self.connection.close()
