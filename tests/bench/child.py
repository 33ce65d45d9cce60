"""Run one command and print its exit code, wall clock, peak memory and output as one line of JSON.

A process of its own, and a small one: on Linux a child's peak starts from that of the process that made it, and
RUSAGE_CHILDREN is the largest of all children that a process ever had. Pages of mapped files count in the peak; the
process's own memory, which Linux tells, is asked for every few milliseconds.
"""

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

start = time.perf_counter()
running = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
own = [0]
ended = threading.Event()


def watch() -> None:
    """Note how many bytes are the process's own, from time to time."""
    while not ended.wait(0.02):
        try:
            told = dict(line.split(":", 1) for line in Path(f"/proc/{running.pid}/status").read_text().splitlines())
            own.append(1024 * int(told["RssAnon"].split()[0]))
        except (OSError, KeyError, ValueError):
            return


watching = threading.Thread(target=watch)
watching.start()
out, _ = running.communicate()
ended.set()
seconds = time.perf_counter() - start
watching.join()
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
said = {"code": running.returncode, "seconds": seconds, "peak": peak, "own": max(own), "out": out}
sys.stdout.write(json.dumps(said) + "\n")
