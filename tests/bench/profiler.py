"""Where the governed gateway spends its time: its functions by their own cost and with all they call."""

import collections
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import load

TOP = 40
SECONDS = 5
CALLS = 2000
OURS = re.compile(r"\b(tollkeeper|filters)::")
HASH = re.compile(r"::h[0-9a-f]{16}$|::\{\{closure\}\}|\{closure#\d+\}")


def profile(stand):
    if _perf_works(stand):
        tool = _perf
    elif shutil.which("valgrind"):
        tool = _callgrind
    else:
        raise SystemExit("perf is missing or not permitted here, and valgrind is not installed")
    for title, text in (("calls", load.body()), ("bursts", load.body(stream=True))):
        tool(stand, title, text)


def _perf_works(stand):
    """Many containers have perf and do not allow it."""
    return bool(shutil.which("perf")) and not subprocess.run(
        ["perf", "record", "-q", "-e", "cpu-clock", "-o", stand.dir / "perf-tried.data", "true"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def _perf(stand, title, text):
    data = stand.dir / f"perf-{title}.data"
    with stand.gateway("governed") as gateway:
        key = stand.key(gateway)
        load.wrk(gateway.port, text, 1, 64, stand.dir / "wrk.json", key)
        before = gateway.cpu_when_quiet()
        perf = subprocess.Popen(
            ["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "--call-graph", "dwarf,16384",
             "-p", str(gateway.child.pid), "-o", data],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        figures = load.wrk(gateway.port, text, SECONDS, 64, stand.dir / "wrk.json", key)
        after = gateway.cpu_when_quiet()
        perf.send_signal(signal.SIGINT)
        perf.wait()
    print(f"\n# {title}: {figures['calls']} in {SECONDS} s, {(after - before) / figures['calls'] * 1e6:.1f} us of CPU each"
          " (perf adds to it)")
    own, whole, threads, stacks, total = _count(data)
    print(f"# {total} samples")
    _print("thread", threads, total)
    _print("own cost", own, total)
    ours = {name: count for name, count in whole.items() if OURS.search(name)}
    _print("ours, with all they call", collections.Counter(ours), total)
    _print("with all it calls", whole, total)
    kept = os.environ.get("BENCH_STACKS")
    if kept:
        # One line per stack, as flame graph tools read them.
        with open(f"{kept}-{title}.txt", "w") as out:
            for stack, count in stacks.most_common():
                out.write(f"{stack} {count}\n")


def _count(data):
    """Walks `perf script`'s samples. A function counts once per sample, however often it recurs."""
    own, whole, threads, stacks = (collections.Counter() for _ in range(4))
    total = 0
    script = subprocess.Popen(
        ["perf", "script", "-i", data, "--no-inline", "-F", "comm,tid,ip,sym,dso"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
    names, thread = [], ""
    for line in script.stdout:
        line = line.rstrip()
        if not line:
            if names:
                total += 1
                threads[thread] += 1
                own[names[0]] += 1
                for name in set(names):
                    whole[name] += 1
                stacks[";".join([thread, *reversed(names)])] += 1
            names = []
        elif not line.startswith((" ", "\t")) or (not names and not re.match(r"\s+[0-9a-f]+ ", line)):
            thread = re.sub(r"\s+\d+.*$", "", line.strip())
        else:
            symbol = re.sub(r"^\s*[0-9a-f]+ ", "", line)
            symbol = re.sub(r"(\+0x[0-9a-f]+)? \(([^()]*)\)$",
                            lambda m: "" if "tollkeeper" in m[2] else f" [{m[2].rpartition('/')[2]}]", symbol)
            if "[unknown]" in symbol:
                continue
            names.append(HASH.sub("", HASH.sub("", symbol)))
    script.wait()
    return own, whole, threads, stacks, total


def _print(title, counts, total):
    print(f"\n## {title}")
    for name, count in counts.most_common(TOP):
        print(f"{count / max(total, 1) * 100:6.2f} %  {name[:150]}")


def _callgrind(stand, title, text):
    out = stand.dir / f"callgrind-{title}.out"
    wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    with stand.gateway("governed", wrapper) as gateway:
        key = stand.key(gateway)
        message = load.request(text, key)

        def call():
            for _ in range(CALLS // 4):
                gateway.first_answer(message)

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    for way in ("--inclusive=no", "--inclusive=yes"):
        print(f"\n## {title} {way}")
        shown = subprocess.run(["callgrind_annotate", way, out], capture_output=True, text=True).stdout
        print("\n".join(line[:170] for line in shown.splitlines()[: TOP + 25]))
