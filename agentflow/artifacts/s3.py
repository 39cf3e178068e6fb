"""The way to a bucket: where it is, with whose credentials, and what its refusals mean.

The library, obstore, is the extra `s3` and is imported when a bucket is configured. It reads the
customary `AWS_*` variables itself.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentflow.artifacts.errors import ArtifactStoreError
from agentflow.errors import SettingsError

if TYPE_CHECKING:
    from obstore.store import S3Store

TIMEOUT = "60s"
"""Of one request with its body; none carries more than a part of a file."""

_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_INSTANCE = "169.254.169.254"
_YES = frozenset({"1", "true", "yes", "on"})
_AWAY = ("HTTP error: ", "status code: 5", "status code: 429")


def connect(url: str) -> S3Store:
    """The bucket of `s3://bucket/prefix`; nothing is asked yet. Raises `SettingsError`."""
    environ = os.environ
    try:
        from obstore.store import S3Store
    except ImportError:
        raise SettingsError(
            "AGENTFLOW_ARTIFACTS_URL: obstore must be installed for a bucket:"
            " pip install 'agentflow-core[s3]'"
        ) from None
    parts = urlsplit(url)
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    _check(endpoint, environ)
    try:
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config={"region": region, **({"endpoint": endpoint} if endpoint else {})},
            client_options={
                "allow_http": endpoint is not None and endpoint.startswith("http:"),
                "connect_timeout": "5s",
                "timeout": TIMEOUT,
                "user_agent": "agentflow",
            },
            retry_config={
                "max_retries": 3,
                "retry_timeout": timedelta(seconds=30),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
        )
    except errors() as error:
        raise SettingsError(f"AGENTFLOW_ARTIFACTS_URL: {first_line(error)}") from None


def _check(endpoint: str | None, environ: Mapping[str, str]) -> None:
    """Raise `SettingsError` for an endpoint that would show what it is sent, or that nobody could
    sign in at."""
    if endpoint is None:
        return
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"AWS_ENDPOINT_URL={endpoint}: it is http(s)://host[:port]")
    allowed = environ.get("AWS_ALLOW_HTTP", "").lower() in _YES
    if parts.scheme == "http" and not (allowed or _is_loopback(parts.hostname)):
        raise SettingsError(
            f"AWS_ENDPOINT_URL={endpoint}: files would cross the network in the clear. Use https,"
            " or say AWS_ALLOW_HTTP=true."
        )
    unsigned = environ.get("AWS_SKIP_SIGNATURE", "").lower() in _YES
    if not unsigned and not any(environ.get(name) for name in _CREDENTIALS):
        raise SettingsError(
            "AGENTFLOW_ARTIFACTS_URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for"
            f" {endpoint}"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def errors() -> tuple[type[Exception], ...]:
    """What the library raises. A missing object, or bucket, is a `FileNotFoundError`."""
    from obstore.exceptions import BaseError

    return BaseError, OSError, ValueError


def no_bucket(error: Exception) -> bool:
    """Whether not the object but its bucket is missing. An answer without a body cannot tell."""
    return "NoSuchBucket" in str(error)


def away(error: Exception) -> bool:
    """Whether nobody answered, or not now: trying again can help."""
    said = str(error)
    return any(sign in said for sign in _AWAY) and _INSTANCE not in said


def store_error(error: Exception, place: str) -> ArtifactStoreError:
    return ArtifactStoreError(f"{place} failed: {reason(error)}")


def reason(error: Exception) -> str:
    """What went wrong, in a sentence."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    said = first_line(error)
    if _INSTANCE in said:
        return "there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access is refused. {said}"
    if no_bucket(error):
        return "there is no such bucket."
    return said


def first_line(error: Exception) -> str:
    """The library adds what it was doing, at length. No URL of it carries a signature."""
    return str(error).partition("\n")[0].strip()[:300]
