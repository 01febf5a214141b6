"""Health of a bot's container: whether it holds a connection to Discord's gateway.

A bot listens on no port that could be asked. But in a container the kernel's table of sockets lists those of
that container alone, so an established connection to the gateway's port is the bot's. When the bot hangs,
Discord misses its heartbeats and closes the connection.

A request to Discord's REST API that is under way has the same port and counts too: a bot that only ever
makes requests and never reaches the gateway looks healthy while it makes them.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

ESTABLISHED = "01"


def gateway_port() -> int:
    """Return the port of the gateway that this container's bot talks to."""
    parts = urlsplit(os.environ.get("CKWORKFLOW_DISCORD_GATEWAY_URL") or "wss://gateway.discord.gg")
    return parts.port or (80 if parts.scheme == "ws" else 443)


def has_connection(port: int) -> bool:
    """Tell whether a connection to this port of any other host is established."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, _, remote, state, *_ = line.split()
            if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
                return True
    return False


if not has_connection(gateway_port()):
    sys.exit(f"no connection to the gateway (port {gateway_port()})")
