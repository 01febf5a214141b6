"""Flower's settings in its container. Flower runs this file; its names become options.

Whoever reaches a Flower without a password sees every task and, unless it is read-only, runs any task and
stops workers. So without one it does not start.
"""

import os

for _pair in os.environ.get("FLOWER_BASIC_AUTH", "").split(","):
    _user, _, _password = _pair.partition(":")
    if not _user or not _password:
        raise SystemExit(
            "Flower is not started: FLOWER_BASIC_AUTH is missing or has no password, and anybody could look in. "
            "Set it to user:password (several: user:password,user:password)."
        )

# Every interface of the container. What of it can be reached from outside is the compose file's to say.
address = "0.0.0.0"  # noqa: S104
port = 5555
read_only = True
# The name of a container changes each time it is made anew: forget workers that are gone.
purge_offline_workers = 600
