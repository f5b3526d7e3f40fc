#!/usr/bin/env python3
"""Reads batches of events from standard input with the schema of Langfuse's older API.

Exit code 1 when one cannot be read, or holds a field that the schema does not have.
"""

import json
import sys

from langfuse.api.resources.ingestion.types import CreateGenerationBody, TraceBody

BODIES = {"trace-create": TraceBody, "generation-create": CreateGenerationBody}


def main() -> int:
    wrong = []
    events = [event for batch in json.load(sys.stdin) for event in json.loads(batch)["batch"]]
    for event in events:
        kind = event.get("type")
        body = BODIES.get(kind)
        if body is None or not isinstance(event.get("id"), str) or not isinstance(event.get("timestamp"), str):
            wrong.append(f"not an event: {event}")
            continue
        fields = getattr(body, "model_fields", None) or body.__fields__
        names = set(fields) | {getattr(f, "alias", None) or "" for f in fields.values()}
        wrong += [f"{kind} has no field {name}" for name in event["body"] if name not in names]
        try:
            body.parse_obj(event["body"])
        except Exception as e:  # noqa: BLE001 - whatever the schema says
            wrong.append(f"{kind}: {e}")
    print(f"{len(events)} events of the older API")
    print("".join(f"{line}\n" for line in wrong), end="")
    return 1 if wrong or len(events) < 4 else 0


if __name__ == "__main__":
    sys.exit(main())
