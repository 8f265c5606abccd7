"""A check, before processes are started, that processes of one machine can connect to each other. No torch.

Without a loopback interface they would wait for each other for half an hour and say nothing.
"""

import os
import socket

from divot_lightning.errors import UserError

ANSWER_SECONDS = 5.0

GLOO_VARIABLE = "GLOO_SOCKET_IFNAME"
"""Names the interfaces that gloo uses, separated by commas, instead of what it finds."""


def check_network(address: str) -> None:
    """Connect this machine to itself as its processes will, and look for the interfaces that the user named.

    Args:
        address: Where the first process will wait for the others.

    Raises:
        UserError: There is no such interface, or no connection within `ANSWER_SECONDS`.
    """
    _check_interfaces()
    if address not in ("127.0.0.1", "localhost"):
        return
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(ANSWER_SECONDS)
            with socket.create_connection(server.getsockname(), ANSWER_SECONDS), server.accept()[0]:
                return
    except OSError as error:
        raise UserError(
            f"processes of this machine cannot talk to each other over {address}: {error}\n"
            "bring the loopback interface up (ip link set lo up), or train in one process: --trainer.devices 1"
        ) from error


def _check_interfaces() -> None:
    there = [name for _, name in socket.if_nameindex()]
    for name in filter(None, os.environ.get(GLOO_VARIABLE, "").split(",")):
        if name not in there:
            raise UserError(
                f"{GLOO_VARIABLE} is {name!r}, but this machine has no such network interface\n"
                f"it has: {', '.join(there)}; name one of them, or unset {GLOO_VARIABLE}"
            )
