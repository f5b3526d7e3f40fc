"""What was found: a line for each check on the terminal, a table in results.md and in README.md."""

import datetime
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent.parent / "README.md"
BEGIN, END = "<!-- tests/edge/results.md -->\n", "<!-- end of tests/edge/results.md -->\n"


@dataclass
class Check:
    """One figure. Without a bar it is there to be known."""

    what: str
    figure: str
    bar: str
    good: bool

    def line(self) -> str:
        verdict = ("ok    " if self.good else "FAILED") if self.bar else "      "
        bar = f"  (bar: {self.bar})" if self.bar else ""
        return f"{verdict} {self.what}: {self.figure}{bar}"


def markdown(checks: list[Check], kind: str, seconds: float, load: float) -> str:
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{os.cpu_count()} cores ({cpu[1].strip() if cpu else platform.machine()})"
    lines = [
        f"Measured {datetime.date.today().isoformat()} with `make check-edge` (`{kind}` build) on {machine}, which "
        f"attackers, clients, upstream and gateway share, in {seconds:.0f} s. Load average before the run: {load:.1f}.",
        "", "| check | found | bar | |", "|---|---|---|---|",
    ]
    for one in checks:
        verdict = ("met" if one.good else "**missed**") if one.bar else ""
        what = one.what if not one.what.startswith("  ") else f"– {one.what.strip()}"
        lines.append(f"| {cell(what)} | {cell(one.figure)} | {cell(one.bar)} | {verdict} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """What a tool printed may have lines and bars."""
    return " ".join(text.split()).replace("|", "/")


def keep(text: str) -> None:
    """Writes results.md, and the same between its marks in README.md. Each is put there whole."""
    page = README.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"edge: {README} has no place for the figures: {BEGIN.strip()}")
    for file, whole in ((HERE / "results.md", text), (README, before + begin + text + end + after)):
        new = file.with_name(f".{file.name}.new")
        new.write_text(whole)
        new.replace(file)
