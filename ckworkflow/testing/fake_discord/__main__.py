"""`python -m ckworkflow.testing.fake_discord`: the fake as a program.

Prints one line of JSON with `api_base`, `gateway_url`, `control_url` and `token`, and serves until
SIGTERM or Ctrl-C. `FakeDiscord.connect(control_url)` drives it from another process.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading

from .face import FakeDiscord


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m ckworkflow.testing.fake_discord", description=__doc__
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--token", action="append", default=[], help="accept this token (repeatable)")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    first = arguments.token[0] if arguments.token else None
    with FakeDiscord(host=arguments.host, port=arguments.port, token=first) as fake:
        for token in arguments.token[1:]:
            fake.add_token(token)
        addresses = {
            "api_base": fake.api_base,
            "gateway_url": fake.gateway_url,
            "control_url": fake.control_url,
            "token": fake.token,
        }
        sys.stdout.write(json.dumps(addresses) + "\n")
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    main()
