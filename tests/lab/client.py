"""A client of the lab's manager, as an orchestrator would be one: plain HTTP, one token, no asyncio."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

#: Above the 30 s after which the manager answers 202.
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any

    @property
    def codes(self) -> list[str]:
        """The fault codes of a refusal, in the order of its hosts."""
        return [str(fault["code"]) for fault in self.body["faults"]]

    @property
    def operation(self) -> str:
        return str(self.body["operation"])


class Api:
    """One manager with one token."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """path: below /v1."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        sent = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, f"/v1{path}", json.dumps(body) if body is not None else None, sent)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return Answer(response.status, json.loads(text) if text else None)

    def get(self, path: str) -> Any:
        """The body of a 200."""
        answer = self("GET", path)
        assert answer.status == 200, answer
        return answer.body
