#!/usr/bin/env python3
"""Counts tests for check.sh, by backend.

  collect JOB TESTLOG.json   a line for each suite: job, backend, passed, failed, skipped
  tell TESTLOG.json          what failed, and why tests were skipped
  summary RESULTS.tsv        the table, then "N passed, N failed, N skipped"; exit 1 if any failed

A program that prints Check's summary counts as many tests as that says, any other as one. Where all of them passed and the leak
sanitizer then failed itself, which it does now and then beside another runtime's threads, its search for leaks counts as skipped.
"""
import json
import re
import sys
from collections import defaultdict

CHECKS = re.compile(r"^\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)", re.M)
GOOD, SKIPPED = {"OK", "EXPECTEDFAIL"}, {"SKIP"}


def read_log(path):
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except OSError:
        return []


def lost_leaks(test):
    output = test.get("stderr") or ""
    return "LeakSanitizer has encountered a fatal error" in output and "ERROR: " not in output and "runtime error" not in output


def count(test):
    """passed, failed, skipped of one program"""
    if test["result"] in SKIPPED:
        return 0, 0, 1
    found = CHECKS.search(test.get("stdout") or "")
    total, bad = (int(found[1]), int(found[2]) + int(found[3])) if found else (1, 0)
    if found and not bad and lost_leaks(test):
        return total, 0, 1
    if test["result"] not in GOOD:
        bad = max(bad, 1)  # a crash or a sanitizer's report after the tests themselves passed
    return max(total - bad, 0), bad, 0


def backend_of(name):
    """the suite in "project:suite / test" """
    return name.split(" / ")[0].split(":")[-1] if " / " in name else "-"


def collect(job, path):
    sums = defaultdict(lambda: [0, 0, 0])
    for test in read_log(path):
        for i, number in enumerate(count(test)):
            sums[backend_of(test["name"])][i] += number
    if not sums:
        sums["no tests ran"] = [0, 1, 0]
    for backend, numbers in sorted(sums.items()):
        print(job, backend, *numbers, sep="\t")


def tell(path):
    skips = defaultdict(int)
    for test in read_log(path):
        output = (test.get("stdout") or "") + (test.get("stderr") or "")
        if test["result"] in SKIPPED:
            reason = next((line for line in output.splitlines() if line.startswith("skipped")), "skipped: no reason given")
            skips[backend_of(test["name"]), reason] += 1
        elif test["result"] not in GOOD:
            print(f"  {test['result'] if count(test)[1] else 'not searched for leaks'}: {test['name']}")
            print("\n".join("    " + line for line in output.strip().splitlines()[-20:]))
    for (backend, reason), number in sorted(skips.items()):
        print(f"  {backend}: {number} {reason}")


def summary(path):
    totals = [0, 0, 0]
    print(f"{'job':<10} {'backend':<24} {'passed':>7} {'failed':>7} {'skipped':>7}")
    with open(path, encoding="utf-8") as file:
        for line in file:
            job, backend, *numbers = line.rstrip("\n").split("\t")
            totals = [a + int(b) for a, b in zip(totals, numbers)]
            print(f"{job:<10} {backend:<24} " + " ".join(f"{n:>7}" for n in numbers))
    print()
    print("{} passed, {} failed, {} skipped".format(*totals))
    return 1 if totals[1] else 0


def main(command, *arguments):
    return {"collect": collect, "tell": tell, "summary": summary}[command](*arguments)


sys.exit(main(*sys.argv[1:]))
