"""Fetching the public keys that webhooks are signed by, from where their scheme says."""

from __future__ import annotations

import asyncio

import httpx

LARGEST = 64 * 1024
TIMEOUT = 5.0
"""A sender waits meanwhile: fal for 15 seconds."""


async def fetch(url: str) -> bytes:
    """The document at a URL of our own settings. Raises for anything but a 200 of up to 64 KiB
    within five seconds."""
    async with (
        asyncio.timeout(TIMEOUT),
        httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False) as client,
        client.stream("GET", url) as answer,
    ):
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}")
        whole = bytearray()
        async for chunk in answer.aiter_bytes():
            whole += chunk
            if len(whole) > LARGEST:
                raise ValueError(f"more than {LARGEST} bytes")
        return bytes(whole)
