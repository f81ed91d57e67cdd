"""What the manager says of itself: alive, ready, the kinds it knows."""

from typing import Any

from aiohttp import web

from manager.api import decoding
from manager.api.encoding import json_response
from manager.api.keys import READINESS
from schemas.kinds import KINDS, KindSpec
from schemas.validation import json_schema

_WELCOME = """Stowage answers here.

The web page is for browsers: open this address in one.
The API is below /v1 and wants a token: curl -H "Authorization: Bearer TOKEN" …/v1/storage_backends
Whether it works: /healthz, /readyz
"""


async def show_welcome(request: web.Request) -> web.Response:
    """For a person with a browser who typed the address."""
    return web.Response(text=_WELCOME)


async def show_health(request: web.Request) -> web.Response:
    """The process answers; nothing more is asked, so that a database's trouble restarts nobody."""
    return json_response({"status": "alive"})


async def show_readiness(request: web.Request) -> web.Response:
    missing = await request.app[READINESS]()
    if missing:
        return json_response({"status": "not ready", "missing": missing}, status=503, headers={"Retry-After": "1"})
    return json_response({"status": "ready", "missing": {}})


async def list_kinds(request: web.Request) -> web.Response:
    """schemas=false: without them, for who shows a list and no form."""
    has_schemas = decoding.choice(decoding.query(request), "schemas") is not False
    return json_response([_kind(spec) | (_schemas(spec) if has_schemas else {}) for spec in KINDS.values()])


def _kind(spec: KindSpec) -> dict[str, Any]:
    return {
        "kind": spec.kind,
        "title": spec.title,
        "capabilities": spec.capabilities,
        "is_shared": spec.is_shared,
        "can_initialize": spec.can_initialize,
        "formats": spec.formats,
        "discover_by": spec.discover_by,
    }


def _schemas(spec: KindSpec) -> dict[str, Any]:
    credentials = spec.credentials
    return {
        "config_schema": json_schema(spec.config, spec.title),
        "credentials_schema": json_schema(credentials, f"Credentials of {spec.title}") if credentials else None,
    }
