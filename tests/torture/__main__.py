"""`make torture`: everything that can go wrong, for so many minutes, and the table of what came of it.

scripts/torture [--minutes N] [--seed S] [--only PART]… [--backend KIND]… [--cases N] [--first] [--write]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time

from tests.torture import report
from tests.torture.core import Budget, Tally
from tests.torture.parts import LINES, PARTS, Part

BACKENDS = sorted({kind for part in PARTS for kind in part.backends})


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would volctl
    wanted = arguments()
    chosen = [(part, kind) for part in PARTS for kind in part.backends if _is_chosen(wanted, part, kind)]
    budget = Budget(wanted.seed, wanted.minutes * 60, stop_at_first=wanted.first)
    print(f"torture: seed {wanted.seed}, {len(chosen)} parts in {wanted.minutes:g} minutes", flush=True)
    results, wrong = {}, 0
    for number, (part, kind) in enumerate(chosen):
        share = budget.share(sum(other.weight for other, _ in chosen[number:]), part.weight)
        tally = _run(part, kind, share.limited(wanted.cases or part.cases))
        line = part.line(kind)
        if tally.runs or tally.wrong:
            results[line.key] = report.cells(tally, wanted.seed)
        wrong += len(tally.wrong)
        if wanted.write:
            report.write(LINES, results)
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description="break volctl's promises, if that can be done")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="in all, shared by the parts (30)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="S", help="of a run to repeat")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", action="append", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS, metavar="KIND", help=f"of {', '.join(BACKENDS)}"
    )
    parser.add_argument("--cases", type=int, metavar="N", help="runs of each part; else what its line in the table has")
    parser.add_argument("--first", action="store_true", help="end a part at its first violation")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    return parser.parse_args()


def _is_chosen(wanted: argparse.Namespace, part: Part, kind: str) -> bool:
    chosen = part.name in wanted.only if wanted.only else not part.on_request
    if not chosen or (wanted.backend and kind not in wanted.backend):
        return False
    if (part.needs_root or kind == "reflink") and os.geteuid() != 0:
        print(f"torture: {part.name} on {kind} needs root", file=sys.stderr)
        return False
    return True


def _run(part: Part, kind: str, budget: Budget) -> Tally:
    begun = time.monotonic()
    tally = part.run(kind, budget)
    runs, violations, *_ = report.cells(tally, budget.seed)
    print(f"{part.name} on {kind}: {runs}; {violations} violations; {time.monotonic() - begun:.0f} s", flush=True)
    for sentence in tally.wrong:
        print(f"  VIOLATION {sentence}", flush=True)
    return tally


if __name__ == "__main__":
    sys.exit(main())
