"""The `stowage` command.

main         the group, and how an error is shown
up           up and down: everything on this machine
nats_config  what an operator's own NATS servers need
api          one request to the API
client       where the manager is, the token, one request by the standard library
outcomes     exit codes, and a problem in lines for people
"""
