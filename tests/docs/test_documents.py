"""The README's tour and the API by example, line by line against a real stack; and that the documents name what the code has."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager.api.routes import TABLE
from schemas.events import EventType
from schemas.problems import STATUS, ProblemCode
from tests.docs import faults
from tests.docs.tour import ROOT, Shell, differences, opened_shell, prelude, tour

pytestmark = pytest.mark.slow

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.fixture
def shell() -> Iterator[Shell]:
    with opened_shell() as shell:
        yield shell


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", ["README.md", "docs/api.md"])
def test_document_every_line_says_what_it_shows(document: str, shell: Shell) -> None:
    steps = tour((ROOT / document).read_text())
    assert len(steps) > 20, "the commands were not found"
    for command in prelude(document):
        exit_code, said = shell.run(command)
        assert exit_code == 0, f"$ {command}\nended with {exit_code}:\n{said}"
    for step in steps:
        exit_code, said = shell.run(step.command)
        assert exit_code == 0, f"$ {step.command}\nended with {exit_code}:\n{said}"
        assert differences(step.shown, said) == [], f"$ {step.command}\nsaid:\n{said}"


def test_comparison_of_other_keys_or_words_differs() -> None:
    shown = '{"id": "a", "state": "ready", "hosts": [{"host": "a", "latency_ms": 1}]}'
    assert differences(shown, '{"id": "b", "state": "ready", "hosts": [{"host": "b", "latency_ms": 2.5}]}') == []
    assert differences(shown, '{"id": "a", "state": "stuck", "hosts": [{"host": "a", "latency_ms": 1}]}')
    assert differences(shown, '{"id": "a", "state": "ready", "hosts": [{"host": "a"}]}')
    assert differences(shown, '{"id": "a", "state": "ready", "hosts": []}')
    assert differences(shown, "curl: (7) Failed to connect")
    assert differences("stopped process 12", "stopped process 345") == []
    assert differences("stopped process 12", "nothing runs on /x")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_links_within_the_repository_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_api_document_names_every_route_code_and_event_type() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for endpoint in TABLE:
        assert f"{endpoint.method} {endpoint.path}" in text
    for code in ProblemCode:
        assert re.search(rf"^\| `{code}` \| {STATUS[code]} \|", text, re.MULTILINE), code
    for event_type in EventType:
        assert f"`{event_type}`" in text


def test_faults_page_is_made_from_the_tables_of_the_code() -> None:
    assert faults.PAGE.read_text() == faults.page(), "run python -m tests.docs.faults"
