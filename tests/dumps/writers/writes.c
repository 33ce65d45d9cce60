// Records three small steps with firstdiff.h: what test_writers.py expects to read back. C99 and C++.
//
// Usage: writes [FOLDER] [kill]. Without a folder $FIRSTDIFF_DUMP decides. "kill": the process kills itself in the
// middle of step 2. With -DPARTS=2 the tensors are put by a second file, compiled from this one with -DPART=2.
#include <signal.h>

#include "firstdiff.h"

void put_tensors(const int32_t *tokens, int t, int step, int killed);

#if !defined PARTS || PART == 2
void put_tensors(const int32_t *tokens, int t, int step, int killed) {
    float values[24];
    double doubles[6];
    const uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x7bff}, brains[] = {0x3f80, 0xc000, 0x0001, 0x7f7f};
    for (int i = 0; i < 8 * t; i++) values[i] = (float)(i * 7 % 31) * 0.125f - 1.5f + (float)step;
    for (int i = 0; i < 2 * t; i++) doubles[i] = 1.0 / (3 + i + step);
    firstdiff_put("embd", -1, values, FD_F32, t, 4, 0);
    firstdiff_put("Qcur", 0, values, FD_F32, 2, t, 4);
    firstdiff_put("Kcur", 11, halves, FD_F16, 1, 2, 2);
    if (killed) raise(SIGKILL);
    firstdiff_put("Vcur", 11, brains, FD_BF16, 4, 0, 0);
    firstdiff_put("ids/of\"it", -1, tokens, FD_I32, t, 0, 0);
    firstdiff_put("scores", 3, doubles, FD_F64, t, 2, 0);
    firstdiff_put("embd", -1, doubles, FD_F64, t, 2, 0); // twice: the first is kept
}
#endif

#if !defined PARTS || PART == 1
int main(int argc, char **argv) {
    const int32_t prompt[] = {1, 29896, 2}, one[] = {13}, two[] = {7};
    int kill_at = argc > 2 && strcmp(argv[2], "kill") == 0 ? 2 : -1;
    firstdiff_open(argc > 1 ? argv[1] : NULL, "an \"odd\" \\ engine\n\x01");
    firstdiff_about("arithmetic", "f32");
    firstdiff_layout("Qcur", "head token head_dim");
    firstdiff_step(prompt, 3, 0);
    put_tensors(prompt, 3, 0, kill_at == 0);
    firstdiff_step(one, 1, 3);
    put_tensors(one, 1, 1, kill_at == 1);
    firstdiff_step(two, 1, 4);
    put_tensors(two, 1, 2, kill_at == 2);
    firstdiff_close();
    return 0;
}
#endif
