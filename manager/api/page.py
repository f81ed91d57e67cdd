"""The web page: the files of manager/ui, read once at the start, under an address that changes with their content."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

from manager.api import meta
from manager.api.edge import CONTENT_SECURITY_POLICY
from manager.errors import Refused
from schemas.problems import ProblemCode

log = logging.getLogger(__name__)

#: Beside the package manager.api, in a checkout and in a wheel alike.
UI_DIR = Path(__file__).parents[1] / "ui"

#: What is served, by its ending; other files (Python's, notes, types for the linter) are none of a browser's business.
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_INDEX = "index.html"
#: In the index, where the address of the files belongs.
_BASE = b"{{base}}"

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types stowage-worker",
    )
)
#: Names that Chromium knows: it writes an error into the console for each other one. The clipboard is in use.
_UNUSED_FEATURES = (
    "accelerometer", "autoplay", "camera", "display-capture", "encrypted-media", "fullscreen", "geolocation", "gyroscope",
    "hid", "magnetometer", "microphone", "midi", "payment", "picture-in-picture", "publickey-credentials-get",
    "screen-wake-lock", "serial", "usb", "xr-spatial-tracking",
)  # fmt: skip
_SECURITY_HEADERS = {
    CONTENT_SECURITY_POLICY: _POLICY,
    "X-Frame-Options": "DENY",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in _UNUSED_FEATURES),
}


@dataclass(frozen=True)
class PageFile:
    content: bytes
    content_type: str


@dataclass(frozen=True)
class Page:
    """digest: of all names and contents, 16 hex digits. index: None where the folder holds no page. files: path -> file."""

    digest: str
    index: bytes | None
    files: Mapping[str, PageFile]

    @classmethod
    def read(cls, folder: Path = UI_DIR) -> "Page":
        """What the folder holds now; a folder that is missing is an empty one."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if _is_served(path)}
        digest = hashlib.sha256()
        for name, content in contents.items():
            digest.update(b"%d %s %d " % (len(name.encode()), name.encode(), len(content)) + content)
        base = digest.hexdigest()[:16]
        index = contents.pop(_INDEX, None)
        if index is None:
            log.warning("the web page is missing", extra={"folder": str(folder)})
        return cls(
            digest=base,
            index=None if index is None else index.replace(_BASE, f"/ui/{base}".encode()),
            files={name: PageFile(content, _TYPES[Path(name).suffix]) for name, content in contents.items()},
        )


PAGE: web.AppKey[Page] = web.AppKey("page", Page)


async def show_start(request: web.Request) -> web.Response:
    """The page for a browser, a few words for everybody else (curl asks for `*/*`)."""
    index = request.app[PAGE].index
    wanted = ",".join(request.headers.getall(hdrs.ACCEPT, [])).lower()
    if index is None or "text/html" not in wanted:
        response = await meta.show_welcome(request)
    else:
        response = _response(index, "text/html; charset=utf-8", cache="no-cache")
        # Over plain HTTP to a host name Chromium takes no notice of it but for an error in the console; there it sends no
        # Sec-Fetch-Mode either (seen with Chromium 156). It speaks of documents: on other files it means nothing.
        if request.secure or "Sec-Fetch-Mode" in request.headers:
            response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers[hdrs.VARY] = hdrs.ACCEPT
    return response


async def show_file(request: web.Request) -> web.Response:
    """A file of the page; of this page alone, for under the address of another it would be kept for good."""
    page = request.app[PAGE]
    file = page.files.get(request.match_info["path"])
    if file is None or request.match_info["hash"] != page.digest:
        raise Refused.because(
            ProblemCode.NOT_FOUND, "the page has no such file; it may be of another version: reload it"
        )
    return _response(file.content, file.content_type, cache="public, max-age=31536000, immutable")


def _is_served(path: Path) -> bool:
    return path.suffix in _TYPES or path.name == _INDEX


def _response(content: bytes, content_type: str, *, cache: str) -> web.Response:
    headers = {hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: cache, **_SECURITY_HEADERS}
    return web.Response(body=content, headers=headers)
