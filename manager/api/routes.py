"""The table of routes: method, path, least role (None: open to everybody), handler."""

from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from manager.actor import Role
from manager.api import (
    backends,
    capacity,
    drift,
    events,
    hosts,
    images,
    matrix,
    meta,
    operations,
    page,
    sessions,
    snapshots,
    tokens,
    volumes,
)


@dataclass(frozen=True)
class Endpoint:
    """query: the parameters that it knows; every other is refused. None: any, for a page that a browser opens, or for a handler
    that reads them all as it reads a body. session_refusal: what who comes with a session is told, where a token alone opens.
    """

    method: str
    path: str
    role: Role | None
    handler: Handler
    query: tuple[str, ...] | None = ()
    is_stream: bool = False
    session_refusal: str | None = None


V, O, A = Role.VIEWER, Role.OPERATOR, Role.ADMIN  # noqa: E741  (columns of the table)

_PAGE = ("limit", "cursor")
#: A session lasts for hours; who steals one must not turn it into a token.
_NO_TOKEN_BY_SESSION = "with a session no token can be made; send a token"
_VOLUME_FILTERS = ("backend", "host", "state", "attached", "unused", "label")

TABLE = (
    Endpoint("GET", "/", None, page.show_start, None),
    Endpoint("GET", "/ui/{hash}/{path:.+}", None, page.show_file),
    Endpoint("GET", "/healthz", None, meta.show_health),
    Endpoint("GET", "/readyz", None, meta.show_readiness),
    Endpoint("POST", "/v1/session", None, sessions.open_session),
    Endpoint("GET", "/v1/session", None, sessions.show_session),
    Endpoint("DELETE", "/v1/session", None, sessions.close_session),
    Endpoint("POST", "/v1/enrol", None, hosts.enrol),
    Endpoint("GET", "/v1/backend_kinds", V, meta.list_kinds, ("schemas",)),
    Endpoint("GET", "/v1/storage_backends", V, backends.list_backends, ("kind", "status", "state", "label", *_PAGE)),
    Endpoint("POST", "/v1/storage_backends", O, backends.add_backend),
    Endpoint("POST", "/v1/storage_backends/preflight", O, backends.preflight),
    Endpoint("POST", "/v1/storage_backends/probe", O, backends.probe_all_backends),
    Endpoint("GET", "/v1/storage_backends/{ref}", V, backends.show_backend),
    Endpoint("PATCH", "/v1/storage_backends/{ref}", O, backends.edit_backend),
    Endpoint("DELETE", "/v1/storage_backends/{ref}", O, backends.remove_backend, ("dry_run",)),
    Endpoint("GET", "/v1/storage_backends/{ref}/hosts", V, backends.show_hosts_of_backend),
    Endpoint("GET", "/v1/storage_backends/{ref}/hosts/{host}/probes", V, backends.list_probes),
    Endpoint("POST", "/v1/storage_backends/{ref}/probe", O, backends.probe_backend),
    Endpoint("GET", "/v1/storage_backends/{ref}/inspection", O, backends.inspect_backend),
    Endpoint("POST", "/v1/storage_backends/{ref}/initialize", O, backends.initialize_backend),
    Endpoint("GET", "/v1/storage_backends/{ref}/drift", V, drift.show_drift),
    Endpoint("POST", "/v1/storage_backends/{ref}/drift/adopt", O, drift.adopt_stray),
    Endpoint("POST", "/v1/storage_backends/{ref}/drift/delete", O, drift.delete_stray),
    Endpoint("POST", "/v1/storage_backends/{ref}/evacuate", O, drift.evacuate_backend),
    Endpoint("GET", "/v1/volumes", V, volumes.list_volumes, (*_VOLUME_FILTERS, *_PAGE)),
    Endpoint("POST", "/v1/volumes", O, volumes.create_volume),
    Endpoint("GET", "/v1/volumes/{ref}", V, volumes.show_volume),
    Endpoint("PATCH", "/v1/volumes/{ref}", O, volumes.edit_volume),
    Endpoint("DELETE", "/v1/volumes/{ref}", O, volumes.delete_volume),
    Endpoint("POST", "/v1/volumes/{ref}/resize", O, volumes.resize_volume),
    Endpoint("POST", "/v1/volumes/{ref}/clone", O, volumes.clone_volume),
    Endpoint("POST", "/v1/volumes/{ref}/migrate", O, volumes.migrate_volume),
    Endpoint("POST", "/v1/volumes/{ref}/attach", O, volumes.attach_volume),
    Endpoint("POST", "/v1/volumes/{ref}/detach", O, volumes.detach_volume),
    Endpoint("GET", "/v1/volumes/{ref}/explain", V, volumes.explain_volume, ("host", "mode")),
    Endpoint("GET", "/v1/volumes/{ref}/snapshots", V, snapshots.list_snapshots, _PAGE),
    Endpoint("POST", "/v1/volumes/{ref}/snapshots", O, snapshots.create_snapshot),
    Endpoint("GET", "/v1/volumes/{ref}/snapshots/{snapshot}", V, snapshots.show_snapshot),
    Endpoint("DELETE", "/v1/volumes/{ref}/snapshots/{snapshot}", O, snapshots.delete_snapshot),
    Endpoint("POST", "/v1/volumes/{ref}/snapshots/{snapshot}/revert", O, snapshots.revert_volume),
    Endpoint("GET", "/v1/images", V, images.list_images, ("backend", "label", *_PAGE)),
    Endpoint("POST", "/v1/images", O, images.create_image),
    Endpoint("PUT", "/v1/images/{name}/content", O, images.upload_image, None),
    Endpoint("GET", "/v1/images/{ref}", V, images.show_image),
    Endpoint("PATCH", "/v1/images/{ref}", O, images.edit_image),
    Endpoint("DELETE", "/v1/images/{ref}", O, images.delete_image),
    Endpoint("POST", "/v1/images/{ref}/migrate", O, images.migrate_image),
    Endpoint("GET", "/v1/hosts", V, hosts.list_hosts, ("state", "kind", "label", *_PAGE)),
    Endpoint("POST", "/v1/hosts/join_tokens", A, hosts.create_join_token),
    Endpoint("GET", "/v1/hosts/{ref}", V, hosts.show_host),
    Endpoint("DELETE", "/v1/hosts/{ref}", A, hosts.revoke_host),
    Endpoint("POST", "/v1/hosts/{ref}/discover", O, hosts.discover),
    Endpoint("GET", "/v1/matrix", V, matrix.show_matrix),
    Endpoint("GET", "/v1/capacity", V, capacity.show_capacity),
    Endpoint("GET", "/v1/operations", V, operations.list_operations, ("subject", "state", "kind", *_PAGE)),
    Endpoint("GET", "/v1/operations/{id}", V, operations.show_operation),
    Endpoint("POST", "/v1/operations/{id}/retry", O, operations.retry_operation),
    Endpoint("POST", "/v1/operations/{id}/cancel", O, operations.cancel_operation),
    Endpoint("GET", "/v1/events", V, events.list_events, ("subject", "type", "actor", "since", "order", *_PAGE)),
    Endpoint("GET", "/v1/events/stream", V, events.stream_events, ("changes",), is_stream=True),
    Endpoint("GET", "/v1/events/verification", V, events.verify_events),
    Endpoint("GET", "/v1/tokens", A, tokens.list_tokens, _PAGE),
    Endpoint("POST", "/v1/tokens", A, tokens.create_token, session_refusal=_NO_TOKEN_BY_SESSION),
    Endpoint("GET", "/v1/tokens/{id}", A, tokens.show_token),
    Endpoint("DELETE", "/v1/tokens/{id}", A, tokens.revoke_token),
)


@dataclass(frozen=True)
class Rules:
    """What a route asks of a request: the least role, the query's parameters, and that it comes with no session."""

    roles: dict[web.AbstractRoute, Role | None]
    queries: dict[web.AbstractRoute, tuple[str, ...] | None]
    session_refusals: dict[web.AbstractRoute, str]


def build_routes(router: web.UrlDispatcher) -> Rules:
    """The rules of each route, all of them added to the router; what can be got can be asked for by HEAD too."""
    rules = Rules({}, {}, {})
    for endpoint in TABLE:
        resource = router.add_resource(endpoint.path)
        methods = ("GET", "HEAD") if endpoint.method == "GET" and not endpoint.is_stream else (endpoint.method,)
        for method in methods:
            route = resource.add_route(method, endpoint.handler, expect_handler=_expect_nothing)
            rules.roles[route] = endpoint.role
            rules.queries[route] = endpoint.query
            if endpoint.session_refusal is not None:
                rules.session_refusals[route] = endpoint.session_refusal
    return rules


async def _expect_nothing(request: web.Request) -> None:
    """`100 Continue` is sent where the body is read (decoding.read_body): who may not come in need not send it."""
