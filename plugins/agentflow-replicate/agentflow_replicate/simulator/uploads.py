"""Uploaded files: `POST /v1/files`, a multipart form with the file under `content`."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import md5, sha256
from typing import Any

from agentflow_replicate.simulator.prediction import now, stamp

_FILENAME = re.compile(rb'name="content"; filename="([^"]*)"', re.IGNORECASE)
_TYPE = re.compile(rb"\r\ncontent-type: ([^\r]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file a client sent."""

    id: str
    name: str
    content_type: str
    content: bytes
    created_at: datetime

    @classmethod
    def read(cls, content_type: str, body: bytes) -> Upload | None:
        """The file within a multipart body; None if there is none."""
        boundary = content_type.partition("boundary=")[2].strip('"').encode()
        if not boundary:
            return None
        for part in (b"\r\n" + body).split(b"\r\n--" + boundary):
            head, _, content = part.partition(b"\r\n\r\n")
            if named := _FILENAME.search(head):
                kind = _TYPE.search(head)
                media_type = kind[1].decode("latin-1") if kind else "application/octet-stream"
                return cls(uuid.uuid4().hex, named[1].decode(), media_type, content, now())
        return None

    def view(self, base: str) -> dict[str, Any]:
        digest = md5(self.content, usedforsecurity=False).hexdigest()
        return {
            "id": self.id,
            "name": self.name,
            "content_type": self.content_type,
            "size": len(self.content),
            "etag": digest,
            "checksums": {"sha256": sha256(self.content).hexdigest(), "md5": digest},
            "metadata": {},
            "created_at": stamp(self.created_at),
            "expires_at": stamp(self.created_at + timedelta(days=1)),
            "urls": {"get": f"{base}/v1/files/{self.id}"},
        }
