"""The tools that others judge servers with, and what of their findings counts."""

import csv
import json
import os
import re
import subprocess
import time
from pathlib import Path

import stack
from report import Check
from stand import ROOT, Gateway, Stand

SSLYZE_PYTHON = ROOT / ".venv-edge" / "bin" / "python"
# testssl finds these of any server whose certificate is from an authority of its own, or that is called by an
# address of this machine.
NOT_OURS = re.compile(r"^(cert_|scanTime|DNS_CAArecord|engine_problem)")


def run(command: list[object], seconds: float, **more: object) -> str:
    """What it prints; its exit code is for those who know what it means."""
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=seconds, preexec_fn=stack.dies_with_us, **more,
    )
    return done.stdout


def testssl(stand: Stand, gateway: Gateway) -> list[Check]:
    """Protocols, ciphers, forward secrecy, headers. 3.0 gives no grade: nothing may be worse than OK."""
    found = stand.scratch / "testssl.json"
    printed = run(
        ["testssl", "--quiet", "--color", "0", "--warnings", "off", "--ip", "127.0.0.1", "-p", "-s", "-f", "-h",
         "--jsonfile", found, f"localhost:{gateway.secure_port}"],
        seconds=300,
    )
    if not found.exists():
        return [Check("testssl", printed[-300:], "it runs", False)]
    findings = [one for one in json.loads(found.read_text()) if not NOT_OURS.match(one["id"])]
    protocols = {one["id"]: one["finding"] for one in findings}
    offered = [name for name in ("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3")
               if protocols.get(name, "").startswith("offered")]
    worse = [f"{one['id']}: {one['finding']}" for one in findings if one["severity"] not in ("OK", "INFO")]
    return [
        Check("testssl: protocols", ", ".join(offered), "TLS 1.2 and 1.3 alone", offered == ["TLS1_2", "TLS1_3"]),
        Check("testssl: what is not OK of protocols, ciphers, forward secrecy, headers",
              "; ".join(worse) or f"none of {len(findings)}", "none", not worse and len(findings) > 10),
    ]


def sslyze(gateway: Gateway) -> list[Check]:
    """Mozilla's intermediate profile. A private authority is the one remark it may have."""
    printed = run(
        [SSLYZE_PYTHON, "-m", "sslyze", "--mozilla_config=intermediate", f"localhost:{gateway.secure_port}"],
        seconds=300,
    )
    verdict = printed.partition("Checking results against Mozilla's")[2]
    remarks = [line.strip(" *") for line in verdict.splitlines() if line.strip().startswith("*")]
    ours = [remark for remark in remarks if not remark.startswith("certificate_path_validation")]
    judged = bool(verdict) and ("OK - Compliant" in verdict or "FAILED - Not compliant" in verdict)
    return [Check("sslyze: remarks against Mozilla's intermediate, beside the private authority",
                  "; ".join(ours) or ("none" if judged else printed[-300:]), "none", judged and not ours)]


def h2load(gateway: Gateway, calls: int, http2: bool) -> list[Check]:
    """Many calls over few connections with TLS. All have to be answered with 2xx."""
    printed = run(
        ["h2load", "-n", calls, "-c", 20, "-m", 50 if http2 else 1, "-t", 1, *([] if http2 else ["--h1"]),
         "-H", f"authorization: Bearer {gateway.key}", f"{gateway.secure}/v1/models"],
        seconds=300,
    )
    name = f"h2load: {calls:,} calls over 20 connections, {'HTTP/2' if http2 else 'HTTP/1.1'}: failed or errored"
    requests = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", printed)
    codes = re.search(r"status codes: (\d+) 2xx", printed)
    spoken = "Application protocol: " + ("h2" if http2 else "http/1.1")
    if not requests or not codes or spoken not in printed:
        return [Check(name, printed[-300:], "0", False)]
    _, succeeded, failed, errored, late = map(int, requests.groups())
    bad = failed + errored + late + (succeeded - int(codes[1]))
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", printed)
    return [
        Check(name, f"{bad}", "0", bad == 0 and succeeded == calls),
        Check("  calls per second", f"{float(rate[1]):,.0f}" if rate else "–", "", True),
    ]


class SlowHttpTest:
    """One attack, running beside others."""

    def __init__(self, stand: Stand, gateway: Gateway, mode: str, what: str, path: str, seconds: int,
                 connections: int, *more: object) -> None:
        self.gateway, self.mode, self.what, self.connections = gateway, mode, what, connections
        self.out = stand.scratch / f"slowhttptest{mode}"
        command = [
            "slowhttptest", mode, "-c", connections, "-r", 20 if mode == "-X" else max(20, connections // 5), "-i", 10, "-l", seconds,
            "-p", os.environ.get("EDGE_PROBE_SECONDS", "3"), "-g", "-o", self.out, "-v", 1,
            "-u", f"{gateway.plain}{path}", *more,
        ]
        self.log = (stand.scratch / f"slowhttptest{mode}.log").open("w+")
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
            preexec_fn=stack.dies_with_us,
        )

    def checks(self, bar: float) -> list[Check]:
        """Waits for its end. `bar` is when the last connection has to be closed, seconds."""
        closed = self._readers() if self.mode == "-X" else self._closed()
        self.log.seek(0)
        table = Path(f"{self.out}.csv")
        if not table.exists():
            return [Check(self.what, self.log.read()[-300:], "it runs", False)]
        rows = list(csv.DictReader(table.open()))
        away = [row["Seconds"] for row in rows if int(row["Service Available"]) == 0]
        most = max(int(row["Connected"]) for row in rows)
        left = f"{rows[-1]['Connected']} open after {rows[-1]['Seconds']} s"
        return [
            Check(f"{self.what}: service available", f"NO at {', '.join(away)} s" if away else f"YES, {len(rows)} times",
                  "YES throughout", not away and len(rows) > 1),
            Check(f"  of {self.connections:,} connections closed ({most:,} at once)",
                  left if closed is None else f"all after {closed:.0f} s", f"all in {bar:g} s",
                  closed is not None and closed <= bar and most >= self.connections * 0.9),
        ]

    def _closed(self) -> float | None:
        """Seconds until it had no connection left."""
        self.process.wait(600)
        self.log.seek(0)
        said = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.log.read())
        ended = re.search(r"Test ended on (\d+)\w+ second\s+Exit status:\s*No open connections left", said)
        return float(ended[1]) if ended else None

    def _readers(self) -> float | None:
        """Who does not read does not see that the connection is closed: the gateway is asked."""
        closed = None
        while self.process.poll() is None:
            if closed is None and self.gateway.metric("tollkeeper_connections_refused_total", "slow_reader") >= self.connections:
                closed = time.monotonic() - self.begun
            time.sleep(0.5)
        return closed
