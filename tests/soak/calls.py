"""A mixed run of calls while everything around the gateway breaks, and the gateway itself. What was promised of
the books afterwards is looked at in `books`."""

import asyncio
import contextlib
import pathlib
import random
import subprocess
import time
from dataclasses import dataclass, field

from books import look
from caller import Caller, Seen, chat, embedding
from stand import Gateway, say

CALLERS = 48
TMPFS_BYTES = 64 << 20


@dataclass
class Plan:
    calls: int
    seconds: float
    """How long the calls are spread over."""
    kills: list
    """Windows in which the gateway is killed: from, to (seconds), how often."""
    stopped: tuple
    """Postgres stopped hard: from, for how long."""
    frozen: tuple | None = None
    full: tuple | None = None
    """The disk of the spool is full: from, for how long. No kill in there: what waits in memory for a full disk
    dies with the process."""


# Two kills fall into the time without Postgres, late, so that most of that time shows what known keys are told.
FULL = Plan(calls=20_000, seconds=112,
            kills=[(4, 22, 6), (28.5, 29.5, 1), (34, 41, 3), (67, 72, 2), (89, 108, 8)],
            stopped=(25, 5), frozen=(43, 30), full=(77, 8))
SHORT = Plan(calls=1_000, seconds=16, kills=[(2, 5, 2), (12, 14, 1)], stopped=(7, 3))


@dataclass
class Call:
    """A call as it was meant."""

    n: int
    kind: str
    key: str
    user: str
    tags: list
    told: dict
    model: str
    stream: bool = False
    leave_after: float | None = None
    seen: Seen = field(default_factory=Seen)


@dataclass
class Away:
    """A time in which something was not there."""

    what: str
    begun: float
    ended: float = float("inf")

    def meets(self, begun, ended):
        return begun <= self.ended and ended >= self.begun


KINDS = {
    "json": 28, "stream": 20, "hang-up in a stream": 8, "hang-up before the answer": 2, "retry": 6,
    "fallback": 12, "fallback in a stream": 6, "embedding": 13, "refused upstream": 2, "cut by the upstream": 3,
}
FAILURES = [500, 503, 429, 0]


def meant(n, keys, rng):
    """The n-th call."""
    kind = rng.choices(list(KINDS), KINDS.values())[0]
    key = rng.choice(keys)
    told = {"n": n, "prompt": rng.randint(1, 3000), "tokens": rng.randint(1, 12)}
    call = Call(n, kind, key["key"], f"customer-{rng.randrange(5)}", rng.sample(["red", "green", "blue"], rng.randrange(3)),
                told, "plain")
    match kind:
        case "stream":
            call.stream, told["pause"] = True, 0.003
        case "hang-up in a stream":
            call.stream, told["pause"], told["tokens"] = True, 0.02, 30
            call.leave_after = rng.randint(1, 10)
        case "hang-up before the answer":
            told["pause"], call.leave_after = 1.0, -0.3
        case "retry":
            call.model, told["fails"] = "retried", [rng.choice(FAILURES)]
        case "fallback" | "fallback in a stream":
            call.model, told["fails"] = "shaky", [rng.choice(FAILURES)]
            call.stream = kind != "fallback"
        case "embedding":
            call.model, told["tokens"] = "embed", 0
        case "refused upstream":
            told["fails"] = [400]
        case "cut by the upstream":
            call.stream, told["breaks"] = True, rng.randint(1, told["tokens"])
            told["tokens"] += 1
    return call


def config(stand):
    return {
        "model_list": [
            stand.deployment("plain"),
            stand.deployment("retried", max_retries=2),
            stand.deployment("shaky", "first", order=1),
            stand.deployment("shaky", "second", order=2),
            stand.deployment("embed"),
        ],
        # So that the gateway's own account is counted, too.
        "litellm_settings": {"max_budget": 1_000_000},
        "tollkeeper": {"ledger": {"flush_every": "200ms"}},
    }


def people(gateway):
    """Keys of teams, users and nobody, each with budgets and limits that are looked at and do not bind."""
    wide = {"max_budget": 100_000, "rpm_limit": 10_000_000, "tpm_limit": 10_000_000_000}
    for user in ("ann", "ben", "cleo"):
        gateway.ask("/user/new", {"user_id": user, "max_budget": 100_000, "auto_create_key": False})
    for team, members in (("north", ["ann", "ben"]), ("south", ["cleo"])):
        roles = [{"role": "user", "user_id": user} for user in members]
        gateway.ask("/team/new", {"team_id": team, "members_with_roles": roles, **wide})
    owners = [
        {"user_id": "ann", "team_id": "north"}, {"user_id": "ben", "team_id": "north"},
        {"user_id": "cleo", "team_id": "south"}, {"user_id": "ann"}, {"user_id": "ben"}, {"team_id": "south"}, {},
        {"user_id": "cleo", "metadata": {"tags": ["of-the-key"]}},
    ]
    return [gateway.ask("/key/generate", {"key_alias": f"soak-{at}", **wide, **owner}) for at, owner in enumerate(owners)]


