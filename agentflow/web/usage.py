"""Usage and budgets: what calls came to, and caps on what they may come to."""

from __future__ import annotations

from dataclasses import asdict

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentflow.core.pricing import amount_from, steps
from agentflow.core.submission import TAG
from agentflow.errors import NotFound
from agentflow.store.budgets import Budget, list_budgets
from agentflow.store.usage import GROUPS, UsageFilter, usage_sums
from agentflow.types import JsonObject, new_id
from agentflow.web import money, schemas
from agentflow.web.auth import Principal
from agentflow.web.context import body, context, invalid, principal, query, tenant
from agentflow.web.jobs import command
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes

usage = Routes("usage")

EVERYBODY = "*"


@usage.add("GET", "/v1/usage", query=money.UsageQuery, answers={200: money.Usage})
async def sums(request: Request) -> Response:
    """Sum up what the calls that ended used and cost

    A call that may have been billed and of which nobody knows the cost counts as `unknown`.
    Operators see another tenant with `tenant`, and all of them with `*`.
    """
    wanted = query(request, money.UsageQuery)
    groups = _groups(wanted.group_by)
    of = _whose(principal(request), wanted.tenant)
    asked = UsageFilter(
        since=wanted.since, until=wanted.until, task=wanted.task, model=wanted.model, tag=wanted.tag
    )
    items, more = await usage_sums(of, groups, asked)
    return JsonResponse({"items": items, "more": more})


@usage.add("GET", "/v1/budgets", answers={200: schemas.Page[money.Budget]})
async def budgets(request: Request) -> Response:
    """List the budgets of this tenant; operators see all"""
    who = principal(request)
    of = None if who.operator else who.tenant
    found = await list_budgets(of, context(request).clock.now())
    return JsonResponse({"items": found, "next_cursor": None})


@usage.add(
    "POST", "/v1/budgets", body=money.BudgetBody, answers={202: schemas.Commanded}, scope="admin"
)
async def set_budget(request: Request) -> Response:
    """Cap what the calls of a tenant, or of one of its tags, may cost

    There is one budget for each tenant, tag and period; set again, it changes. It holds for calls
    granted from a second after.
    """
    said = await body(request, money.BudgetBody)
    if said.tag is not None and not TAG.fullmatch(said.tag):
        raise invalid("tag", "letters, digits and _.:/=@-, to 64")
    budget = Budget(
        id=new_id("bud"),
        tenant=said.tenant,
        tag=said.tag or "",
        period=said.period,
        currency=said.currency,
        cap=_amount("cap", said.cap),
        per_call=_amount("per_call", said.per_call),
        note=said.note,
    )
    return await _commanded(request, {"command": "set_budget", "budget": asdict(budget)})


@usage.add("DELETE", "/v1/budgets/{id}", answers={202: schemas.Commanded}, scope="admin")
async def remove_budget(request: Request) -> Response:
    """Remove a budget"""
    id = request.path_params["id"]
    if not any(each["id"] == id for each in await list_budgets(None, context(request).clock.now())):
        raise NotFound(f"There is no budget {id}")
    return await _commanded(request, {"command": "remove_budget", "id": id})


async def _commanded(request: Request, said: JsonObject) -> Response:
    id, status = await command(context(request), tenant(request), said)
    return JsonResponse({"id": id, "status": status}, 202)


def _groups(said: str | None) -> list[str]:
    groups = list(dict.fromkeys(said.split(","))) if said else []
    if unknown := [group for group in groups if group not in GROUPS]:
        raise invalid("group_by", f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    return groups


def _whose(who: Principal, asked: str | None) -> str | None:
    """The tenant to sum up; None for all."""
    if asked is None or asked == who.tenant:
        return who.tenant
    if not who.operator:
        raise HTTPException(403, "Only operators see other tenants.")
    return None if asked == EVERYBODY else asked


def _amount(name: str, said: str) -> int:
    amount = amount_from(said)
    if amount is None:
        raise invalid(name, "an amount of money as a decimal string, as '12.50'")
    return steps(amount)
