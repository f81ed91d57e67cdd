"""The hash chain shows every alteration, removal and reordering."""

import msgspec
import pytest

from schemas.events import GENESIS, CloudEvent, EventType, chain_hash, verify_chain


def _chain(length: int) -> list[CloudEvent]:
    events: list[CloudEvent] = []
    for number in range(1, length + 1):
        event = CloudEvent(
            id=f"e{number}",
            source="/stowage/f",
            type=EventType.BACKEND_CREATED,
            subject="storage_backends/b",
            time="2026-11-23T12:00:00.000000Z",
            actor="token:admin",
            requestid="r",
            sequence=str(number),
            prevhash=events[-1].hash if events else GENESIS,
            hash="",
            data={"name": "tank", "after": {"b": 1, "a": [1, None]}},
        )
        events.append(msgspec.structs.replace(event, hash=chain_hash(event)))
    return events


def test_whole_chain_verifies_and_any_part_of_it() -> None:
    chain = _chain(5)
    assert verify_chain(chain) is None
    assert verify_chain(chain[2:]) is None
    assert verify_chain([]) is None


@pytest.mark.parametrize("field", ["actor", "time", "subject", "requestid", "sequence", "prevhash", "hash"])
def test_altered_field_is_found(field: str) -> None:
    chain = _chain(3)
    chain[1] = msgspec.structs.replace(chain[1], **{field: "x" if field != "sequence" else "7"})
    assert verify_chain(chain) == "e2"


def test_removed_and_swapped_events_are_found() -> None:
    chain = _chain(4)
    assert verify_chain([chain[0], chain[2], chain[3]]) == "e3"
    assert verify_chain([chain[0], chain[2], chain[1], chain[3]]) == "e3"


def test_hash_does_not_depend_on_the_order_of_keys() -> None:
    one = _chain(1)[0]
    other = msgspec.structs.replace(one, data={"after": {"a": [1, None], "b": 1}, "name": "tank"})
    assert chain_hash(one) == chain_hash(other)
