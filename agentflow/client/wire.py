"""Requests to the API: repeated where that is safe, with errors as the client names them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from agentflow.client.errors import ApiError, ServerUnreachable
from agentflow.client.sse import messages

FINAL = frozenset({"succeeded", "failed", "canceled", "expired"})

SILENCE = 45.0
"""A live stream that says nothing for so many seconds, not even its ping, is dead."""

PAUSE = 0.25
"""Seconds before the first repeat; each later pause is twice as long, up to five seconds."""

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Wire:
    """`timeout` is in seconds, for one request; `repeats` is how often it is sent again."""

    def __init__(self, url: str, api_key: str | None, timeout: float, repeats: int) -> None:
        parts = httpx.URL(url)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError(f"{url!r} is no address of a server: http://host:port")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url, self._timeout, self._repeats = url.rstrip("/"), timeout, repeats
        # A proxy of the environment has no business between us and this very machine.
        proxies = parts.host not in _LOCAL
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=proxies)

    def close(self) -> None:
        self._http.close()

    def get(
        self, path: str, params: Mapping[str, Any] | None = None, wait: float = 0.0
    ) -> dict[str, Any]:
        """`wait` is how many seconds the server may take on purpose."""
        given = {k: v for k, v in (params or {}).items() if v is not None}
        answer = self._send("GET", path, True, params=given, timeout=self._timeout + wait)
        return self._json(answer)

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
    ) -> dict[str, Any]:
        """A POST that is not `repeatable` is repeated only if it surely did not arrive."""
        said = {} if body is None else {"json": body}
        return self._json(self._send("POST", path, repeatable, headers=headers, **said))

    def items(
        self, path: str, params: Mapping[str, Any], cursor: str = "cursor"
    ) -> Iterator[dict[str, Any]]:
        """The items of a list, page after page."""
        at: str | None = None
        while True:
            page = self.get(path, {**params, cursor: at} if at else params)
            yield from page["items"]
            at = page["next_cursor"]
            if at is None:
                return

    def ready(self) -> dict[str, Any]:
        """The answer of `/readyz`, be it good or bad."""
        return self._json(self._send("GET", "/readyz", False), passing=503)

    def download(self, path: str, to: Path) -> Path:
        """Write the bytes to `to`, whole or not at all."""
        draft = to.with_name(f".{to.name}.part")
        self._open()
        try:
            with self._http.stream("GET", self.url + path) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer)
                with draft.open("wb") as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)
            return draft.replace(to)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            draft.unlink(missing_ok=True)

    def follow(self, job: str, after: int) -> Iterator[dict[str, Any]]:
        """Entries above `after` of the history of the job at this path until it is final,
        over any break."""
        failures = 0
        while True:
            last: dict[str, Any] = {}
            cause: Exception = ServerUnreachable(f"{self.url} closes the live stream")
            try:
                for last in self._listen(f"{job}/events", after):
                    after, failures = last["seq"], 0
                    yield last
                broken = False
            except (httpx.TransportError, ServerUnreachable) as error:
                cause, broken = error, True
            if not broken and (last.get("status") in FINAL or (not last and self._over(job))):
                return
            failures += 1
            if failures > max(self._repeats, 4):
                raise self._unreachable(cause) from cause
            time.sleep(_pause(failures))

    def _listen(self, path: str, after: int) -> Iterator[dict[str, Any]]:
        seen = {"Last-Event-ID": str(after)} if after >= 0 else {}
        headers = {"Accept": "text/event-stream", **seen}
        timeout = httpx.Timeout(self._timeout, read=SILENCE)
        self._open()
        with self._http.stream("GET", self.url + path, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                answer.read()
                raise self._refusal(answer)
            for message in messages(answer.iter_bytes()):
                yield json.loads(message)

    def _over(self, job: str) -> bool:
        return self.get(job)["status"] in FINAL

    def _send(self, method: str, path: str, repeatable: bool, **more: Any) -> httpx.Response:
        for repeat in range(1, self._repeats + 2):
            last = repeat > self._repeats
            self._open()
            try:
                answer = self._http.request(method, self.url + path, **more)
            except httpx.TransportError as error:
                if last or not (repeatable or isinstance(error, _UNSENT)):
                    raise self._unreachable(error) from error
                time.sleep(_pause(repeat))
            else:
                if answer.status_code != 503 or last or not repeatable:
                    return answer
                time.sleep(_pause(repeat))
        raise AssertionError("the last turn returns or raises")

    def _open(self) -> None:
        """Said as the other errors are: another thread may have closed the client meanwhile."""
        if self._http.is_closed:
            raise ServerUnreachable(f"The client of {self.url} is closed")

    def _json(self, answer: httpx.Response, passing: int = 200) -> dict[str, Any]:
        if not answer.is_success and answer.status_code != passing:
            raise self._refusal(answer)
        said = _object(answer)
        if said is None:
            raise ServerUnreachable(f"{self.url} does not answer as agentflow does")
        return said

    def _refusal(self, answer: httpx.Response) -> ApiError | ServerUnreachable:
        said = _object(answer)
        if answer.status_code == 503:
            detail = (said or {}).get("detail") or "it is not available"
            return ServerUnreachable(f"{self.url} cannot work now: {detail}")
        if said is None:
            return ServerUnreachable(
                f"{self.url} does not answer as agentflow does (status {answer.status_code})"
            )
        return ApiError(answer.status_code, said)

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        if isinstance(error, ServerUnreachable):
            return error
        return ServerUnreachable(f"{self.url}: {str(error) or type(error).__name__}")


def place(path: str, id: str, action: str = "") -> str:
    """The path of one thing of a list; its id may be anything somebody typed."""
    return f"{path}/{quote(id, safe='')}{action}"


def _pause(repeat: int) -> float:
    return min(PAUSE * 2.0 ** (repeat - 1), 5.0)


def _object(answer: httpx.Response) -> dict[str, Any] | None:
    """The JSON object of an answer; None if it holds none."""
    try:
        said = answer.json()
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
