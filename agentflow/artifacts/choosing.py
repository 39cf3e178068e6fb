"""Which store the settings ask for."""

from __future__ import annotations

from agentflow.artifacts.bucket import BucketStore
from agentflow.artifacts.folder import FolderStore
from agentflow.artifacts.store import ArtifactStore
from agentflow.settings import Settings


def artifact_store(settings: Settings) -> ArtifactStore:
    """A bucket or a folder. Raises `SettingsError` for a bucket that cannot be one."""
    if settings.artifacts_url is not None:
        return BucketStore(settings.artifacts_url)
    return FolderStore(settings.artifacts_dir or settings.data_dir / "artifacts")
