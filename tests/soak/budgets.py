"""Crowds against small budgets: on one gateway, on two that count together, and on two whose Redis is killed. The
bounds are those of docs/limits.md."""

import asyncio
import collections
import contextlib
import time

from caller import Caller, chat
from stand import DEAR_OUT, PATIENCE, Gateway

# A call is three tokens of the answer.
TOKENS = 3
COST = TOKENS * DEAR_OUT
DEAR = {"input_cost_per_token": 0, "output_cost_per_token": DEAR_OUT / 1e9}
# How many of a crowd call at a time while Redis is killed.
AT_ONCE = 20
# What a replica knows of the others is younger than this while it has calls, seconds: a quarter, and what a busy
# machine makes of it.
KNOWN = 0.5


def config(stand):
    return {"model_list": [stand.deployment("dear", prices=DEAR)], "tollkeeper": {"ledger": {"flush_every": "200ms"}}}


class Crowd:
    """Calls of one key against its budget, spread evenly over gateways."""

    def __init__(self, stand, gateways, worth):
        self.stand, self.gateways = stand, gateways
        self.budget = int(worth * COST)
        self.key = gateways[0].ask("/key/generate", {"max_budget": self.budget / 1e9})
        self.statuses, self.errors = collections.Counter(), collections.Counter()
        self.served_at = []

    async def call(self, at, pause):
        caller = Caller(self.gateways[at % len(self.gateways)].port)
        told = {"n": at, "prompt": 5, "tokens": TOKENS, "pause": pause}
        body = chat("dear", told, max_tokens=TOKENS)
        seen = await caller.call(self.key["key"], "/v1/chat/completions", body)
        caller.close()
        self.statuses[seen.status if seen.whole else 0] += 1
        if seen.whole and seen.status == 200:
            self.served_at.append(seen.ended)
        if not seen.whole or seen.status != 200 and b"budget_exceeded" not in seen.body:
            self.errors[f"{seen.status} {seen.body[:120]!r}"] += 1

    async def at_once(self, n):
        # Slow enough that all have asked before the first is answered.
        await asyncio.gather(*(self.call(at, 1.0) for at in range(n)))

    async def in_turn(self, n, half_way):
        """`AT_ONCE` at a time; `half_way` is called once half of what the budget is worth is served."""
        numbers, due = iter(range(n)), self.budget // COST // 2

        async def one_after_the_other():
            nonlocal due
            for at in numbers:
                await self.call(at, 1.0)
                if due and self.served >= due:
                    due = 0
                    half_way()

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
        return not due

    @property
    def served(self):
        return self.statuses[200]

    def rows(self):
        query = f"""SELECT count(*) AS calls, coalesce(sum(spend_nanos), 0)::bigint AS spent FROM tk_ledger
            WHERE http_status = 200 AND key_hash = decode('{self.key["token_id"]}', 'hex')"""
        return self.stand.postgres.rows("budgets", query)[0]

    def judge(self, verdict, name, most, why):
        deadline = time.monotonic() + PATIENCE
        while (rows := self.rows())["calls"] < self.served and time.monotonic() < deadline:
            time.sleep(0.1)
        spent = rows["spent"]
        verdict.figure(f"{name}: budget, calls", f"{self.budget / COST:.1f}")
        verdict.figure(f"{name}: served, refused", f"{self.served}, {sum(self.statuses.values()) - self.served}")
        verdict.figure(f"{name}: spent / budget, nano-dollars", f"{spent} / {self.budget}")
        verdict.promise(f"{name}: whoever is not served is told `budget_exceeded`", not self.errors, dict(self.errors))
        verdict.promise(f"{name}: the ledger has what was served", spent == self.served * COST, spent)
        verdict.promise(f"{name}: spent is at most {why}", spent <= most, f"{spent} > {most}")
        verdict.promise(f"{name}: the budget can be used", self.served >= int(self.budget / COST) // 2, self.served)


def soak(stand, verdict, _seed):
    database = stand.postgres.database("budgets")
    with Gateway(stand, "alone", config(stand), database) as gateway:
        for n in (200, 1000):
            crowd = Crowd(stand, [gateway], 3.5)
            asyncio.run(crowd.at_once(n))
            crowd.judge(verdict, f"{n} at once on one gateway", crowd.budget + COST, "the budget and one call")
            verdict.promise(f"{n} at once on one gateway: at most 4 are served", crowd.served <= 4, crowd.served)
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(stand.redis())
        two = [stack.enter_context(Gateway(stand, name, config(stand), database, redis)) for name in ("left", "right")]
        for n in (200, 1000):
            crowd = Crowd(stand, two, 3.5)
            asyncio.run(crowd.at_once(n))
            crowd.judge(verdict, f"{n} at once on two gateways", crowd.budget + 2 * COST,
                        "the budget and one call per gateway")
        crowd = Crowd(stand, two, 103.5)
        left = 0

        def kill():
            nonlocal left
            redis.kill()
            known = asyncio.get_running_loop().time() - KNOWN
            left = crowd.budget - COST * sum(1 for at in crowd.served_at if at < known)

        killed = asyncio.run(crowd.in_turn(1000, kill))
        name = "1000 on two gateways, Redis killed half way"
        verdict.promise(f"{name}: it was killed", killed)
        # (replicas - 1) times what was left, and the call over that each may let in.
        crowd.judge(verdict, name, crowd.budget + left + 2 * COST,
                    "the budget, once more what was left, and one call per gateway")
        verdict.figure(f"{name}: not spent when Redis went, at most", left)
