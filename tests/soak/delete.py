"""A key deleted on one gateway is dead on the other within a second, while both have much to do."""

import asyncio
import contextlib
import itertools

from caller import Caller, chat
from calls import config
from stand import Gateway

ROUNDS = 20
LOADERS, PROBERS = 24, 4
SECOND = 1.0


class Round:
    """One key: made, used on both, deleted on the first."""

    def __init__(self, gateways, numbers):
        self.a, self.b = gateways
        self.key = self.a.ask("/key/generate", {})["key"]
        self.numbers = numbers
        self.deleted = None
        # Per port: when the last call began that was let in, when the first came back that was not.
        self.last, self.refused, self.odd = {}, {}, []

    async def go(self):
        probers = [asyncio.create_task(self._prober(g.port)) for g in (self.a, self.b) for _ in range(PROBERS)]
        while len(self.last) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(self.a.ask, "/key/delete", {"keys": [self.key]})
        self.deleted = asyncio.get_running_loop().time()
        await asyncio.gather(*probers)

    async def _prober(self, port):
        caller, loop = Caller(port), asyncio.get_running_loop()
        while self.deleted is None or loop.time() < self.deleted + 3 * SECOND:
            seen = await caller.call(self.key, "/v1/chat/completions", told(next(self.numbers)))
            if seen.status == 200:
                self.last[port] = max(self.last.get(port, 0), seen.begun)
            elif seen.status == 401:
                self.refused.setdefault(port, seen.ended)
                if self.deleted is not None and len(self.refused) == 2 and loop.time() > self.deleted + SECOND:
                    break
            else:
                self.odd.append((seen.status, seen.body[:120]))
                await asyncio.sleep(0.01)
        caller.close()

    def lived(self, gateway):
        """Seconds after the deletion was answered in which a call still came in; below zero, none did."""
        return self.last[gateway.port] - self.deleted


def told(n):
    return chat("plain", {"n": n, "prompt": 3, "tokens": 2}, max_tokens=8)


async def loader(port, key, numbers, done, calls):
    caller = Caller(port)
    while not done.is_set():
        seen = await caller.call(key, "/v1/chat/completions", told(next(numbers)))
        calls[seen.status] = calls.get(seen.status, 0) + 1
    caller.close()


async def all_rounds(gateways, calls):
    key = gateways[0].ask("/key/generate", {})["key"]
    numbers, done, rounds = itertools.count(), asyncio.Event(), []
    loop = asyncio.get_running_loop()
    begun = loop.time()
    loaders = [asyncio.create_task(loader(gateways[at % 2].port, key, numbers, done, calls)) for at in range(LOADERS)]
    for _ in range(ROUNDS):
        rounds.append(await asyncio.to_thread(Round, gateways, numbers))
        await rounds[-1].go()
    done.set()
    await asyncio.gather(*loaders)
    return rounds, loop.time() - begun


def soak(stand, verdict, _seed):
    database = stand.postgres.database("delete")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(stand.redis())
        gateways = [stack.enter_context(Gateway(stand, name, config(stand), database, redis)) for name in ("a", "b")]
        calls = {}
        rounds, seconds = asyncio.run(all_rounds(gateways, calls))
        a, b = gateways
        verdict.figure("calls beside it, per second on both", f"{sum(calls.values()) / seconds:.0f}")
        for gateway, whose in ((a, "where it was deleted"), (b, "on the other")):
            late = sorted(r.lived(gateway) for r in rounds)
            verdict.figure(f"last call let in {whose}, ms after: median, worst of {ROUNDS}",
                           f"{late[ROUNDS // 2] * 1e3:.0f}, {late[-1] * 1e3:.0f}")
            if gateway is a:
                verdict.promise("where it was deleted, the key is dead at once", late[-1] < 0, late[-1])
            else:
                verdict.promise("on the other it is dead within a second", late[-1] < SECOND, late[-1])
        alive = [r.key for r in rounds if len(r.refused) < 2]
        verdict.promise("every deleted key is refused with 401 on both", not alive, len(alive))
        odd = [o for r in rounds for o in r.odd]
        verdict.promise("nothing else comes than 200 and 401", not odd, odd[:3])
        verdict.promise("calls of other keys go on", set(calls) == {200}, calls)
