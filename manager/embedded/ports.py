"""TCP ports of this machine: whether one is free, and one that is."""

import errno
import socket


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises OSError if the address is not one of this machine's."""
    with socket.socket(_family(host)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen(1)  # with SO_REUSEADDR two sockets may be bound to a port, but only one may listen
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket(_family(host)) as trial:
        trial.bind((host, 0))
        return int(trial.getsockname()[1])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
