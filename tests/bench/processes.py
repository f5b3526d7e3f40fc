"""What the benchmarks start and measure: a process with its CPU time and memory, a throw-away Postgres."""

import glob
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time

PATIENCE = 60.0
# Seconds of CPU that a process at rest may use between two looks.
AT_REST = 0.01


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Process:
    """A server on a port of this machine; ended with the `with` block."""

    def __init__(self, name, command, port, log, env=None, farewell=signal.SIGTERM):
        self.name, self.port, self.farewell = name, port, farewell
        self.log = open(log, "ab")
        self.begun = time.perf_counter()
        self.child = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        if self.child.poll() is None:
            # Bare Pingora waits five minutes on SIGTERM, whatever is in flight.
            self.child.send_signal(self.farewell)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()

    def first_answer(self, request):
        """Milliseconds from the start of the process to its first 200."""
        while True:
            if self.child.poll() is not None:
                raise SystemExit(f"{self.name} ended at once, see {self.log.name}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as s:
                    s.sendall(request)
                    if b" 200 " in s.recv(65536)[:16]:
                        return (time.perf_counter() - self.begun) * 1e3
            except OSError:
                pass
            if time.perf_counter() - self.begun > PATIENCE:
                raise SystemExit(f"{self.name} does not answer, see {self.log.name}")
            time.sleep(0.001)

    def listens(self):
        """Waits until its port takes connections."""
        while True:
            if self.child.poll() is not None:
                raise SystemExit(f"{self.name} ended at once, see {self.log.name}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                if time.perf_counter() - self.begun > PATIENCE:
                    raise SystemExit(f"{self.name} does not listen, see {self.log.name}")
                time.sleep(0.001)

    def cpu(self):
        """Seconds of CPU that all its threads have used, kernel included."""
        # `clock_getcpuclockid`, which Python does not have: to the nanosecond, where /proc counts hundredths.
        return time.clock_gettime((~self.child.pid << 3) | 2)

    def cpu_when_quiet(self):
        """As `cpu`, once what it does behind the answers (the ledger) is done too."""
        deadline = time.perf_counter() + PATIENCE
        before = self.cpu()
        while time.perf_counter() < deadline:
            # Longer than the ledger's longest pause between two batches.
            time.sleep(1.5)
            now = self.cpu()
            if now - before <= AT_REST:
                return now
            before = now
        return before

    def rss(self):
        """Bytes of memory that are resident."""
        status = pathlib.Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


class Postgres:
    """A cluster of our own on a free port, with the settings a server is installed with."""

    def __init__(self, directory):
        found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
        if not found:
            raise SystemExit("no Postgres server: apt-get install postgresql")
        newest = max(found, key=lambda p: int(p.split("/")[4]))
        self.bin = pathlib.Path(newest).parent
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(mode=0o700)
        self.user = []
        if os.geteuid() == 0:
            # Postgres refuses to run as root.
            who = pwd.getpwnam("postgres")
            shutil.chown(self.dir, who.pw_uid, who.pw_gid)
            self.user = ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups", "--"]
        self.port = free_port()
        self.child = None

    def __enter__(self):
        data = self.dir / "data"
        self._run("initdb", "--auth=trust", "--username=tollkeeper", "--no-sync", "--encoding=UTF8",
                  "--locale=C", "-D", data)
        self.up()
        return self

    def up(self):
        """Starts it, also again, on the same port; returns when it takes connections."""
        data = self.dir / "data"
        log = open(self.dir / "log", "wb")
        self.child = subprocess.Popen(
            [*self.user, self.bin / "postgres", "-D", data, "-k", self.dir, "-p", str(self.port),
             "-c", "listen_addresses=127.0.0.1"],
            cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        deadline = time.perf_counter() + PATIENCE
        while subprocess.run([self.bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            if self.child.poll() is not None or time.perf_counter() > deadline:
                raise SystemExit(f"Postgres does not start: {(self.dir / 'log').read_text()}")
            time.sleep(0.05)

    def __exit__(self, *_):
        if self.child and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            self.child.wait(30)

    def _run(self, program, *args):
        done = subprocess.run([*self.user, self.bin / program, *args], cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{program}: {done.stderr}")
        return done.stdout.strip()

    def sql(self, database, text):
        return self._run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1",
                         "-p", str(self.port), "-U", "tollkeeper", "-d", database, "-c", text)

    def database(self, name):
        """A new, empty database; its address."""
        self.sql("postgres", f"CREATE DATABASE {name}")
        return f"postgres://tollkeeper@127.0.0.1:{self.port}/{name}"
