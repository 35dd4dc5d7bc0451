"""Commands on a pseudo-terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading

from command_line import SWAVG


def on_a_terminal(args, columns=100):
    """Run with stderr on a pseudo-terminal; what it showed, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    # COLUMNS, if somebody exported it, would say another width.
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [*SWAVG, *map(str, args)], stderr=theirs, stdout=subprocess.PIPE,
        env={**environment, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    shown = bytearray()

    def collect():
        try:
            while data := os.read(ours, 4096):
                shown.extend(data)
        except OSError:
            pass

    reader = threading.Thread(target=collect)
    reader.start()
    process.communicate(timeout=60)
    reader.join(10)
    os.close(ours)
    return shown.decode(), process.returncode
