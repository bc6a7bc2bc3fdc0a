"""Runs every test that SECURITY.md names, in one run, and counts what was survived, refused and served.

    CI_NIGHTLY=1 python benchmarks/security.py

Without CI_NIGHTLY=1 the tests that take minutes are left out. A test that counts its inputs says how many it refused
and answered; every other one that passes is a fault survived.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the counts; the exit code is pytest's."""
    tests = sorted(set(re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))))
    with tempfile.TemporaryDirectory() as folder:
        report, began = Path(folder, "report.xml"), time.monotonic()
        command = [sys.executable, "-m", "pytest", *sys.argv[1:], *tests, f"--junitxml={report}"]
        exit_code = subprocess.run(command, cwd=ROOT).returncode
        seconds = time.monotonic() - began
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    counts = Counter[str]()
    for case in cases:
        properties = [(one.get("name", ""), int(one.get("value", 0))) for one in case.iter("property")]
        if case.find("skipped") is not None:
            counts["tests skipped"] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            counts["tests failed"] += 1
        else:
            counts.update(dict(properties) or {"faults survived": 1})
    for name in ("faults survived", "bad inputs refused", "requests served", "tests failed", "tests skipped"):
        print(f"{name:<20}{counts[name]:>8,}")
    print(f"{len(cases):,} tests of {len(tests)} names in {seconds / 60:.1f} minutes")
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
