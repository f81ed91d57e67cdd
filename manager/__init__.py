"""The manager: the HTTP API, the sagas, the truth. A request's way, file by file:

api/ decodes -> backends.py (the use case) starts a saga -> sagas/engine.py journals and runs each step
-> sagas/add_backend.py and its like -> agents.py (commands over the bus) or store/ (SQL)
-> outbox.py publishes what was committed (event_stream.py) -> registry.py is what the next GET reads.
"""
