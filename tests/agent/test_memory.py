"""What a driver remembers: exactly what was written last, nothing, or a fault; never nothing for something."""

from pathlib import Path

import pytest

from agent.errors import AgentFault
from agent.memory import Memory


def test_memory_gives_what_was_written_last_until_it_is_forgotten(tmp_path: Path) -> None:
    memory = Memory(tmp_path, "mount")
    assert memory.read() == {}
    memory.write(a="1", b="2")
    memory.write(a="3")
    assert Memory(tmp_path, "mount").read() == {"a": "3"}
    memory.forget()
    memory.forget()
    assert memory.read() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "\0"])
def test_memory_that_is_damaged_is_a_fault_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "mount.json").write_text(text)
    with pytest.raises(AgentFault, match=r"mount\.json"):
        Memory(tmp_path, "mount").read()
