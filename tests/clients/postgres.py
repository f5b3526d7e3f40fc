"""A throw-away Postgres on a free port, gone when the block ends."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stack import READY_SECONDS, StackError, dies_with_us, free_port


def binaries() -> Path:
    """Debian's own, the newest; a `postgres` on the PATH may be a wrapper."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
    )
    if not found:
        raise StackError("no Postgres under /usr/lib/postgresql: run scripts/setup.sh test")
    return found[-1]


def _as_somebody(command: list[object]) -> list[object]:
    """Postgres refuses to run as root."""
    if os.getuid() != 0:
        return command
    # A change of user clears the wish to die with the parent, so it is made again.
    become = ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=INT"]
    return ["setpriv", *become, *command]


@contextlib.contextmanager
def throw_away() -> Iterator[str]:
    """The DATABASE_URL of a new, empty cluster."""
    bin_dir = binaries()
    home = Path(tempfile.mkdtemp(prefix="tollkeeper-postgres-"))
    server = None
    try:
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(home, owner.pw_uid, owner.pw_gid)
        data, port = home / "data", free_port()
        initdb = [bin_dir / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"]
        made = subprocess.run(
            _as_somebody([*initdb, "--locale=C", "-E", "UTF8"]),
            cwd=home,
            capture_output=True,
            text=True,
        )
        if made.returncode != 0:
            raise StackError(f"initdb failed:\n{made.stderr}")
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": home,
            # Nothing here outlives the run, so nothing has to reach the disk.
            "fsync": "off",
            "max_connections": 50,
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        server = subprocess.Popen(
            _as_somebody([bin_dir / "postgres", "-D", data, *arguments]),
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=(home / "log").open("w"),
            preexec_fn=dies_with_us,
        )
        ask = [bin_dir / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + READY_SECONDS
        while subprocess.run(ask).returncode != 0:
            if server.poll() is not None or time.monotonic() > deadline:
                raise StackError(f"Postgres did not start:\n{(home / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            # Postgres's fast shutdown: it does not wait for idle connections.
            server.send_signal(signal.SIGINT)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(home, ignore_errors=True)
