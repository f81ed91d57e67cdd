"""What shared workers complain of: they belong to no page, so Playwright does not tell of them, but Chromium's own protocol does."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from playwright.async_api import Browser
from playwright.async_api import Error as PlaywrightError

_LISTEN = ("Runtime.enable", "Log.enable")


class SharedWorkers:
    """listener: called with (kind, text, url) of every complaint, or nobody listens."""

    def __init__(self, session: Any) -> None:
        # A CDPSession, whose `send` has no whole types.
        self.listener: Callable[[str, str, str], None] | None = None
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def of(cls, browser: Browser) -> "SharedWorkers":
        """Every shared worker of the browser is listened to, from its first line on or from soon after that."""
        made = cls(await browser.new_browser_cdp_session())
        made._session.on("Target.targetCreated", made._on_target)
        made._session.on("Target.receivedMessageFromTarget", made._on_message)
        await made._session.send("Target.setDiscoverTargets", {"discover": True})
        return made

    def _on_target(self, told: dict[str, Any]) -> None:
        if told["targetInfo"]["type"] == "shared_worker":
            task = asyncio.create_task(self._attach(told["targetInfo"]["targetId"]), name="attach to a shared worker")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attach(self, target_id: str) -> None:
        try:
            attached = await self._session.send("Target.attachToTarget", {"targetId": target_id, "flatten": False})
            for number, method in enumerate(_LISTEN):
                message = json.dumps({"id": number, "method": method})
                ask = {"sessionId": attached["sessionId"], "message": message}
                await self._session.send("Target.sendMessageToTarget", ask)
        except PlaywrightError:
            return  # it has ended with its last tab meanwhile

    def _on_message(self, told: dict[str, Any]) -> None:
        message = json.loads(told["message"])
        words = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if words["type"] in ("error", "warning"):
                text = " ".join(str(arg.get("value", arg.get("description", ""))) for arg in words["args"])
                frames = words.get("stackTrace", {}).get("callFrames", [])
                self._tell(f"console {words['type']}", text, frames[0]["url"] if frames else "")
            case "Runtime.exceptionThrown":
                details = words["exceptionDetails"]
                self._tell(
                    "uncaught", details.get("exception", {}).get("description", details["text"]), details.get("url", "")
                )
            case "Log.entryAdded" if words["entry"]["level"] in ("error", "warning"):
                self._tell(f"console {words['entry']['level']}", words["entry"]["text"], words["entry"].get("url", ""))
            case _:
                pass

    def _tell(self, kind: str, text: str, url: str) -> None:
        if self.listener:
            self.listener(kind, text, url)
