"""The `stowage` command.

main         the group, and how an error is shown
up           up and down: everything on this machine
nats_config  what an operator's own NATS servers need
"""
