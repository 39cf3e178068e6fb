"""HTTP for agentflow: `http.request` and `http.get`, and a provider for each declared service."""

from __future__ import annotations

from agentflow import Provider, hookimpl
from agentflow_http.declared import services
from agentflow_http.provider import broken_provider, http_provider, service_provider
from agentflow_http.service import Service
from agentflow_http.settings import HttpSettings

__all__ = ["HttpSettings", "Service", "agentflow_providers", "http_provider", "service_provider"]


@hookimpl
def agentflow_providers() -> list[Provider]:
    """Raises `SettingsError` for settings that cannot be read; a service that is declared wrong is
    reported by itself."""
    declared = services(HttpSettings.read().services)
    good = {name: each for name, each in declared.items() if isinstance(each, Service)}
    return [
        http_provider(good),
        *(
            service_provider(name, each)
            if isinstance(each, Service)
            else broken_provider(name, each)
            for name, each in declared.items()
        ),
    ]