class Run:
    """The calls, and what breaks meanwhile."""

    def __init__(self, stand, gateway, plan, seed):
        self.stand, self.gateway, self.plan = stand, gateway, plan
        self.rng = random.Random(seed)
        self.keys = people(gateway)
        self.calls = [meant(n, self.keys, self.rng) for n in range(plan.calls)]
        self.kills, self.outages = [], []
        self.todo = iter(self.calls)

    async def go(self):
        loop = asyncio.get_running_loop()
        self.begun = loop.time()
        breakers = [asyncio.create_task(b) for b in self._breakers()]
        try:
            await asyncio.gather(*(self._caller() for _ in range(CALLERS)))
            await asyncio.gather(*breakers)
        finally:
            for task in breakers:
                task.cancel()
        self.seconds = loop.time() - self.begun

    async def _caller(self):
        caller = Caller(self.gateway.port)
        for call in self.todo:
            await self._at(call.n / self.plan.calls * self.plan.seconds)
            while True:
                try:
                    await caller.connect()
                    break
                except OSError:
                    await asyncio.sleep(0.02)
            path, body = "/v1/chat/completions", chat
            if call.model == "embed":
                path, body = "/v1/embeddings", embedding
            more = {"stream": True} if call.stream else {}
            if call.model != "embed":
                more["max_tokens"] = 64
            body = body(call.model, call.told, user=call.user, metadata={"n": call.n, "tags": call.tags}, **more)
            call.seen = await caller.call(call.key, path, body, call.leave_after)
        caller.close()

    async def _at(self, second):
        await asyncio.sleep(self.begun + second - asyncio.get_running_loop().time())

    def _breakers(self):
        yield self._killer()
        yield self._outage("stopped", self.plan.stopped, self.stand.postgres.crash, self.stand.postgres.up)
        if self.plan.frozen:
            yield self._outage("frozen", self.plan.frozen, self.stand.postgres.freeze, self.stand.postgres.thaw)
        if self.plan.full and self.gateway.data.is_mount():
            yield self._full()

    async def _killer(self):
        loop, thread = asyncio.get_running_loop(), asyncio.to_thread
        moments = sorted(self.rng.uniform(begin, end) for begin, end, often in self.plan.kills for _ in range(often))
        for at in moments:
            await self._at(at)
            away = Away("gateway", loop.time())
            self.gateway.kill()
            self.gateway.up()
            self.kills.append(away)
            # The next kill does not wait for this: it may well come before the gateway is ready again.
            asyncio.create_task(self._until_ready(away, thread))

    async def _until_ready(self, away, thread):
        while not await thread(self.gateway.is_ready):
            await asyncio.sleep(0.02)
        away.ended = asyncio.get_running_loop().time()

    async def _outage(self, what, when, begin, end):
        begins, lasts = when
        await self._at(begins)
        loop = asyncio.get_running_loop()
        away = Away(what, loop.time())
        self.outages.append(away)
        await asyncio.to_thread(begin)
        say(f"Postgres is {what}")
        await asyncio.sleep(away.begun + lasts - loop.time())
        await asyncio.to_thread(end)
        away.ended = loop.time()
        say(f"Postgres is back after {away.ended - away.begun:.1f} s")

    async def _full(self):
        begins, lasts = self.plan.full
        await self._at(begins)
        stuffing = self.gateway.data / "stuffing"
        say("the spool's disk is full")
        # Again and again: what the gateway deletes is taken at once.
        until = asyncio.get_running_loop().time() + lasts
        with open(stuffing, "ab", buffering=0) as file:
            while asyncio.get_running_loop().time() < until:
                for size in (1 << 20, 4096, 512):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
                await asyncio.sleep(0.02)
        stuffing.unlink()
        say("the spool's disk has room again")


@contextlib.contextmanager
def small_disk(directory):
    """A file system of its own for the spool, where this machine lets us have one; else a plain directory."""
    directory.mkdir(mode=0o700)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=700", "soak", directory],
                          capture_output=True)
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", directory], check=True)


def soak(stand, verdict, plan, seed):
    say(f"{plan.calls} calls over {plan.seconds:.0f} s (seed {seed})")
    database = stand.postgres.database("calls")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(stand.redis())
        small = stack.enter_context(small_disk(stand.dir / "small-disk"))
        gateway = stack.enter_context(Gateway(
            stand, "gateway", config(stand), database, redis, pathlib.Path(stand.dir / "small-disk")))
        run = Run(stand, gateway, plan, seed)
        asyncio.run(run.go())
        gateway.ready()
        begun = time.monotonic()
        status = gateway.stop()
        verdict.figure("seconds the calls took", f"{run.seconds:.0f}")
        verdict.figure("gateway killed, in the midst of", f"{len(run.kills)} times")
        verdict.figure("seconds until SIGTERM had everything in Postgres", f"{time.monotonic() - begun:.1f}")
        verdict.promise("SIGTERM ends it with status 0", status == 0, status)
        if plan.full:
            refused = gateway.log.read_text(errors="replace").count("the disk refuses records")
            if small:
                verdict.promise("the disk was full and refused records", refused > 0, "the log says nothing of it")
            else:
                verdict.figure("disk full", "not tried: mounting a small disk takes root")
        look(stand, verdict, run, gateway, "calls")
