"""What was measured, as a table for a terminal, as JSON, and as a section for README.md."""

import datetime
import json
import os
import pathlib
import platform
import re
import statistics

import watched

HERE = pathlib.Path(__file__).parent
CHUNKS = 50
NAMES = ("direct", "bare", "open", "governed")


def _median(results, name, kind, figure):
    values = [r[name][kind][figure] for r in results["rounds"] if figure in r[name][kind]]
    return statistics.median(values) if values else None


def summarise(results):
    """The median of each figure by name, and how the aims were met."""
    rows = []

    def add(title, unit, digits, get):
        rows.append((title, unit, digits, {name: get(name) for name in NAMES}))

    def loaded(kind, figure, scale=1.0):
        def get(name):
            value = _median(results, name, kind, figure)
            return None if value is None else value * scale
        return get

    def remembered(figure, scale=1.0):
        def get(name):
            value = results["memory"].get(name, {}).get(figure)
            return None if value is None else value * scale
        return get

    add("calls/s, 64 connections", "/s", 0, loaded("call", "rate"))
    add("p50", "ms", 2, loaded("call", "p50_us", 1e-3))
    add("p99", "ms", 2, loaded("call", "p99_us", 1e-3))
    add("CPU per call", "µs", 1, loaded("call", "cpu_us"))
    add("p50, one connection", "µs", 0, loaded("alone", "p50_us"))
    add(f"streams/s, {CHUNKS} chunks in a burst", "/s", 0, loaded("burst", "rate"))
    add("CPU per stream", "µs", 1, loaded("burst", "cpu_us"))
    add("CPU per chunk", "µs", 2, loaded("burst", "cpu_us", 1 / CHUNKS))
    add("start to first answer", "ms", 0, remembered("start_ms"))
    add("memory idle", "MiB", 1, remembered("idle_bytes", 1 / (1 << 20)))
    held = max((m["held"] for m in results["memory"].values()), default=0)
    add(f"memory per open stream, {held:,} held", "KB", 1, remembered("bytes_per_stream", 1e-3))

    def crowd(name):
        c = results["memory"].get(name, {}).get("crowd")
        return None if c is None else min(c["alive"], c["whole"])
    if any("crowd" in m for m in results["memory"].values()):
        asked = next(m["crowd"]["asked"] for m in results["memory"].values() if "crowd" in m)
        add(f"of {asked:,} slow streams at once, answered whole", "", 0, crowd)

    figures = {title: values for title, _, _, values in rows}
    cpu, chunk = figures["CPU per call"], figures["CPU per chunk"]
    rate = figures["calls/s, 64 connections"]
    stream = figures[f"memory per open stream, {held:,} held"]
    aims = [
        ("governed CPU per call ≤ 1.4 × bare Pingora", cpu["governed"] / cpu["bare"], 1.4, "×"),
        ("governed CPU per streamed chunk ≤ 3 µs", chunk["governed"], 3.0, "µs"),
        ("governed idle memory ≤ 40 MiB", figures["memory idle"]["governed"], 40.0, "MiB"),
        ("governed memory per open stream ≤ 70 KB", stream["governed"], 70.0, "KB"),
    ]
    judged = [{"aim": aim, "measured": round(value, 2), "unit": unit, "met": value <= limit}
              for aim, value, limit, unit in aims]
    governed = results["memory"]["governed"].get("crowd")
    if governed:
        whole = min(governed["alive"], governed["whole"])
        judged.append({"aim": f"{governed['asked']:,} slow streams held, each answered whole",
                       "measured": whole, "unit": "", "met": whole == governed["asked"]})
    ledger = results["ledger"]
    # What wrk cuts off at the end of a run was answered and is not counted by it.
    judged.append({"aim": f"a row in Postgres for each of {ledger['answered']:,} answered calls",
                   "measured": ledger["rows"], "unit": "", "met": ledger["rows"] >= ledger["answered"]})
    judged += edge_aims(results["edge"])
    judged += watched.aims(results["watched"])
    ratios = {
        "calls/s": rate["governed"] / rate["bare"],
        "CPU per call": cpu["governed"] / cpu["bare"],
        "CPU per call, open": cpu["open"] / cpu["bare"],
        "CPU per stream": figures["CPU per stream"]["governed"] / figures["CPU per stream"]["bare"],
    }
    return rows, judged, ratios


def _edge(results, setup, figure):
    return statistics.median(one[setup][figure] for one in results["rounds"] if setup in one)


def edge_aims(results):
    """What the edge's limits add to a call, and full TLS handshakes beside bare Pingora's."""
    added = statistics.median(one["limited"]["cpu_us"] - one["plain"]["cpu_us"] for one in results["rounds"])
    rate = statistics.median(one["tls"]["rate"] / one["bare tls"]["rate"] for one in results["rounds"])
    aims = [
        {"aim": "a rate limit adds ≤ 5 µs CPU per call (caps and deadlines are always on)", "measured": round(added, 2), "unit": "µs",
         "met": added <= 5},
        {"aim": "full TLS handshakes per second ≥ 0.9 × bare Pingora", "measured": round(rate, 2), "unit": "×",
         "met": rate >= 0.9},
    ]
    if "before" in results["rounds"][0]:
        since = statistics.median(one["limited"]["cpu_us"] - one["before"]["cpu_us"] for one in results["rounds"])
        aims.append({"aim": "rate limit, caps and deadlines, against the tollkeeper before: ≤ 5 µs CPU per call",
                     "measured": round(since, 2), "unit": "µs", "met": since <= 5})
    return aims


