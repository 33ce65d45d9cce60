"""Records three small steps with firstdiff_writer.py: what test_writers.py expects to read back.

Usage: writes.py [FOLDER] [kill]. Without a folder $FIRSTDIFF_DUMP decides. "kill": the process kills itself in the
middle of step 2. Only the standard library is used.
"""

import os
import signal
import sys
from array import array

import firstdiff_writer

STEPS = (([1, 29896, 2], 0), ([13], 3), ([7], 4))


class Bits:
    """16-bit floats as numpy-likes give them."""

    class dtype:  # noqa: N801 - an array's attribute
        name = ""

    def __init__(self, name: str, shape: tuple[int, ...], bits: list[int]) -> None:
        self.dtype = type("dtype", (), {"name": name})
        self.shape = shape
        self.bits = bits

    def tobytes(self) -> bytes:
        return array("H", self.bits).tobytes()


def shaped(code: str, values: list[float], *shape: int) -> memoryview:
    return memoryview(array(code, values)).cast("B").cast(code, shape)


folder, kill = [*sys.argv[1:], None, None][:2]
dump = firstdiff_writer.Writer(
    folder, 'an "odd" \\ engine\n\x01', layouts={"Qcur": ["head", "token", "head_dim"]}, arithmetic="f32"
)
for step, (tokens, position) in enumerate(STEPS):
    t = len(tokens)
    values = [(i * 7 % 31) * 0.125 - 1.5 + step for i in range(8 * t)]
    doubles = [1.0 / (3 + i + step) for i in range(2 * t)]
    dump.step(tokens, position)
    dump.put("embd", shaped("f", values[: 4 * t], t, 4))
    dump.put("Qcur", shaped("f", values, 2, t, 4), 0)
    dump.put("Kcur", Bits("float16", (1, 2, 2), [0x3C00, 0xC000, 0x0001, 0x7BFF]), 11)
    if step == 2 and kill:
        os.kill(os.getpid(), signal.SIGKILL)
    dump.put("Vcur", Bits("bfloat16", (4,), [0x3F80, 0xC000, 0x0001, 0x7F7F]), 11)
    dump.put('ids/of"it', shaped("i", tokens, t))
    dump.put("scores", shaped("d", doubles, t, 2), 3)
    dump.put("embd", shaped("d", doubles, t, 2))  # twice: the first is kept
dump.close()
