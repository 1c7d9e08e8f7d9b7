"""Runs the web application until a signal stops it."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from tf_mlm.errors import Refused

_STOP_SECONDS = 60  # for the requests in progress when the server stops
_KEEP_ALIVE_SECONDS = 15
_MAX_CONNECTIONS = 512  # each may hold a body of 1 MiB


def bind(host: str, port: int) -> socket.socket:
    """A socket on which the server will listen. Bound before the model is loaded, to refuse a used port at once.

    Raises:
        Refused: the port is in use, or the host is not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise Refused(f"--host {host}: {error.strerror}; pass an address of this machine") from None
    # asyncio sets TCP_NODELAY only if the protocol is named; without it, each answer takes 40 ms longer.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise Refused(f"--host {host} --port {port}: {error.strerror}; pass another --port or --host") from None
    return bound


def serve(app: Starlette, bound: socket.socket, on_stop: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM. Requests under way are finished; a second signal drops them.

    Args:
        on_stop: called in the handler of the signal.
    """

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Without uvicorn's list of signals, which it raises again after a clean stop.
            self.force_exit = self.should_exit
            self.should_exit = True
            on_stop()

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        http="h11",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_STOP_SECONDS,
        limit_concurrency=_MAX_CONNECTIONS,
    )
    Server(config).run(sockets=[bound])
