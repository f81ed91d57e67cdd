"""The HTTP API: a handler decodes, calls one use case, encodes. From the socket inwards:

server       what aiohttp answers before and outside any application, made ours
application  create_api: middlewares, services, routes, in one place
edge         request id, problem documents, headers, one log line a request
auth         bearer tokens, session cookies, roles, the limit on wrong tokens
origins      whether a browser's request comes from our own page
idempotency  a repeated POST gets the first one's answer
routes       the table: method, path, role, handler
backends volumes snapshots images drift hosts capacity operations events tokens sessions matrix meta   the handlers
page         the web page's files, their address, their headers
outcomes     what a change would have answered, by what became of its operation
decoding     bodies, queries, conditional headers, cursors
conditions   If-Match against a version
encoding     answers: JSON, pages, ETags, 202, problems
keys         what an application and a request carry
"""
