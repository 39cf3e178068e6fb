"""The shapes of usage and budgets. Amounts of money are decimal strings."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentflow.types import DEFAULT_TENANT
from agentflow.web.schemas import Instant, Shape, Word

Amount = Annotated[str, Field(pattern=r"^\d{1,9}(\.\d{1,10})?$", examples=["12.50"])]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="ISO 4217.", examples=["USD"])]
Period = Literal["day", "month", "total"]


class UsageQuery(Shape):
    since: Instant | None = Field(None, description="Calls that ended then or later.")
    until: Instant | None = Field(None, description="Calls that ended before.")
    group_by: str | None = Field(
        None,
        max_length=64,
        description="`task`, `model`, `tag`, `tenant`, `day`, `month`, or several with commas.",
        examples=["task", "tag,day"],
    )
    task: Word | None = None
    model: Word | None = None
    tag: Word | None = None
    tenant: Word | None = Field(None, description="Another tenant, or `*`: for operators.")


class Sum(BaseModel):
    amount: str
    currency: str


class UsageGroup(BaseModel):
    """`unknown` of the `calls` cost nobody knows what; `costs` sums up the others, by currency."""

    group: dict[str, str | None]
    calls: int
    unknown: int
    costs: list[Sum]
    usage: dict[str, float]


class Usage(BaseModel):
    """One item for each group, and one for all without `group_by`; `more`: there are others."""

    items: list[UsageGroup]
    more: bool


class Budget(BaseModel):
    """`spent` and `reserved` are of the period that began on the day `since`."""

    id: str
    tenant: str
    tag: str | None
    period: Period
    currency: str
    cap: str
    per_call: str
    spent: str
    reserved: str
    left: str
    since: str | None
    note: str | None
    created_at: datetime


class BudgetBody(Shape):
    model_config = ConfigDict(strict=True)

    cap: Amount = Field(description="What calls may cost in one period.")
    per_call: Amount = Field(
        description="What to set aside for a call of which no price says what it costs at most."
    )
    currency: Currency = "USD"
    period: Period = Field("month", description="Days and months are those of UTC.")
    tenant: str = Field(DEFAULT_TENANT, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    tag: str | None = Field(None, max_length=64, description="Only jobs with this tag.")
    note: str | None = Field(None, max_length=200, pattern=r"^[^\x00]*$", description="Why.")
