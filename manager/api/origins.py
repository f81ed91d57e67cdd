"""Where a browser's request comes from: a page of another site must not act with a user's session."""

import re

from aiohttp import hdrs, web

from manager.api.keys import SESSIONS
from manager.errors import Refused
from schemas.problems import ProblemCode

_ORIGIN = re.compile(r"(https?)://([^/?#@\s]+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def refuse_other_origins(request: web.Request, *, is_origin_needed: bool) -> None:
    """The request comes from a page of ours, or (unless its Origin is needed) from no page at all.

    Origin is compared, for browsers send no Sec-Fetch-Site over plain HTTP to a host name (seen with Chromium 156);
    where they do it must agree. Raises Refused: forbidden.
    """
    origins = request.headers.getall(hdrs.ORIGIN, [])
    if not origins and is_origin_needed:
        raise _refused("a request with a session's cookie must bear an Origin; programs send a token instead")
    if origins and not (len(origins) == 1 and _is_ours(request, origins[0])):
        raise _refused("the request comes from a page of another address (its Origin is not this one)")
    if any(site not in ("same-origin", "none") for site in request.headers.getall("Sec-Fetch-Site", [])):
        raise _refused("the request comes from a page of another address (Sec-Fetch-Site)")


def is_https(request: web.Request) -> bool:
    """Whether the browser speaks HTTPS, with us or with a proxy before us: its Origin says, for a fleet with a public_url may be come to
    by plain HTTP all the same. Without one TLS here does, and where neither says anything, public_url.
    """
    origin = request.headers.get(hdrs.ORIGIN, "").lower()
    if origin:
        return origin.startswith("https://")
    return request.secure or _public_origin(request).startswith("https://")


def _is_ours(request: web.Request, origin: str) -> bool:
    match = _ORIGIN.fullmatch(origin)
    if match is None:  # `null` too: a page in a sandbox, a file, or a redirect through another site
        return False
    scheme, place = match[1].lower(), _place(match[2], match[1].lower())
    public = _ORIGIN.fullmatch(_public_origin(request))
    if public is not None and (scheme, place) == (public[1], _place(public[2], public[1])):
        return True
    # The scheme is known where TLS ends here; before a proxy both are possible.
    hosts = request.headers.getall(hdrs.HOST, [])
    return len(hosts) == 1 and place == _place(hosts[0], scheme) and (scheme == "https" or not request.secure)


def _place(host: str, scheme: str) -> str:
    """host[:port] with the scheme's own port left out, as browsers write it."""
    return host.strip().lower().removesuffix(_DEFAULT_PORTS[scheme])


def _public_origin(request: web.Request) -> str:
    return request.app[SESSIONS].public_origin


def _refused(detail: str) -> Refused:
    return Refused.because(ProblemCode.FORBIDDEN, detail)
