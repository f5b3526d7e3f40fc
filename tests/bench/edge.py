"""What the edge costs: CPU per call with limits on and off, and full TLS handshakes beside bare Pingora's."""

import contextlib
import re
import subprocess
import time

import load

# Clients that make one handshake after the other. The client costs as much as the server: more do not help.
SHAKERS = 4
# No lock is spared by a limit that nobody reaches; what differs from the defaults is read from the snapshot alike.
LIMITS = """  rate_limit: {average: 1000000, period: 1s, burst: 1000000}
  limits: {connections: 5000, connections_per_address: 500}
  timeouts: {header: 10s, body: 30s, body_idle: 10s, keepalive: 60s, write: 30s}
"""


def certificate(directory):
    """A certificate for this machine and its key, ECDSA P-256."""
    cert, key = directory / "edge.pem", directory / "edge.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )
    return cert, key


def handshakes(process, seconds):
    """Full handshakes as fast as they are done, each on a connection of its own."""
    before, begun = process.cpu_when_quiet(), time.perf_counter()
    clients = [
        subprocess.Popen(
            ["openssl", "s_time", "-new", "-connect", f"127.0.0.1:{process.port}", "-time", str(seconds)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        for _ in range(SHAKERS)
    ]
    printed = [client.communicate()[0] for client in clients]
    took = time.perf_counter() - begun
    counts = [re.search(r"(\d+) connections in \d+ real seconds", text) for text in printed]
    if not all(counts) or any(client.returncode for client in clients):
        raise SystemExit(f"{process.name}: handshakes failed: {printed[0][-500:]}")
    count = sum(int(found[1]) for found in counts)
    return {"handshakes": count, "rate": count / took, "cpu_us": (process.cpu_when_quiet() - before) / count * 1e6}


def calls(stand, process, seconds, connections):
    """Calls as fast as they are answered."""
    before = process.cpu_when_quiet()
    figures = load.wrk(process.port, load.body(), seconds, connections, stand.dir / "wrk.json")
    return {"calls": figures["calls"], "rate": figures["calls"] / figures["seconds"],
            "cpu_us": (process.cpu_when_quiet() - before) / figures["calls"] * 1e6}


def measure(stand, plan, connections, say, before=None):
    """In turn, round by round: ratios and differences are of one round, where the machine was the same."""
    cert, key = certificate(stand.dir)
    files = f'  tls:\n    certificates: [{{cert: "{cert}", key: "{key}"}}]\n'
    rounds = []
    with contextlib.ExitStack() as running:
        def start(process):
            return running.enter_context(process)

        callers = {"plain": start(stand.gateway("plain")), "limited": start(stand.gateway("limited", more=LIMITS))}
        if before:
            callers["before"] = start(stand.gateway("before", binary=before.resolve()))
        shakers = {
            "bare tls": start(stand.bare(cert, key)),
            "tls": start(stand.gateway(
                "tls", more='  listeners: [{address: "127.0.0.1:4000", tls: true}]\n' + files)),
        }
        for process in callers.values():
            process.first_answer(load.request(load.body()))
            load.wrk(process.port, load.body(), 1, connections, stand.dir / "wrk.json")
        for process in shakers.values():
            process.listens()
            handshakes(process, 1)
        for at in range(plan.rounds):
            figures = {name: calls(stand, process, plan.seconds, connections) for name, process in callers.items()}
            figures |= {name: handshakes(process, plan.seconds) for name, process in shakers.items()}
            rounds.append(figures)
            say(f"edge, round {at + 1}: " + ", ".join(
                f"{name} {one['rate']:.0f}/s {one['cpu_us']:.1f} us" for name, one in figures.items()))
    return {"rounds": rounds}
