"""Where the server listens: taken before the model is loaded."""

from __future__ import annotations

import ipaddress
import socket

from hebrew_asr.errors import EnvironmentProblem


def address(host: str, port: int) -> str:
    """The URL of a server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A socket that already takes connections, so that no other server can take its port while the model loads.

    Raises:
        EnvironmentProblem: the port is taken, or the machine has no such address.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise EnvironmentProblem(
            f"cannot listen at {address(host, port)}: {error.strerror}; choose another --port or --host"
        ) from error
    return listening
