"""Where the API listens, and the address by which others reach it."""

import errno
import socket

from manager.config import Config
from manager.errors import ConfigError

_EVERY_ADDRESS = ("", "0.0.0.0", "::")


def bound(config: Config) -> list[socket.socket]:
    """Sockets bound to `listen`, at least one, that do not listen yet: the port is known and ours, and nobody is served.

    Raises ConfigError naming the address.
    """
    host, port = config.listen_address
    made: list[socket.socket] = []
    away = "this machine has no address of that name"
    try:
        for family, kind, protocol, _, where in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                fresh = socket.socket(family, kind, protocol)
            except OSError:  # a name may have an IPv6 address on a machine without IPv6
                continue
            made.append(fresh)
            fresh.setblocking(False)
            fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                fresh.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # A name with several addresses has one port on all of them, also where any will do.
            try:
                fresh.bind((where[0], port or made[0].getsockname()[1], *where[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                # A name may have an IPv6 address where IPv6 is switched off: the others will do.
                made.pop().close()
                away = str(error.strerror)
    except OSError as error:
        for each in made:
            each.close()
        raise ConfigError(f"listen: cannot listen on {config.listen}: {error.strerror}") from error
    if not made:
        raise ConfigError(f"listen: cannot listen on {config.listen}: {away}")
    return made


def own_url(config: Config, port: int) -> str:
    """The API at the address of `listen`; port: the one that is bound."""
    return _url(config, config.listen_address[0], port)


def public_url(config: Config, port: int) -> str:
    """The API as hosts and people reach it: as configured, else what is bound, with the machine's name for every address."""
    host = config.listen_address[0]
    return config.public_url.rstrip("/") or _url(config, socket.gethostname() if host in _EVERY_ADDRESS else host, port)


def _url(config: Config, host: str, port: int) -> str:
    return f"{'https' if config.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
