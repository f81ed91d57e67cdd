"""`python -m tests.docs.rewrite README.md …`: every command of a document is run, and what it says now is what it shows.

For whoever changed an answer on purpose: read the difference before it is committed.
"""

import re
import socket
import sys

from tests.docs.tour import ROOT, differences, opened_shell, prelude, tour


def main() -> None:
    for document in sys.argv[1:]:
        rewrite(document)


def rewrite(document: str) -> None:
    """The document, with the outputs of a run of its own; an output that says the same in other figures stays."""
    path = ROOT / document
    text = path.read_text()
    with opened_shell() as shell:
        for command in prelude(document):
            shell.run(command)
        for step in tour(text):
            exit_code, said = shell.run(step.command)
            if exit_code != 0:
                sys.exit(f"$ {step.command}\nended with {exit_code}:\n{said}")
            if differences(step.shown, said):
                print(f"$ {step.command.splitlines()[0][:100]}")
                first, *rest = step.command.splitlines()
                command = "\n".join([f"$ {first}", *(f"> {line}" for line in rest)])
                before = command + ("\n" + step.shown if step.shown else "")
                assert text.count(before) >= 1, f"not found as it was read: {before}"
                text = text.replace(before, command + ("\n" + _anonymous(said) if said else ""), 1)
    path.write_text(text)


def _anonymous(said: str) -> str:
    """This machine's name is nobody's business; nor is where its checkout lies."""
    name = re.escape(socket.gethostname().partition(".")[0].lower())
    said = re.sub(rf"\b{name}\b(-\d+)?", r"vm\1", said)
    return re.sub(r"\S+/checkout/", "/opt/stowage/", said)


if __name__ == "__main__":
    main()
