"""A forwarder of TCP on this machine: what stands before the servers of a cluster, as small as it can be.

A connection goes to one of the servers that are named when it comes, and stays with it, as it does in a cluster: which
servers there are changes what comes next, not what is there.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from itertools import count


class Forwarder:
    """Listens on a free port, and forwards each connection to a server.

    Args:
        ports: of the servers on this machine, taken in turn; may be changed at any time.
    """

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no further connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        for turn in count():
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            ports = self.ports
            where = "127.0.0.1", ports[turn % len(ports)]
            threading.Thread(target=_forward, args=(client, where), daemon=True).start()


def _forward(client: socket.socket, where: tuple[str, int]) -> None:
    with client, suppress(OSError), socket.create_connection(where) as server:
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()


def _copy(one: socket.socket, other: socket.socket) -> None:
    """Send on what comes, until it ends."""
    with suppress(OSError):
        while some := one.recv(1 << 16):
            other.sendall(some)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)
