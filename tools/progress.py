"""Run pip with its output in a log and a progress bar on the terminal; standard library only.

usage: python tools/progress.py LOCK LOG SITE_PACKAGES COMMAND...

Half of the bar is packages that pip has collected, half is packages that it has installed, both
against the pins in LOCK. Without a terminal it prints nothing. Ends with the command's status.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path


def share_done(lock: Path, log: Path, site_packages: Path) -> float:
    """How much of the work is done, 0 to 1."""
    lines = lock.read_text().splitlines()
    packages = max(1, sum("==" in line and not line.startswith("#") for line in lines))
    output = log.read_text(errors="replace").splitlines()
    collected = sum(line.startswith(("Collecting ", "Requirement already")) for line in output)
    installed = sum(1 for _ in site_packages.glob("*.dist-info"))
    return (min(collected, packages) + min(installed, packages)) / (2 * packages)


def draw(share: float, seconds: float) -> None:
    """Draw the bar over the last one."""
    width = max(10, min(50, shutil.get_terminal_size().columns - 30))
    full = round(width * share)
    bar = "#" * full + "." * (width - full)
    print(f"\r      [{bar}] {share:4.0%} {seconds:4.0f} s", end="", flush=True)


def main(lock: Path, log: Path, site_packages: Path, command: list[str]) -> int:
    """Run `command` and draw until it ends; returns its exit status."""
    began = time.monotonic()
    with log.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if sys.stdout.isatty():
                draw(share_done(lock, log, site_packages), time.monotonic() - began)
            time.sleep(0.2)
    if sys.stdout.isatty():
        if process.returncode == 0:
            draw(1.0, time.monotonic() - began)
        print()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
