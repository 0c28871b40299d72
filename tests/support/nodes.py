"""Machines with a network between them: network namespaces of this one, joined by a virtual cable. Needs root."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000


class NoNamespaces(Exception):
    """This machine does not let us make any."""


@dataclass(frozen=True)
class Node:
    """A network namespace."""

    name: str
    address: str
    interface: str

    def enter(self) -> None:
        """Put this process and what it starts into the node, for good."""
        handle = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {self.name}")
        os.close(handle)
        os.environ["GLOO_SOCKET_IFNAME"] = self.interface

    def command(self, line: list[str]) -> list[str]:
        """``line``, to run on the node."""
        return ["ip", "netns", "exec", self.name, "env", f"GLOO_SOCKET_IFNAME={self.interface}", *line]


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other and nothing else.

    Raises:
        NoNamespaces: for want of rights or of the program ``ip``.
    """
    mark = f"asr{os.getpid() % 1_000_000}"
    nodes = tuple(Node(f"{mark}{end}", f"10.213.7.{end}", f"{mark}v{end}") for end in (1, 2))
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
        _ip("link", "add", nodes[0].interface, "type", "veth", "peer", "name", nodes[1].interface)
        for node in nodes:
            _ip("link", "set", node.interface, "netns", node.name)
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
            _ip("-n", node.name, "link", "set", node.interface, "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            subprocess.run(["ip", "netns", "del", node.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoNamespaces(f"ip {' '.join(words)}: {error}") from error
