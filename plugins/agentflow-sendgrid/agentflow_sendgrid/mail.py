"""A mail, and the body SendGrid's v3 API wants for it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

if TYPE_CHECKING:
    from agentflow import Call

Address = Annotated[str, Field(pattern=r"^[^\s@<>,;]+@[^\s@<>,;]+$", max_length=320)]

TOKEN = "agentflow_token"
TO = "agentflow_to"
"""Custom arguments: members of every event about the mail."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Attachment(_Shape):
    """A file that goes along: one of ours, or its bytes."""

    filename: str = Field(min_length=1, max_length=200)
    artifact: str | None = Field(None, pattern=r"^art_[0-9a-f]{32}_[0-9]{1,6}$")
    """The id of a file in custody."""
    content: str | None = None
    """The bytes in base64."""
    type: str | None = None
    """The media type."""

    @model_validator(mode="after")
    def _one(self) -> Attachment:
        if (self.artifact is None) == (self.content is None):
            raise ValueError("give exactly one of artifact and content")
        return self


class Mail(_Shape):
    """One mail to one person. The job follows its delivery to `to`; copies go along unfollowed."""

    to: Address
    to_name: str | None = None
    sender: Address
    """A verified sender of the account."""
    sender_name: str | None = None
    subject: str | None = Field(None, max_length=998)
    text: str | None = None
    html: str | None = None
    template_id: str | None = None
    """A dynamic template; `template_data` fills it in."""
    template_data: dict[str, JsonValue] = Field(default_factory=dict)
    cc: list[Address] = Field(default_factory=list, max_length=100)
    bcc: list[Address] = Field(default_factory=list, max_length=100)
    reply_to: Address | None = None
    attachments: list[Attachment] = Field(default_factory=list, max_length=50)
    categories: list[Annotated[str, Field(max_length=255)]] = Field(
        default_factory=list, max_length=10
    )
    headers: dict[str, str] = Field(default_factory=dict)
    custom_args: dict[str, str] = Field(default_factory=dict)
    """Come back in every event."""
    send_at: int | None = Field(None, ge=0)
    """A Unix time within the next 72 hours."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """More members of the request, handed on as they are (`asm`, `mail_settings`, …)."""
    wait_for: Literal["delivery", "acceptance"] = "delivery"
    """When the job has succeeded: when the receiving server has the mail, or SendGrid does."""

    @model_validator(mode="after")
    def _whole(self) -> Mail:
        if self.template_id is None and (not self.subject or not (self.text or self.html)):
            raise ValueError("give a template_id, or a subject with text or html")
        if reserved := {TOKEN, TO} & self.custom_args.keys():
            raise ValueError(f"custom_args: {', '.join(sorted(reserved))} belongs to agentflow")
        if taken := _OURS & self.options.keys():
            raise ValueError(f"options: {', '.join(sorted(taken))} has a field of its own")
        return self


_OURS = {"personalizations", "from", "subject", "content", "template_id", "reply_to"}
_OURS |= {"attachments", "categories", "headers", "custom_args", "send_at"}


async def request_of(call: Call, mail: Mail) -> dict[str, Any]:
    """The JSON of `POST /v3/mail/send`. Raises `InvalidInput` for a file there is not."""
    person: dict[str, Any] = {"to": [_named(mail.to, mail.to_name)]}
    for kind in ("cc", "bcc"):
        if copies := getattr(mail, kind):
            person[kind] = [{"email": each} for each in copies]
    if mail.template_data:
        person["dynamic_template_data"] = mail.template_data
    content = [
        {"type": type, "value": value}
        for type, value in (("text/plain", mail.text), ("text/html", mail.html))
        if value
    ]
    said = {
        **mail.options,
        "personalizations": [person],
        "from": _named(mail.sender, mail.sender_name),
        "subject": mail.subject,
        "content": content,
        "template_id": mail.template_id,
        "reply_to": {"email": mail.reply_to} if mail.reply_to else None,
        "attachments": [await _attached(call, each) for each in mail.attachments],
        "categories": mail.categories,
        "headers": mail.headers,
        "send_at": mail.send_at,
    }
    about = {TOKEN: call.token, TO: mail.to.lower()}
    given = {name: value for name, value in said.items() if value not in (None, [], {})}
    return given | {"custom_args": {**mail.custom_args, **about}}


def _named(email: str, name: str | None) -> dict[str, str]:
    return {"email": email, **({"name": name} if name else {})}


async def _attached(call: Call, file: Attachment) -> dict[str, str]:
    content = file.content
    if file.artifact is not None:
        content = base64.b64encode(await call.artifact(file.artifact)).decode()
    kind = {"type": file.type} if file.type else {}
    return {"filename": file.filename, "content": str(content), **kind}
