"""`python -m manager.cli`: the `stowage` command without its script."""

from manager.cli.main import main

main()
