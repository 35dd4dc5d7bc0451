"""What ``swavg`` and ``python -m swavg`` run."""

from __future__ import annotations

import sys


def run() -> None:
    """The command line. Interrupted while it is still being imported, it has begun nothing."""
    try:
        from swavg.cli import main
    except KeyboardInterrupt:
        print("swavg: interrupted; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    main()


if __name__ == "__main__":
    run()
