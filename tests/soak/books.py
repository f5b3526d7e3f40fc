"""The books after the storm: what callers saw and what the upstream counted, beside what the ledger says."""

import collections
import hashlib
import json

from stand import PRICE_IN, PRICE_OUT

LEDGER = """SELECT request_id, encode(key_hash, 'hex') AS key, user_id, team_id, end_user, tags, status, http_status,
    prompt_tokens, completion_tokens, spend_nanos, estimated, metadata FROM tk_ledger"""
# How long after its caller has gone a call may still be on its way through the gateway, seconds.
LINGERS = 2.0
# Longer than a call of a known key may take without the database, seconds: it asks for what it has to know, gives
# up, and goes on by what was known.
PATIENT = 5.0


def price(prompt, tokens):
    return prompt * PRICE_IN + tokens * PRICE_OUT


def some(things):
    return f"{len(things)}, such as {list(things)[:3]}"


class Books:
    def __init__(self, stand, run, database):
        self.run = run
        self.counted = stand.counted()
        self.rows = stand.postgres.rows(database, LEDGER)
        self.by_id = collections.Counter(row["request_id"] for row in self.rows)
        self.by_n = collections.defaultdict(list)
        self.strange = []
        for row in self.rows:
            n = (json.loads(row["metadata"] or "{}")).get("n")
            if n is None:
                self.strange.append(row["request_id"])
            else:
                self.by_n[n].append(row)

    def near_a_kill(self, call, lingers=0.0):
        return any(k.meets(call.seen.begun, call.seen.ended + lingers) for k in self.run.kills)

    def served(self, call):
        """What the upstream gave in answer: prompt and answer, tokens; None = nothing."""
        given = [tried for tried in self.counted.get(call.n, []) if tried[1] == 200]
        return (given[-1][2], given[-1][3]) if given else None


def look(stand, verdict, run, gateway, database):
    books = Books(stand, run, database)
    calls = run.calls
    whole = [c for c in calls if c.seen.status == 200 and c.seen.whole]
    left = [c for c in calls if c.seen.left]
    told_bad = [c for c in calls if c.seen.status == 400]
    cut = [c for c in calls if c.kind == "cut by the upstream" and c.seen.status == 200 and not c.seen.whole
           and not books.near_a_kill(c)]
    settled = {c.n for group in (whole, left, told_bad, cut) for c in group}
    lost = [c for c in calls if c.n not in settled]
    for kind, n in collections.Counter(c.kind for c in whole).items():
        verdict.figure(f"answered whole: {kind}", n)
    verdict.figure("answered whole, all", len(whole))
    verdict.figure("hang-ups", len(left))
    verdict.figure("refused or cut by the upstream", len(told_bad) + len(cut))
    how = collections.Counter(c.seen.status or "no answer" for c in lost)
    verdict.figure("lost with a killed gateway", f"{len(lost)} {dict(how)}")
    verdict.figure("rows in the ledger", len(books.rows))
    _reasons(verdict, books, calls, lost)
    _answered(verdict, books, whole)
    _left(verdict, books, left)
    _unpaid(verdict, books, told_bad, cut, lost)
    _keys(verdict, books, whole)
    _accounts(stand, verdict, books, database)
    _check(verdict, gateway)


def _reasons(verdict, books, calls, lost):
    """Why calls were not answered; and that Postgres was no reason."""
    unexplained = [(c.n, c.kind, c.seen.status, c.seen.body[:200]) for c in lost if not books.near_a_kill(c)]
    verdict.promise("no call was lost but with a killed gateway", not unexplained, some(unexplained))
    for away in books.run.outages:
        # After a restart without the database nobody is known, so what comes after a kill is not counted here.
        ends = min([k.begun for k in books.run.kills if k.begun > away.begun] + [away.ended])
        during = [c for c in calls if away.begun <= c.seen.begun and c.seen.ended <= ends and not c.seen.left]
        failed = [(c.n, c.seen.status, c.seen.body[:200]) for c in during if c.seen.status not in (200, 400)]
        slowest = max((c.seen.ended - c.seen.begun for c in during), default=0)
        verdict.figure(f"Postgres {away.what}: calls in its first {ends - away.begun:.1f} s", len(during))
        verdict.figure(f"Postgres {away.what}: slowest of them", f"{slowest:.2f} s")
        verdict.promise(f"no known key was refused because Postgres was {away.what}", during and not failed, some(failed))
        verdict.promise(f"nor did one wait for Postgres, {away.what}, longer than {PATIENT:.0f} s", slowest < PATIENT,
                        some([(c.n, c.kind, f"{c.seen.ended - c.seen.begun:.1f} s") for c in during
                              if c.seen.ended - c.seen.begun >= PATIENT]))


def _answered(verdict, books, whole):
    missing = [c.seen.id for c in whole if books.by_id[c.seen.id] == 0]
    doubled = [n for n, rows in books.by_n.items() if len(rows) > 1] + [i for i, n in books.by_id.items() if n > 1]
    verdict.promise("every call answered whole has a row", not missing, some(missing))
    verdict.promise("no call has two", not doubled, some(doubled))
    verdict.promise("no row is of a call nobody made", not books.strange, some(books.strange))
    wrong = []
    for call in whole:
        for row in books.by_n[call.n]:
            prompt, tokens = books.served(call)
            key = hashlib.sha256(call.key.encode()).hexdigest()
            right = (call.seen.id, key, "success", prompt, tokens, price(prompt, tokens))
            said = tuple(row[f] for f in
                         ("request_id", "key", "status", "prompt_tokens", "completion_tokens", "spend_nanos"))
            if right != said:
                wrong.append((call.n, call.kind, right, said))
    verdict.promise("each of these rows says what the upstream counted", not wrong, some(wrong))


