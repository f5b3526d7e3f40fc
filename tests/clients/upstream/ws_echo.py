#!/usr/bin/env python3
"""A WebSocket echo on a free loopback port: text and binary come back as they went in.

The first message to a caller is the path it asked for, so that a test sees what
a gateway made of it.
"""

import threading

from websockets.sync.server import ServerConnection, serve

from lifetime import announce, wait_for_end


def echo(connection: ServerConnection) -> None:
    connection.send(connection.request.path)
    for message in connection:
        connection.send(message)


if __name__ == "__main__":
    with serve(echo, "127.0.0.1", 0, max_size=4 * 1024 * 1024) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        announce({"port": server.socket.getsockname()[1]})
        wait_for_end()
