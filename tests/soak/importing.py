"""The database of a LiteLLM with ten thousand keys is taken over; its keys keep working."""

import asyncio
import json
import pathlib
import time

from caller import Caller, chat
from calls import config
from stand import HERE, Gateway

KEYS = 10_000
CALLERS = 32
TABLES = [HERE.parent / "it/kit" / name for name in ("litellm.sql", "litellm-1.109.sql")]
FILL = f"""
INSERT INTO "LiteLLM_UserTable" (user_id, user_role, spend, models)
    SELECT 'user-' || n, 'internal_user', n * 0.01, '{{}}' FROM generate_series(1, 500) n;
INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias, spend, models, members_with_roles)
    SELECT 'team-' || n, 'Team ' || n, n * 0.02, '{{}}', '[]' FROM generate_series(1, 50) n;
INSERT INTO "LiteLLM_VerificationToken" (token, key_name, key_alias, spend, user_id, team_id, models, max_budget, rpm_limit)
    SELECT encode(sha256(convert_to('sk-key-number-' || n, 'UTF8')), 'hex'), 'sk-...' || right(n::text, 4), 'key ' || n,
        n * 0.001, 'user-' || (n % 500 + 1), CASE WHEN n % 2 = 0 THEN 'team-' || (n % 50 + 1) END, ARRAY['plain'], 100, 600
    FROM generate_series(1, {KEYS}) n;
"""


class Import:
    def __init__(self, gateway, theirs):
        begun = time.monotonic()
        done = gateway.command("import", "litellm", "--database-url", theirs, "--json",
                               LITELLM_MASTER_KEY=gateway.stand.master)
        self.seconds = time.monotonic() - begun
        if done.returncode:
            raise SystemExit(f"import: {done.returncode} {done.stderr}")
        self.taken = json.loads(done.stdout)["taken"]

    def sum(self, what):
        return sum(line[what] for line in self.taken.values())


async def statuses(port, keys, call):
    """Every key is used once."""
    seen, todo = {}, iter(keys)

    async def one():
        caller = Caller(port)
        for key in todo:
            answer = await (caller.call(key, "/v1/chat/completions", call) if call else caller.call(key, "/v1/models"))
            seen[answer.status] = seen.get(answer.status, 0) + 1
        caller.close()

    await asyncio.gather(*(one() for _ in range(CALLERS)))
    return seen


def soak(stand, verdict, _seed):
    theirs, ours = stand.postgres.database("litellm"), stand.postgres.database("ours")
    for sql in [pathlib.Path(path).read_text() for path in TABLES] + [FILL]:
        stand.postgres.sql("litellm", sql)
    gateway = Gateway(stand, "gateway", config(stand), ours)
    first = Import(gateway, theirs)
    verdict.figure(f"seconds to import {KEYS} keys", f"{first.seconds:.2f}")
    keys = first.taken["keys"]
    verdict.promise("every key is taken", (keys["new"], keys["left"]) == (KEYS, 0), keys)
    again = Import(gateway, theirs)
    verdict.figure("seconds for the second import", f"{again.seconds:.2f}")
    verdict.promise("a second import changes nothing", (again.sum("new"), again.sum("changed")) == (0, 0), again.taken)
    every = [f"sk-key-number-{n}" for n in range(1, KEYS + 1)]
    call = chat("plain", {"n": 1, "prompt": 3, "tokens": 2}, max_tokens=8)
    with gateway:
        begun = time.monotonic()
        told = asyncio.run(statuses(gateway.port, every, None))
        verdict.figure("seconds until each key has asked for the models", f"{time.monotonic() - begun:.1f}")
        verdict.promise("every old key authenticates", told == {200: KEYS}, told)
        told = asyncio.run(statuses(gateway.port, every[::100], call))
        verdict.promise("calls of a hundred of them are answered", told == {200: len(every[::100])}, told)
        told = asyncio.run(statuses(gateway.port, [f"sk-key-number-{KEYS + 1}"], None))
        verdict.promise("a key that nobody made does not", told == {401: 1}, told)
        third = Import(gateway, theirs)
        # Keys that were used here are the only ones that may differ, and they are kept as they are.
        verdict.promise("nor does a third, after calls here", (third.sum("new"), third.sum("changed")) == (0, 0), third.taken)
