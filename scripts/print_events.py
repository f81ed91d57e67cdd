#!/usr/bin/env python3
"""Prints Stowage's events, one CloudEvent (JSON) a line, each at least once, from where the last run stopped.

    .venv/bin/python scripts/print_events.py --nats nats://127.0.0.1:4222 --creds DATA/manager/bus/auditor.creds

An example to begin your own consumer with: plain nats-py, a durable pull consumer, acknowledged after printing.
An event that is printed but not acknowledged (a kill, a lost connection) comes again: drop repeats by `id`. The stream
keeps a day; after a longer absence `sequence` shows a hole, and GET /v1/events has what is missing.
To verify the chain: `hash` is the SHA-256 of the event without `hash`, as JSON with sorted keys and no blanks; each
`prevhash` is the `hash` before, and `sequence` grows by 1. `verify_chain` in schemas/events.py does it (docs/api.md).
"""

import argparse
import asyncio
import sys
from pathlib import Path

import nats
from nats.errors import Error

from schemas.bus_client import Identity


async def main(arguments: argparse.Namespace) -> None:
    identity = Identity.read(arguments.creds)
    client = await nats.connect(
        arguments.nats,
        # Elsewhere these two are `user_credentials=FILE`, which takes the package nats-py[nkeys].
        user_jwt_cb=identity.jwt,
        signature_cb=identity.sign,
        inbox_prefix=b"_INBOX_e",  # the only inbox that the auditor's identity may listen on
        max_reconnect_attempts=-1,
        error_cb=report,
    )
    events = await client.jetstream().pull_subscribe("stowage.event.>", arguments.durable, stream="STOWAGE_EVENTS")
    while True:
        try:
            for message in await events.fetch(batch=100, timeout=5):
                print(message.data.decode(), flush=True)
                await message.ack()
        except (Error, TimeoutError):
            if client.is_closed:  # the identity was refused; anything else nats-py survives by connecting again
                raise
            await asyncio.sleep(1)


async def report(error: Exception) -> None:
    print(f"print_events: {error!r}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print Stowage's events from the stream STOWAGE_EVENTS.")
    parser.add_argument("--nats", required=True, metavar="URL", help="nats_url of DATA/ready.json")
    parser.add_argument(
        "--creds", required=True, type=Path, metavar="FILE", help="auditor.creds in a manager's bus folder"
    )
    parser.add_argument("--durable", default="print-events", metavar="NAME", help="one a reader (default %(default)s)")
    asyncio.run(main(parser.parse_args()))
