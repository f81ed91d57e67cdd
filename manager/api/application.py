"""The API as an aiohttp application: services, middlewares, routes, put together in one place."""

import asyncio
from collections import Counter

from aiohttp import web

from manager.api.auth import FAILURE_BURST, FAILURES, FAILURES_PER_S, GUESSES, authenticate
from manager.api.edge import add_headers, edge
from manager.api.events import OPEN_STREAMS, STREAMS, end_streams
from manager.api.idempotency import IDEMPOTENCY, Idempotency, idempotent
from manager.api.keys import (
    ACCESS,
    BACKENDS,
    CAPACITIES,
    CHANGES,
    DRIFT,
    EVACUATIONS,
    EVENTS,
    HOSTS,
    MATRICES,
    OPERATIONS,
    PROBING,
    QUERIES,
    READINESS,
    SESSION_REFUSALS,
    SESSIONS,
    TOKENS,
    UPLOADS,
    VOLUME_READS,
    VOLUMES,
    Readiness,
)
from manager.api.page import PAGE, Page
from manager.api.routes import build_routes
from manager.backends import Backends
from manager.capacity import Capacities
from manager.changes import Changes
from manager.drift import Drift
from manager.evacuations import Evacuations
from manager.events import Events
from manager.hosts import Hosts
from manager.matrix import Matrices
from manager.operations import Operations
from manager.pace import Pace
from manager.probing import Probing
from manager.sessions import Sessions
from manager.tokens import Tokens
from manager.uploads import Uploads
from manager.volume_reads import VolumeReads
from manager.volumes import Volumes


def create_api(
    *,
    backends: Backends,
    probing: Probing,
    volume_reads: VolumeReads,
    volumes: Volumes,
    uploads: Uploads,
    evacuations: Evacuations,
    drift: Drift,
    hosts: Hosts,
    capacities: Capacities,
    matrices: Matrices,
    changes: Changes,
    operations: Operations,
    events: Events,
    tokens: Tokens,
    sessions: Sessions,
    idempotency: Idempotency,
    readiness: Readiness,
    failures: Pace | None = None,
    page: Page | None = None,
) -> web.Application:
    """The application, to be served by server.ApiRunner."""
    # client_max_size is not in use: decoding.read_body has its own limit, and its own words.
    app = web.Application(middlewares=(edge, authenticate, idempotent))
    app[BACKENDS] = backends
    app[PROBING] = probing
    app[VOLUME_READS] = volume_reads
    app[VOLUMES] = volumes
    app[UPLOADS] = uploads
    app[EVACUATIONS] = evacuations
    app[DRIFT] = drift
    app[HOSTS] = hosts
    app[CAPACITIES] = capacities
    app[MATRICES] = matrices
    app[CHANGES] = changes
    app[OPERATIONS] = operations
    app[EVENTS] = events
    app[TOKENS] = tokens
    app[SESSIONS] = sessions
    app[IDEMPOTENCY] = idempotency
    app[READINESS] = readiness
    app[GUESSES] = asyncio.Lock()
    app[FAILURES] = failures or Pace(burst=FAILURE_BURST, per_s=FAILURES_PER_S)
    app[STREAMS] = set()
    app[OPEN_STREAMS] = Counter()
    app[PAGE] = page or Page.read()
    rules = build_routes(app.router)
    app[ACCESS], app[QUERIES], app[SESSION_REFUSALS] = rules.roles, rules.queries, rules.session_refusals
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(end_streams)
    return app
