"""Known vulnerabilities of the packages that are installed beside the interpreter that runs this, by pip-audit.

Exits with 1 where one is found. What could not be asked about is listed, and is no reason to fail: a machine without
the advisory service must pass. With ``--strict``, as before a release, it is one (2).
"""

from __future__ import annotations

import json
import subprocess
import sys

OWN = "sona-pg"
TIMEOUT_SECONDS = 600


def main() -> int:
    """Ask, and say what came of it."""
    strict = "--strict" in sys.argv[1:]
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--local"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return _not_asked(f"no answer within {TIMEOUT_SECONDS} s", strict)
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return _not_asked(last, strict)
    packages = [package for package in found if package["name"] != OWN]
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version"
            print(f"audit: {package['name']} {package['version']}: {vulnerability['id']}, mended in {fixed}")
    # pip-audit calls a package that the service does not know "skipped", and the whole clean: it is not.
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    asked = len(packages) - len(skipped)
    print(f"audit: {asked} of {len(packages)} packages asked about, {len(vulnerable)} vulnerable")
    if vulnerable:
        return 1
    if skipped:
        names = ", ".join(skipped) if asked else "any of them"
        return _not_asked(f"the advisory service cannot be reached, or does not know {names}", strict)
    return 0


def _not_asked(reason: str, strict: bool) -> int:
    print(f"audit: NOT AUDITED, so that vulnerabilities may be there unseen: {reason}", file=sys.stderr)
    return 2 if strict else 0


if __name__ == "__main__":
    sys.exit(main())
