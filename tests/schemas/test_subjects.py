"""Who speaks is read from the subject, and an agent can name no reply subject but its own inbox."""

import pytest

from schemas import subjects
from schemas.ids import HostId
from schemas.subjects import Uplink

_A = HostId("01a20a7c-5b8b-7040-9cb3-f3c33d30d1ea")
_B = HostId("01a20a7c-66dc-7335-a4ec-7f3c2dba390e")


@pytest.mark.parametrize("kind", list(Uplink))
def test_uplink_subject_names_speaker_and_kind(kind: Uplink) -> None:
    assert subjects.parse_uplink(subjects.uplink(_A, kind)) == (_A, kind)


@pytest.mark.parametrize(
    "subject",
    [
        "stowage.up.*.beat",
        "stowage.up.x.beat",
        f"stowage.up.{_A}.wipe",
        f"stowage.up.{_A}.beat.x",
        f"stowage.cmd.{_A}.beat",
        "",
    ],
)
def test_other_subjects_name_nobody(subject: str) -> None:
    assert subjects.parse_uplink(subject) is None


@pytest.mark.parametrize(
    "reply",
    [
        "",
        f"stowage.cmd.{_B}.release",
        f"_INBOX_a.{_B}.x",
        f"_INBOX_a.{_A}",
        f"_INBOX_a.{_A}.*",
        f"_INBOX_a.{_A}.>",
        f"_INBOX_a.{_A}.x y",
        "stowage.event.backend.created.x",
    ],
)
def test_reply_subject_outside_of_the_own_inbox_is_refused(reply: str) -> None:
    assert not subjects.is_own_inbox(reply, _A)


def test_reply_subject_in_the_own_inbox_is_answered() -> None:
    assert subjects.is_own_inbox(f"{subjects.agent_inbox(_A)}.abc.1", _A)
