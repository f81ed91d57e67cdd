"""What `stowage up` asks of its manager over HTTP; no proxy of the environment comes between."""

import http.client
import json
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from manager.embedded import children
from manager.embedded.errors import StartError
from manager.embedded.stopping import never

_TOKEN = re.compile(rb"[!-~]+")
_TOKEN_REMEDY = "write a valid token of the role admin into that file, for `up` lets agents join with it"
_REQUEST_TIMEOUT_S = 35  # above the 30 s after which the manager answers 202


class ManagerClient:
    """One manager at an address on this machine."""

    def __init__(self, host: str, port: int, token_file: Path, *, check: Callable[[], None] = never) -> None:
        """check: may raise while an answer is waited for."""
        self._host = host
        self._port = port
        self._token_file = token_file
        self._check = check

    @property
    def url(self) -> str:
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    def is_ready(self) -> bool:
        try:
            return self._request("GET", "/readyz", None, token=None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def join_token(self) -> str:
        """A one-time token for one agent."""
        return str(self._expect(201, "POST", "/v1/hosts/join_tokens", {"ttl_s": 300})["token"])

    def online_hosts(self) -> set[str]:
        """The names of the hosts whose agents answer."""
        items = self._expect(200, "GET", "/v1/hosts", None)["items"]
        return {str(host["name"]) for host in items if host["state"] == "online"}

    def revoked_hosts(self) -> set[str]:
        """The ids of the hosts that were sent away."""
        items = self._expect(200, "GET", "/v1/hosts?state=revoked&limit=500", None)["items"]
        return {str(host["id"]) for host in items}

    def add_default_backend(self, root_dir: Path) -> None:
        """The first backend exists. One that an interrupted first start has made counts."""
        body = {"name": "local", "kind": "local_file", "config": {"root_dir": str(root_dir)}, "is_default": True}
        status, answer = self._request("POST", "/v1/storage_backends", body, token=self._token())
        if status != 201 and answer.get("code") != "name_taken":
            raise StartError(f"the default backend was not added ({status}): {_reason(answer)}")

    def _expect(self, wanted: int, method: str, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
        status, answer = self._request(method, path, body, token=self._token())
        if status == HTTPStatus.UNAUTHORIZED:
            raise StartError(f"the token in {self._token_file} counts no more; {_TOKEN_REMEDY}")
        if status != wanted:
            raise StartError(f"{method} {path} answered {status}: {_reason(answer)}")
        return answer

    def _token(self) -> str:
        try:
            token = self._token_file.read_bytes().strip()
        except FileNotFoundError as error:
            raise StartError(f"the admin token is missing: {self._token_file}; {_TOKEN_REMEDY}") from error
        if not _TOKEN.fullmatch(token):
            raise StartError(f"{self._token_file} does not hold one token; {_TOKEN_REMEDY}")
        return token.decode()

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, token: str | None
    ) -> tuple[int, Mapping[str, Any]]:
        """The status and the JSON object of the answer. Raises OSError and HTTPException."""
        # In a thread, so that a signal finds the main one looking; the process does not wait for it at its end.
        answer: Future[tuple[int, Mapping[str, Any]]] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._exchange(method, path, body, token))
            except Exception as error:  # noqa: BLE001  # raised where it is waited for
                answer.set_exception(error)

        threading.Thread(target=ask, name="request", daemon=True).start()
        children.wait_until(answer.done, timeout_s=_REQUEST_TIMEOUT_S * 2, check=self._check)
        return answer.result(timeout=0)

    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, token: str | None
    ) -> tuple[int, Mapping[str, Any]]:
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_REQUEST_TIMEOUT_S)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            answer: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError:  # an empty body, or not one of ours
            answer = {}
        return response.status, answer


def _reason(answer: Mapping[str, Any]) -> str:
    faults = [f"{fault.get('host')}: {fault.get('detail')}" for fault in answer.get("faults", ())]
    return "; ".join([str(answer.get("detail") or answer.get("title") or "no reason given"), *faults])
