"""`cast inspect`, `search`, `push` and `pocket`: what is there, here and on the Hub."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cast import hub
from cast.commands.given import Answer, Say, hub_token
from cast.errors import TaskError
from cast.inspection import as_json, inspected
from cast.pocket import registry
from cast.progress import OnProgress


def inspect(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast inspect`."""
    kind, facts = inspected(args.what, hub_token())
    say(f"{args.what}: {kind}")
    for key, value in facts.items():
        if not isinstance(value, dict | list):
            say(f"  {key:<20} {value}")
    return {"name": args.what, "kind": kind, **facts}


def search(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast search`."""
    hits = hub.search_adapters(args.model, limit=args.limit, token=hub_token())
    for hit in hits:
        say(f"{hit.repo_id:<60} rank {hit.rank:<4} {hit.downloads:>9,} downloads  {hit.licence}")
    if not hits:
        say(f"The Hub lists no LoRA whose configuration names {args.model} as its base.")
    return {"model": args.model, "adapters": as_json([asdict(hit) for hit in hits])}


def push(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast push`."""
    address = hub.push(Path(args.folder), args.repo, hub_token(), private=args.private)
    say(f"Published: {address}")
    return {"folder": args.folder, "repo": args.repo, "address": address}


def pocket(args: argparse.Namespace, say: Say, on_progress: OnProgress) -> Answer:
    """`cast pocket list`, `build` and `verify`."""
    from cast.pocket import build

    if args.action == "build":
        build.build(args.only, on_progress)
        return _pocket_list(say)
    if args.action == "verify":
        checks = build.verify(args.only, on_progress)
        for check in checks:
            verdict = "ok  " if check.ok else "DIFF"
            say(f"{verdict} {check.what:<50} recorded {check.recorded:.4f}  now {check.measured:.4f}")
        wrong = [check.what for check in checks if not check.ok]
        if wrong:
            raise TaskError(
                f"{len(wrong)} of {len(checks)} recorded scores are not reproduced: {', '.join(wrong)}."
            )
        say(f"All {len(checks)} recorded scores are reproduced.")
        return {"checks": as_json([asdict(check) for check in checks])}
    return _pocket_list(say)


def _pocket_list(say: Say) -> Answer:
    listed: list[dict[str, Any]] = []
    for name in registry.models():
        card = dict(registry.model_card(name))
        shipped = registry.adapters(name)
        tasks = [adapter.task for adapter in shipped]
        say(f"pocket:{name:<10} {card.get('architecture', '')}, adapters: {', '.join(tasks) or 'none'}")
        listed.append({"name": f"pocket:{name}", "card": as_json(card), "adapters": tasks})
    if not listed:
        say("The pocket zoo is not built here; run `python -m cast pocket build`.")
    return {"models": listed}
