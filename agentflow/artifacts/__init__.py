"""Custody of files: a provider's output URL is dead after an hour, a copy of ours is not."""

from agentflow.artifacts.bucket import BucketStore
from agentflow.artifacts.choosing import artifact_store
from agentflow.artifacts.custody import Custody, Source, collect
from agentflow.artifacts.errors import (
    AddressRefused,
    ArtifactStoreError,
    ArtifactTooLarge,
    SourceGone,
    SourceRefused,
    SourceUnavailable,
)
from agentflow.artifacts.folder import FolderStore
from agentflow.artifacts.guard import guarded_client
from agentflow.artifacts.store import ArtifactStore, Stored

__all__ = [
    "AddressRefused",
    "ArtifactStore",
    "ArtifactStoreError",
    "ArtifactTooLarge",
    "BucketStore",
    "Custody",
    "FolderStore",
    "Source",
    "SourceGone",
    "SourceRefused",
    "SourceUnavailable",
    "Stored",
    "artifact_store",
    "collect",
    "guarded_client",
]