def _edge_rows(results):
    """Title, digits, and the figure by setup."""
    names = [name for name in ("plain", "limited", "before") if name in results["rounds"][0]]
    yield "CPU per call (µs)", 1, {name: _edge(results, name, "cpu_us") for name in names}
    yield "full TLS handshakes/s", 0, {name: _edge(results, name, "rate") for name in ("bare tls", "tls")}
    yield "CPU per full handshake (µs)", 1, {name: _edge(results, name, "cpu_us") for name in ("bare tls", "tls")}


def show_edge(results):
    """The edge alone, for a terminal."""
    for title, digits, values in _edge_rows(results):
        print(f"{title}: " + ", ".join(f"{name} {value:,.{digits}f}" for name, value in values.items()))
    for one in edge_aims(results):
        print(f"{'met   ' if one['met'] else 'MISSED'} {one['aim']}: {one['measured']:,} {one['unit']}")


def _edge_text(results):
    (_, _, cpu), (_, _, rate), (_, _, shake) = _edge_rows(results)
    return (
        f"The edge: without a rate limit the *open* gateway takes {cpu['plain']:.1f} µs of CPU per call, with one that "
        f"refuses nobody {cpu['limited']:.1f} µs; caps of connections and deadlines are on in both. "
        f"Full TLS 1.3 handshakes (ECDSA P-256, by `openssl s_time`, no resumption): {rate['tls']:,.0f} a second at "
        f"{shake['tls']:.0f} µs CPU each; bare Pingora with the same certificate: {rate['bare tls']:,.0f} at "
        f"{shake['bare tls']:.0f} µs.\n"
    )


def _cell(value, digits):
    return "–" if value is None else f"{value:,.{digits}f}"


def markdown(results, rows, judged, ratios, when, machine):
    def unit(text):
        return f" ({text})" if text and text != "/s" else ""

    lines = ["| figure | direct | bare Pingora | open | **governed** |", "|---|--:|--:|--:|--:|"]
    for title, what, digits, values in rows:
        cells = [_cell(values[name], digits) for name in NAMES]
        lines.append(f"| {title}{unit(what)} | {' | '.join(cells[:3])} | **{cells[3]}** |")
    lines += ["", "| aim | measured | |", "|---|--:|---|"]
    for one in judged:
        shown = f"{one['measured']:,} {one['unit']}".strip()
        lines.append(f"| {one['aim']} | {shown} | {'met' if one['met'] else '**missed**'} |")
    text = (
        f"Measured {when} with `make bench` on {machine['cores']} cores ({machine['cpu']}, {machine['system']}), "
        f"which the load (wrk), the mock upstream, Postgres and the proxy share: absolute figures move with "
        f"the machine, ratios of one run hold. {machine['rounds']} rounds in turn, medians; {machine['seconds']} s "
        f"each; build profile `{machine['profile']}`. A call is 1 KB of JSON answered by 950 bytes. "
        "*Bare Pingora* is a proxy of a few lines (`examples/bare_proxy.rs`) with the same allocator; *open* is "
        "Tollkeeper with nothing in its chain but `translate`; *governed* has a virtual key with a budget and limits, "
        "which replicas share through Redis, prices, a row in Postgres for each call, metrics. CPU is the user and system time of the proxy's process alone, "
        "until the last row of its ledger is written. "
        f"Load average before the run: {machine['load']}.\n\n"
        f"Governed against bare Pingora: {ratios['CPU per call']:.2f} × the CPU per call, {ratios['calls/s']:.2f} × "
        f"the calls per second, {ratios['CPU per stream']:.2f} × the CPU per stream."
    )
    return text + "\n\n" + "\n".join(lines) + "\n\n" + _edge_text(results["edge"]) + "\n" + watched.text(results["watched"])


def _machine(plan, profile):
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "cores": os.cpu_count(),
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "load": f"{LOAD_BEFORE:.1f}",
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "profile": profile,
    }


LOAD_BEFORE = os.getloadavg()[0]


def write(results, plan, profile, keep):
    """Prints the table, and with `keep` writes results.json and results.md."""
    rows, judged, ratios = summarise(results)
    when = datetime.date.today().isoformat()
    machine = _machine(plan, profile)
    print(f"{'':48}{'direct':>12}{'bare':>12}{'open':>12}{'governed':>12}")
    for title, unit, digits, values in rows:
        name = title + (f" ({unit})" if unit and unit != "/s" else "")
        print(f"{name:48}" + "".join(f"{_cell(values[n], digits):>12}" for n in NAMES))
    print()
    for title, value in ratios.items():
        print(f"governed / bare, {title}: {value:.2f}" if "open" not in title
              else f"open / bare, CPU per call: {value:.2f}")
    print()
    for one in judged:
        print(f"{'met   ' if one['met'] else 'MISSED'} {one['aim']}: {one['measured']:,} {one['unit']}")
    if keep:
        out = {"date": when, "machine": machine, "ratios": ratios, "aims": judged,
               "medians": {t: {"unit": u, **v} for t, u, _, v in rows}, **results}
        (HERE / "results.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
        (HERE / "results.md").write_text(markdown(results, rows, judged, ratios, when, machine))