def _left(verdict, books, left):
    without, outside, sums = [], [], [0, 0, 0]
    for call in left:
        served, rows = books.served(call), books.by_n[call.n]
        if served and not rows and not books.near_a_kill(call, LINGERS):
            without.append((call.n, call.kind))
        for row in rows:
            seen, billed, made = call.seen.events, row["completion_tokens"], served[1] if served else 0
            sums = [sums[0] + seen, sums[1] + billed, sums[2] + made]
            # Whoever left before the upstream was asked owes nothing.
            paid = row["spend_nanos"] == price(row["prompt_tokens"], billed) and (row["prompt_tokens"] > 0) == bool(served)
            if not seen <= billed <= made or not paid:
                outside.append((call.n, call.kind, seen, billed, made, row))
    verdict.figure("hang-ups: tokens seen <= billed <= made upstream", " <= ".join(map(str, sums)))
    verdict.promise("every hang-up has a row, unless the gateway was killed", not without, some(without))
    verdict.promise("each is billed between what was seen and what was made", not outside, some(outside))


def _unpaid(verdict, books, told_bad, cut, lost):
    wrong = [c.n for c in told_bad if [(r["status"], r["spend_nanos"]) for r in books.by_n[c.n]] != [("failure", 0)]]
    verdict.promise("a call the upstream refused has one row and costs nothing", not wrong, some(wrong))
    wrong = [(c.n, books.by_n[c.n]) for c in cut
             if [(r["status"], r["completion_tokens"]) for r in books.by_n[c.n]] != [("cut", books.served(c)[1])]]
    verdict.promise("a call the upstream cut off has one row, of what it made", not wrong, some(wrong))
    # Written down and killed before the last byte was out: billed as what it was. Killed before: not billed.
    billed = [c for c in lost if books.by_n[c.n]]
    verdict.figure("lost calls that are in the ledger / that the upstream made and nobody owes",
                   f"{len(billed)} / {sum(1 for c in lost if not books.by_n[c.n] and books.served(c))}")
    wrong = []
    for call in billed:
        prompt, tokens = books.served(call) or (0, 0)
        row = books.by_n[call.n][0]
        if row["completion_tokens"] > tokens or row["spend_nanos"] > price(max(prompt, row["prompt_tokens"]), tokens):
            wrong.append((call.n, call.kind, prompt, tokens, row))
    verdict.promise("no lost call is billed for more than the upstream made", not wrong, some(wrong))


def _keys(verdict, books, whole):
    """Key by key: what the upstream counted for answered calls, and what their rows sum up to."""
    counted, ledger = collections.defaultdict(lambda: [0] * 4), collections.defaultdict(lambda: [0] * 4)
    for call in whole:
        prompt, tokens = books.served(call)
        for at, n in enumerate((1, prompt, tokens, price(prompt, tokens))):
            counted[call.key][at] += n
    hashes = {hashlib.sha256(k["key"].encode()).hexdigest(): k["key"] for k in books.run.keys}
    ids = {c.seen.id for c in whole}
    for row in books.rows:
        if row["request_id"] in ids:
            for at, n in enumerate((1, row["prompt_tokens"], row["completion_tokens"], row["spend_nanos"])):
                ledger[hashes[row["key"]]][at] += n
    print(f"    {'key':<8} {'calls':>7} {'prompt':>10} {'answer':>8} {'nano-dollars':>15}   ledger: the same four")
    for at, key in enumerate(books.run.keys):
        c, r = counted[key["key"]], ledger[key["key"]]
        print(f"    soak-{at:<3} {c[0]:>7} {c[1]:>10} {c[2]:>8} {c[3]:>15}   {r[0]:>7} {r[1]:>10} {r[2]:>8} {r[3]:>15}")
    verdict.promise("key by key, ledger and upstream have the same tokens and money", counted == ledger)


def _accounts(stand, verdict, books, database):
    """Every account beside the sum of the rows that name its subject."""
    sums = collections.Counter()
    for row in books.rows:
        names = [("gateway", ""), ("key", row["key"]), ("user", row["user_id"]), ("team", row["team_id"]),
                 ("end_user", row["end_user"])]
        names += [("tag", tag) for tag in set(row["tags"])]
        if row["user_id"] and row["team_id"]:
            names.append(("member", f"{row['team_id']}\t{row['user_id']}"))
        for name in names:
            if name[1] is not None:
                sums[name] += row["spend_nanos"]
    kept = {(a["kind"], a["id"]): a["spend_nanos"] for a in
            stand.postgres.rows(database, "SELECT kind, id, spend_nanos FROM tk_accounts WHERE model = ''")}
    for name in [n for n, nanos in sums.items() if not nanos and n not in kept]:
        del sums[name]
    wrong = [(name, kept.get(name), sums.get(name)) for name in kept.keys() | sums.keys()
             if kept.get(name, 0) != sums.get(name, 0)]
    kinds = collections.Counter(kind for kind, _ in kept)
    verdict.figure("accounts", ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    verdict.promise("every account is the sum of its rows", not wrong, some(wrong))


def _check(verdict, gateway):
    done = gateway.command("ledger", "check", "--config", str(gateway.config))
    for line in (done.stdout + done.stderr).strip().splitlines():
        print(f"    | {line}")
    sound = done.returncode == 0 and "\nsound" in done.stdout
    verdict.promise("`tollkeeper ledger check` says that the books are sound", sound, done.returncode)
    waiting = "waiting in the spool   0 (0 bytes)" in done.stdout
    verdict.promise("nothing waits in the spool", waiting)
