"""What can go wrong between a provider's URL and our own storage.

    AgentflowError
    ├── ArtifactStoreError      our storage failed: full, forbidden, broken
    ├── ArtifactTooLarge        more bytes than the caller allowed
    ├── SourceGone              expired at the provider; it will not come back
    ├── SourceRefused           we will not fetch it; trying again cannot help
    │   └── AddressRefused      its host leads into a network that is not public
    └── SourceUnavailable       not now; trying again can help

Messages name a host but never a URL: the path and query of a signed URL are a key.
"""

from __future__ import annotations

from agentflow.errors import AgentflowError


class ArtifactStoreError(AgentflowError):
    """The artifact storage failed."""


class ArtifactTooLarge(AgentflowError):
    """The artifact is larger than allowed."""


class SourceGone(AgentflowError):
    """The file is no longer at its source."""


class SourceRefused(AgentflowError):
    """The source is not one we fetch from."""


class AddressRefused(SourceRefused):
    """The host has an address that is not public."""


class SourceUnavailable(AgentflowError):
    """The source does not answer as it should."""

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        """`retry_after` is in seconds, as the source asked, or None."""
        super().__init__(message)
        self.retry_after = retry_after
