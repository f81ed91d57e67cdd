"""What the pages of a test complained of: to the console, by an uncaught error, a failed request or a violation of the CSP."""

import re
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, ConsoleMessage, Request, WebError

#: Chromium tells of most violations itself, but not of all, nor of where.
_LISTEN = """addEventListener("securitypolicyviolation", (event) => console.error(
    `CSP: ${event.effectiveDirective} forbids ${event.blockedURI} at ${event.sourceFile}:${event.lineNumber} ${event.sample}`))"""
#: Chromium's own line about an answer of 400 and more. That the API refuses what a person did is what many tests are about;
#: that a file of the page is missing, that the page asks in a way that there is not (405), or that the manager broke, is not.
_REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (400|401|403|404|409|412|422) ")
#: One thing, of which 404 says that it is gone, or never was. Of any other address it says that the page asks for what there is not.
_ONE_THING = re.compile(r"/v1/(storage_backends|volumes|images|hosts|operations)/[^/]+")
#: A page that is left, or that thinks better of it, drops its request.
_DROPPED = "net::ERR_ABORTED"


class Heard:
    """complaints: everything that was not allowed, of all contexts that are watched."""

    def __init__(self) -> None:
        self._complaints: list[str] = []
        self._allowed: list[str] = []

    def allow(self, part: str) -> None:
        """A complaint with this in it, before or after, is what the test wants to see."""
        self._allowed.append(part)

    @property
    def complaints(self) -> list[str]:
        return [words for words in self._complaints if not any(part in words for part in self._allowed)]

    async def watch(self, context: BrowserContext) -> None:
        """All pages of the context are listened to."""
        await context.add_init_script(_LISTEN)
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        context.on("requestfailed", self._on_failed)

    def on_worker(self, kind: str, text: str, url: str) -> None:
        """For SharedWorkers.listener."""
        self._hear(f"shared worker's {kind}", text, url)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._hear(f"console {message.type}", message.text, message.location["url"])

    def _hear(self, kind: str, text: str, url: str) -> None:
        if not _is_refusal(text, urlsplit(url).path):
            self._complaints.append(f"{kind}: {text} at {url}")

    def _on_error(self, error: WebError) -> None:
        self._complaints.append(f"uncaught: {error.error.stack or error.error.message}")

    def _on_failed(self, request: Request) -> None:
        if request.failure != _DROPPED:
            self._complaints.append(f"request: {request.method} {request.url}: {request.failure}")


def _is_refusal(text: str, path: str) -> bool:
    """Whether the API said no to what somebody did, or that a thing is not there."""
    found = _REFUSED.match(text)
    if found is None:
        return False
    return bool(_ONE_THING.fullmatch(path)) if found[1] == "404" else path.startswith("/v1/")
