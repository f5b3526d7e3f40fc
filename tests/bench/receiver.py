"""A receiver of traces that costs as little as can be: it takes whatever it is sent, and answers 200. A Langfuse as
well, to those who ask its version."""

import re
import socket
import threading

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HEALTH = b'{"status":"OK","version":"3.100.0"}'


class Receiver:
    """On a free port of this machine, for the `with` block."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.posts = self.bytes = 0

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    @property
    def host(self):
        return f"http://127.0.0.1:{self.port}"

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        room = bytearray(1 << 20)
        try:
            with connection:
                while self._take(connection, room):
                    pass
        except OSError:
            pass

    def _take(self, connection, room):
        """One request. False = there are no more."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(65536)
            if not more:
                return False
            head += more
        head, _, body = head.partition(b"\r\n\r\n")
        found = LENGTH.search(head)
        left = int(found[1]) - len(body) if found else 0
        while left > 0:
            n = connection.recv_into(room, min(left, len(room)))
            if not n:
                return False
            left -= n
        answer = b""
        if head.startswith(b"GET"):
            answer = HEALTH
        else:
            self.posts += 1
            self.bytes += int(found[1]) if found else 0
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                           % (len(answer), answer))
        return True
