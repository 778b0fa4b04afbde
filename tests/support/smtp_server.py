"""A mail server on loopback, as strict as a test wants it. Standard library only."""

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
    """A mail as it came, with the envelope's addresses."""

    sender: str
    recipients: list[str]
    mail: EmailMessage
    encrypted: bool
    login: str = ""

    def text(self, subtype: str = "plain") -> str:
        """Return the body of a kind."""
        body = self.mail.get_body((subtype,))
        assert body is not None
        return str(body.get_content())


@dataclass
class SmtpServer:
    """Takes mails and keeps them; answers as `answers` says instead, where it names a command and its argument.

    Args:
        answers: What it says in place of its usual answer, as {"RCPT TO:<a@b.c>": "451 later"}; the longest
            beginning of what the client says counts.
        tls: A certificate to offer STARTTLS with, or to speak TLS from the first byte.
        implicit: Which of the two.
        login: `user:password` that it wants before a mail.
    """

    answers: dict[str, str] = field(default_factory=dict)
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
    """Listens for clients."""

    allow_reuse_address = True
    daemon_threads = True
    smtp: SmtpServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that does not trust the certificate hangs up, as it should."""


class Session(StreamRequestHandler):
    """Talks with one client."""

    def handle(self) -> None:
        """Answer until it is gone."""
        smtp = cast("Listener", self.server).smtp
        self.encrypted, self.user = False, ""
        if smtp.tls and smtp.implicit:
            self.encrypt(smtp.tls)
        if not self.say(self.instead("CONNECT") or "220 ready"):
            return
        sender, recipients = "", list[str]()
        while line := self.rfile.readline().decode().strip():
            command = line.upper()
            if said := self.instead(line):
                if not self.say(said):
                    return
            elif command.startswith("EHLO"):
                offers = ["STARTTLS"] if smtp.tls and not self.encrypted else []
                offers += ["AUTH PLAIN"] if smtp.login else []
                lines = ["loopback", "8BITMIME", *offers]
                self.say("\r\n".join(f"250{'-' if text is not lines[-1] else ' '}{text}" for text in lines))
            elif command == "STARTTLS" and smtp.tls:
                self.say("220 go ahead")
                self.encrypt(smtp.tls)
            elif command.startswith("AUTH PLAIN "):
                self.user = ":".join(base64.b64decode(line.split()[2]).decode().split("\0")[1:])
                self.say("235 welcome" if self.user == smtp.login else "535 wrong user or password")
            elif smtp.login and self.user != smtp.login and command.startswith("MAIL"):
                self.say("530 who are you?")
            elif command.startswith("MAIL FROM:"):
                sender, recipients = line[10:].split()[0].strip("<>"), []
                self.say("250 ok")
            elif command.startswith("RCPT TO:"):
                recipients.append(line[8:].split()[0].strip("<>"))
                self.say("250 ok")
            elif command == "DATA":
                self.say("354 go on")
                mail = email.message_from_bytes(self.read_mail(), policy=default)
                if said := self.instead("END OF DATA"):
                    self.say(said)
                    continue
                smtp.mails.append(Received(sender, recipients, mail, self.encrypted, self.user))
                self.say("250 taken")
            else:
                self.say("221 bye" if command == "QUIT" else "250 ok")

    def instead(self, line: str) -> str | None:
        """Return what the test wants said to this line."""
        answers = cast("Listener", self.server).smtp.answers
        fitting = [beginning for beginning in answers if line.upper().startswith(beginning.upper())]
        return answers[max(fitting, key=len)] if fitting else None

    def read_mail(self) -> bytes:
        """Return the lines up to the single dot."""
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        return b"".join(lines)

    def say(self, text: str) -> bool:
        """Say a line; nothing but the end of the connection for an empty one."""
        if text:
            self.wfile.write(f"{text}\r\n".encode())
        return bool(text) and not text.startswith("421")

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Go on encrypted."""
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = cast("Any", self.connection.makefile("wb", buffering=0))
        self.encrypted = True

    def finish(self) -> None:
        """Close what `encrypt` opened, too."""
        super().finish()
        self.connection.close()
