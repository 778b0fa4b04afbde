"""Settings of mail about runs."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trainyard.mail.smtp import Server, Tls


def plain_address(text: str) -> str:
    """Return an address such as team@example.com as it is; refuse any other text."""
    if not re.fullmatch(r"[!-~]+@[!-~]+", text) or text.count("@") > 1 or set(text) & set('<>,;:()[]"\\'):
        raise ValueError(f"{text!r} is not an address such as team@example.com")
    return text


Address = Annotated[str, AfterValidator(plain_address)]


class MailSettings(BaseSettings):
    """Where the mail about runs goes; apart from the others, so that what is wrong here fails no pipeline.

    Which runs are mailed is for the automation to say (MAIL_EVENTS of provisioning, and the tag `mail`).
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, hide_input_in_errors=True)

    smtp_host: str = "localhost"
    smtp_port: int = Field(default=1025, ge=1, le=65535)
    smtp_tls: Tls = Tls.NONE
    """`starttls` (port 587 as a rule) or `tls` (port 465) verify the server's certificate."""
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")

    mail_from: Address = "trainyard@localhost"
    mail_to: Annotated[list[Address], NoDecode, Field(min_length=1)] = ["team@localhost"]
    """Addresses, separated by commas in the variable."""

    @field_validator("mail_to", mode="before")
    @classmethod
    def split(cls, given: object) -> object:
        """Split the variable's text."""
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    @model_validator(mode="after")
    def keep_the_password_secret(self) -> Self:
        """Refuse to send a password that anybody on the way could read, or one without its user."""
        if self.smtp_password.get_secret_value():
            if self.smtp_tls is Tls.NONE:
                raise ValueError("SMTP_PASSWORD would be sent unencrypted: set SMTP_TLS to starttls or tls")
            if not self.smtp_user:
                raise ValueError("SMTP_PASSWORD needs SMTP_USER, the account that it opens")
        return self

    @property
    def server(self) -> Server:
        """The mail server."""
        password = self.smtp_password.get_secret_value()
        return Server(self.smtp_host, self.smtp_port, self.smtp_tls, self.smtp_user, password)


def problems(error: ValidationError) -> str:
    """Return what is wrong with settings in one line that names each variable and repeats no secret."""
    found = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        variable = str(problem["loc"][0]).upper() + ": " if problem["loc"] else ""
        found.append(variable + problem["msg"].removeprefix("Value error, "))
    return "; ".join(found) + "."
