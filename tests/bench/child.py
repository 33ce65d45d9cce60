"""Run one command and print its exit code, wall clock, peak memory and output as one line of JSON.

A process of its own, and a small one: on Linux a child's peak starts from that of the process that made it, and
RUSAGE_CHILDREN is the largest of all children that a process ever had.
"""

import json
import resource
import subprocess
import sys
import time

start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True, check=False)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
sys.stdout.write(json.dumps({"code": done.returncode, "seconds": seconds, "peak": peak, "out": done.stdout}) + "\n")
