"""What simulators of declared services have in common: a declaration, and where its secrets are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentflow.testing.simulator import Simulator


class DeclaredSimulator(Simulator):
    """The service `name`, which lets in who has `key`."""

    name: str
    key: str

    def service(self) -> dict[str, Any]:
        """How it is declared, its secrets written out."""
        raise NotImplementedError

    def secrets(self) -> Mapping[str, str]:
        """Its secrets, by the variables `env` keeps them in."""
        return {f"{self.name.upper()}_KEY": self.key}

    def env(self) -> dict[str, str]:
        """The settings that lead here, its secrets in variables of their own."""
        secrets = dict(self.secrets())
        held = {value: name for name, value in secrets.items()}
        service = _hidden(self.service(), held)
        return {"AGENTFLOW_HTTP_SERVICES": json.dumps({self.name: service}), **secrets}


def _hidden(value: Any, held: Mapping[str, str]) -> Any:
    match value:
        case str() if value in held:
            return {"env": held[value]}
        case dict():
            return {name: _hidden(each, held) for name, each in value.items()}
        case list():
            return [_hidden(each, held) for each in value]
        case _:
            return value
