"""A client of the lab's manager, as an orchestrator would be one: plain HTTP, one token, no asyncio."""

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from schemas.problems import STATUS, ProblemCode

#: Above the 30 s after which the manager answers 202.
_TIMEOUT_S = 60
_POLL_S = 0.1
#: Operations that make something, and those whose answer is what they have to tell.
_MAKES = ("backend.add", "volume.create")
_TELLS = ("volume.attach", "volume.detach", "backend.evacuate")


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
        self.token = token

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """What comes of it in the end, also where the manager answers 202 because the hosts are slow. path: below /v1."""
        answer = self._ask(method, path, body, headers)
        if answer.status != HTTPStatus.ACCEPTED:
            return answer
        operation = self._ask("GET", answer.operation.removeprefix("/v1"), None, {}).body
        while operation["state"] in ("running", "undoing"):
            time.sleep(_POLL_S)
            operation = self._ask("GET", answer.operation.removeprefix("/v1"), None, {}).body
        if (error := operation["error"]) is not None:
            return Answer(STATUS[ProblemCode(error["code"])], {**error, "operation": answer.operation})
        if method == "DELETE":
            return Answer(200, operation["result"]) if "Prefer" in headers else Answer(204, None)
        if operation["kind"] in _TELLS:
            return Answer(200, operation["result"])
        collection, _, made = operation["subject"].partition("/")
        # A snapshot is shown below its volume, where it was asked for.
        where = f"{path}/{made}" if collection == "snapshots" else f"/{operation['subject']}"
        shown = self._ask("GET", where, None, {})
        return Answer(201, shown.body) if operation["kind"] in _MAKES else shown

    def begin(self, path: str, body: Any) -> str:
        """The path of the operation of a POST that is not waited for."""
        answer = self._ask("POST", path, body, {"Prefer": "respond-async"})
        assert answer.status == HTTPStatus.ACCEPTED, answer
        return answer.operation.removeprefix("/v1")

    def get(self, path: str) -> Any:
        """The body of a 200."""
        answer = self("GET", path)
        assert answer.status == 200, answer
        return answer.body

    def _ask(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, f"/v1{path}", json.dumps(body) if body is not None else None, sent)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return Answer(response.status, json.loads(text) if text else None)
