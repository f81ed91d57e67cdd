"""What an application and a request carry through the API, typed."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from aiohttp import web

from manager.actor import Actor, Role
from manager.backends import Backends
from manager.capacity import Capacities
from manager.changes import Changes
from manager.drift import Drift
from manager.evacuations import Evacuations
from manager.events import Events
from manager.hosts import Hosts
from manager.matrix import Matrices
from manager.operations import Operations
from manager.probing import Probing
from manager.sessions import Sessions
from manager.tokens import Tokens
from manager.uploads import Uploads
from manager.volume_reads import VolumeReads
from manager.volumes import Volumes

#: What is not ready yet, in words, by subsystem; empty: ready.
Readiness: TypeAlias = Callable[[], Awaitable[Mapping[str, str]]]

BACKENDS: web.AppKey[Backends] = web.AppKey("backends", Backends)
PROBING: web.AppKey[Probing] = web.AppKey("probing", Probing)
VOLUME_READS: web.AppKey[VolumeReads] = web.AppKey("volume_reads", VolumeReads)
VOLUMES: web.AppKey[Volumes] = web.AppKey("volumes", Volumes)
UPLOADS: web.AppKey[Uploads] = web.AppKey("uploads", Uploads)
EVACUATIONS: web.AppKey[Evacuations] = web.AppKey("evacuations", Evacuations)
DRIFT: web.AppKey[Drift] = web.AppKey("drift", Drift)
HOSTS: web.AppKey[Hosts] = web.AppKey("hosts", Hosts)
CAPACITIES: web.AppKey[Capacities] = web.AppKey("capacities", Capacities)
MATRICES: web.AppKey[Matrices] = web.AppKey("matrices", Matrices)
CHANGES: web.AppKey[Changes] = web.AppKey("changes", Changes)
OPERATIONS: web.AppKey[Operations] = web.AppKey("operations", Operations)
EVENTS: web.AppKey[Events] = web.AppKey("events", Events)
TOKENS: web.AppKey[Tokens] = web.AppKey("tokens", Tokens)
SESSIONS: web.AppKey[Sessions] = web.AppKey("sessions", Sessions)
READINESS: web.AppKey[Readiness] = web.AppKey("readiness")
#: The least role a route wants; None: open to everybody.
ACCESS: web.AppKey[Mapping[web.AbstractRoute, Role | None]] = web.AppKey("access")
#: What who comes with a session is told, of routes that a token alone opens.
SESSION_REFUSALS: web.AppKey[Mapping[web.AbstractRoute, str]] = web.AppKey("session_refusals")
#: The parameters that a route's query may have; None: any.
QUERIES: web.AppKey[Mapping[web.AbstractRoute, tuple[str, ...] | None]] = web.AppKey("queries")

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
ACTOR: web.RequestKey[Actor] = web.RequestKey("actor", Actor)
BODY: web.RequestKey[bytes] = web.RequestKey("body", bytes)
#: The answer as it may be kept, where the real one shows a secret.
KEPT_BODY: web.RequestKey[bytes] = web.RequestKey("kept_body", bytes)
