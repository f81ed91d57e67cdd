"""Words that cross a process boundary; no I/O (but bus.py and its parts), and nothing of ours is imported.

ids          identifiers and what a host may be called
faults       what can be wrong on a host, and the remedy for each
credentials  the masked secret type; sealing.py: one host's envelope for it
kinds        one struct a storage kind, from which everything else follows; validation.py: what is made of it
requests     bodies that clients send, read field by field (fields.py)
backends     what the API shows of a backend and of its hosts
hosts        hosts, selectors, enrolment
agent_rpc    manager <-> agent messages
subjects     every NATS subject
bus          the one hardened NATS client that manager and agent share (bus_client.py: one connection; nkey.py: its keys)
logs         the shape of a log line
events       CloudEvents and their hash chain
problems     the problem+json shapes
operations   what the API shows of a saga
"""
