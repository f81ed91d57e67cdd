"""The HTTP API: a handler decodes, calls one use case, encodes. From the socket inwards:

server       what aiohttp answers before and outside any application, made ours
application  create_api: middlewares, services, routes, in one place
edge         request id, problem documents, headers, one log line a request
auth         bearer tokens, roles, the limit on wrong tokens
idempotency  a repeated POST gets the first one's answer
routes       the table: method, path, role, handler
backends volumes snapshots images drift hosts operations events tokens meta   the handlers
outcomes     what a change would have answered, by what became of its operation
decoding     bodies, queries, conditional headers, cursors
conditions   If-Match against a version
encoding     answers: JSON, pages, ETags, 202, problems
keys         what an application and a request carry
"""
