"""Settings of mail."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trainyard.mail.smtp import Server, Tls


def validate_address(text: str) -> str:
    """Return an address such as team@example.com unchanged.

    Raises:
        ValueError: It has another form, such as one with a display name.
    """
    if not re.fullmatch(r"[!-~]+@[!-~]+", text) or text.count("@") > 1 or set(text) & set('<>,;:()[]"\\'):
        raise ValueError(f"{text!r} is not an address such as team@example.com")
    return text


Address = Annotated[str, AfterValidator(validate_address)]


class MailSettings(BaseSettings):
    """The mail server, the sender and the recipients; only the flow that sends mail reads them.

    MAIL_EVENTS of provisioning and the tags of a run decide whether a mail is sent.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, hide_input_in_errors=True)

    smtp_host: str = "localhost"
    smtp_port: int = Field(default=1025, ge=1, le=65535)
    smtp_tls: Tls = Tls.NONE
    """`starttls` (usually port 587) and `tls` (port 465) verify the server's certificate."""
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")

    mail_from: Address = "trainyard@localhost"
    mail_to: Annotated[list[Address], NoDecode, Field(min_length=1)] = ["team@localhost"]
    """Addresses, separated by commas in the variable."""

    @field_validator("mail_to", mode="before")
    @classmethod
    def split_addresses(cls, value: object) -> object:
        """Split the variable's text at commas."""
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def require_tls_for_password(self) -> Self:
        """Refuse a password without TLS or without a user."""
        if self.smtp_password.get_secret_value():
            if self.smtp_tls is Tls.NONE:
                raise ValueError("SMTP_PASSWORD would be sent unencrypted: set SMTP_TLS to starttls or tls")
            if not self.smtp_user:
                raise ValueError("SMTP_PASSWORD needs SMTP_USER, its account")
        return self

    @property
    def server(self) -> Server:
        """The mail server."""
        password = self.smtp_password.get_secret_value()
        return Server(self.smtp_host, self.smtp_port, self.smtp_tls, self.smtp_user, password)


def describe_errors(error: ValidationError) -> str:
    """Return what is wrong with settings in one line that names each variable and no secret."""
    messages = []
    for details in error.errors(include_url=False, include_context=False, include_input=False):
        variable = str(details["loc"][0]).upper() + ": " if details["loc"] else ""
        messages.append(variable + details["msg"].removeprefix("Value error, "))
    return "; ".join(messages) + "."
