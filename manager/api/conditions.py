"""If-Match against the version of what a request is about."""

from aiohttp import web

from manager.api import decoding
from manager.errors import Refused
from schemas.problems import ProblemCode


def expected_version(request: web.Request, name: str, current: int) -> int | None:
    """The version that the change is meant for; None: any. Raises Refused stale_version for a tag that no version bears."""
    version = decoding.if_match(request, current)
    if version == decoding.NO_VERSION:
        raise Refused.because(
            ProblemCode.STALE_VERSION,
            f"{name} is at version {current}, and the If-Match is the ETag of none; read it again",
        )
    return version
