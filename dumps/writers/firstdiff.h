/* firstdiff.h: record what an engine computes as a firstdiff trace. C99 and C++ on POSIX, this file alone.
 *
 *     firstdiff_open(NULL, "my-engine");                  // once; NULL: the folder that $FIRSTDIFF_DUMP names
 *     firstdiff_step(tokens, n_tokens, first_position);   // at the top of each forward pass
 *     firstdiff_put("Qcur", layer, q, FD_F32, T, H, D);   // after each value; layer -1: none; 0: no further axis
 *     firstdiff_close();                                  // at the end
 *
 * Without a folder every call does nothing, so that they can stay in the code. Tensors are contiguous, row-major and
 * little-endian. Each step is written whole and renamed into place when the next one begins: a crash loses the step
 * in hand and nothing before it. What goes wrong is said on stderr and never stops the engine; after an error of the
 * disk nothing more is recorded. Characters that a name cannot have become '_'. Call from one thread at a time.
 */
#ifndef FIRSTDIFF_H
#define FIRSTDIFF_H
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef enum { FD_F64, FD_F32, FD_F16, FD_BF16, FD_I64, FD_I32, FD_I16, FD_I8 } firstdiff_dtype;
typedef struct { char *s; size_t n, room; } fd_text; /* a text that grows */
typedef struct {
    char dir[3072], names[64];
    fd_text engine, layouts, steps;    /* parts of trace.json */
    fd_text header, tokens, positions; /* of the step in hand */
    int n_steps, failed, repeated;
    FILE *data; /* the tensors of the step in hand, NULL between steps */
    uint64_t bytes;
} fd_run;

__attribute__((weak)) fd_run *fd_the_run; /* weak: one for the program, however many files include this one */

static inline fd_run *fd_recording(void) { return fd_the_run && !fd_the_run->failed ? fd_the_run : NULL; }

static inline void fd_fail(const char *what, const char *path) {
    if (fd_the_run) fd_the_run->failed = 1;
    fprintf(stderr, "firstdiff: %s: %s (%s): nothing more is recorded\n", path, what, strerror(errno));
}

static inline void fd_add(fd_text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    size_t wanted = t->n + 1 + (size_t)vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (wanted > t->room) {
        char *s = (char *)realloc(t->s, 2 * wanted);
        if (!s) { fd_fail("out of memory", fd_the_run->dir); return; }
        t->s = s, t->room = 2 * wanted;
    }
    va_start(args, format);
    t->n += (size_t)vsnprintf(t->s + t->n, t->room - t->n, format, args);
    va_end(args);
}

/* a JSON string; what is not ASCII becomes '?' */
static inline void fd_quote(fd_text *t, const char *before, const char *text) {
    fd_add(t, "%s\"", before);
    for (const unsigned char *s = (const unsigned char *)text; *s; s++)
        fd_add(t, *s < ' ' ? "\\u%04x" : *s == '"' || *s == '\\' ? "\\%c" : "%c", *s < 127 ? *s : '?');
    fd_add(t, "\"");
}

static inline void fd_path(char path[4096], const char *name, int step) {
    snprintf(path + snprintf(path, 3072, "%s/", fd_the_run->dir), 1024, name, step);
}

/* close a file that was written under a temporary name, and give it its own */
static inline void fd_place(FILE *file, const char *from, const char *to) {
    int bad = ferror(file);
    if ((fclose(file) != 0) | bad) fd_fail("cannot be written", from);
    else if (rename(from, to) != 0) fd_fail("cannot be put in place", to);
}

static inline void fd_manifest(const char *complete) {
    fd_run *run = fd_the_run;
    char path[4096], temporary[4096];
    fd_path(path, "trace.json", 0), fd_path(temporary, "trace.json.tmp", 0);
    FILE *file = fopen(temporary, "wb");
    if (!file) { fd_fail("cannot be written", temporary); return; }
    fprintf(file, "{\n  \"format\": \"firstdiff-trace\",\n  \"version\": 1,\n  \"engine\": {%s},\n"
            "  \"complete\": %s,\n  \"names\": \"%s\",\n  \"layouts\": {%s},\n  \"steps\": [%s\n  ]\n}\n",
            run->engine.s, complete, run->names, run->layouts.s, run->steps.s);
    fd_place(file, temporary, path);
}

/* write the step in hand: the header that safetensors wants first, then what was put */
static inline void fd_end_step(void) {
    fd_run *run = fd_recording();
    if (!run || !run->data) return;
    char path[4096], temporary[4096], data[4096], block[65536];
    fd_path(path, "step-%03d.safetensors", run->n_steps);
    fd_path(temporary, "step-%03d.safetensors.tmp", run->n_steps);
    fd_path(data, "step-%03d.data.safetensors.tmp", run->n_steps);
    fd_add(&run->header, "}");
    while (run->header.n % 8) fd_add(&run->header, " ");
    FILE *file = fopen(temporary, "wb");
    if (!file) { fd_fail("cannot be written", temporary); return; }
    for (int i = 0; i < 8; i++) fputc((int)((uint64_t)run->header.n >> 8 * i & 255), file);
    fwrite(run->header.s, 1, run->header.n, file);
    rewind(run->data);
    for (size_t n; (n = fread(block, 1, sizeof block, run->data)) > 0; run->bytes -= n) fwrite(block, 1, n, file);
    fclose(run->data), run->data = NULL, remove(data);
    fd_place(file, temporary, path);
    if (run->bytes) fd_fail("lost tensors", path);
    const char *form = "%s\n    {\"tokens\": [%s], \"positions\": [%s]}";
    fd_add(&run->steps, form, run->n_steps++ ? "," : "", run->tokens.s, run->positions.s);
    if (!run->failed) fd_manifest("false");
}

/* Begin a trace; an earlier one in the folder is removed. dir NULL: the folder in $FIRSTDIFF_DUMP, if it is set. */
static inline void firstdiff_open(const char *dir, const char *engine) {
    if (!dir) dir = getenv("FIRSTDIFF_DUMP");
    if (!dir || !*dir || fd_the_run) return;
    fd_run *run = strlen(dir) > 3000 ? NULL : (fd_run *)calloc(1, sizeof(fd_run));
    if (!(fd_the_run = run)) { fd_fail("no memory, or too long a path", dir); return; }
    strcpy(run->dir, dir), strcpy(run->names, "firstdiff");
    for (char *c = run->dir + 1; *c; c++) if (*c == '/') { *c = 0, mkdir(run->dir, 0777), *c = '/'; }
    if (mkdir(run->dir, 0777) != 0 && errno != EEXIST) { fd_fail("cannot be made", dir); return; }
    char path[4096];
    fd_path(path, "trace.json", 0), remove(path);
    for (int i = 0; fd_path(path, "step-%03d.safetensors", i), remove(path) == 0; i++) {}
    fd_quote(&run->engine, "\"name\": ", engine), fd_add(&run->layouts, ""), fd_add(&run->steps, "");
    fd_manifest("false");
}

/* Say more of the engine: firstdiff_about("arithmetic", "f32"); also "version" and "backend". */
static inline void firstdiff_about(const char *key, const char *text) {
    if (fd_recording()) fd_quote(&fd_the_run->engine, ", ", key), fd_quote(&fd_the_run->engine, ": ", text);
}

/* Say whose names the tensors have, if not firstdiff's: "llama.cpp" or "hf". */
static inline void firstdiff_names(const char *whose) {
    if (fd_recording()) snprintf(fd_the_run->names, sizeof fd_the_run->names, "%s", whose);
}

/* Say the axes of a point, outermost first, if not firstdiff's: firstdiff_layout("Qcur", "head token head_dim"). */
static inline void firstdiff_layout(const char *point, const char *axes) {
    fd_text *layouts = fd_recording() ? &fd_the_run->layouts : NULL;
    if (!layouts) return;
    fd_quote(layouts, layouts->n ? ", " : "", point), fd_add(layouts, ": [\"");
    for (const char *c = axes; *c; c++) fd_add(layouts, *c == ' ' ? "\", \"" : "%c", *c);
    fd_add(layouts, "\"]");
}

/* Begin a forward pass over n tokens at consecutive positions; what the pass before it recorded is written. */
static inline void firstdiff_step(const int32_t *tokens, int64_t n, int64_t first_position) {
    fd_end_step();
    fd_run *run = fd_recording();
    char path[4096];
    if (!run || n <= 0) return;
    run->header.n = run->tokens.n = run->positions.n = run->bytes = 0;
    for (int64_t i = 0; i < n; i++) {
        fd_add(&run->tokens, i ? ", %ld" : "%ld", (long)tokens[i]);
        fd_add(&run->positions, i ? ", %ld" : "%ld", (long)(first_position + i));
    }
    const char *form = "{\"__metadata__\":{\"tokens\":\"[%s]\",\"positions\":\"[%s]\"}";
    fd_add(&run->header, form, run->tokens.s, run->positions.s);
    fd_path(path, "step-%03d.data.safetensors.tmp", run->n_steps);
    if (!(run->data = fopen(path, "w+b"))) fd_fail("cannot be written", path);
}

/* Record a tensor of up to three axes; 0 stands for an axis that it does not have. */
static inline void firstdiff_put(const char *point, int layer, const void *data, firstdiff_dtype dtype, int64_t a,
                                 int64_t b, int64_t c) {
    static const char *const names[] = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8"};
    static const int sizes[] = {8, 4, 2, 2, 8, 4, 2, 1};
    fd_run *run = fd_recording();
    if (!run || !run->data) return;
    char plain[240], key[256], shape[80];
    snprintf(plain, sizeof plain, "%s", point);
    for (char *s = plain; *s; s++) if (*s < ' ' || *s > '~' || strchr("\"/\\@", *s)) *s = '_';
    snprintf(key, sizeof key, layer < 0 ? ",\"%s\":{" : ",\"%s-%d\":{", plain, layer);
    int known = strstr(run->header.s, key) != NULL;
    if (known && !run->repeated++) fprintf(stderr, "firstdiff: %s put twice in a step: the first is kept\n", point);
    if (known) return;
    snprintf(shape, sizeof shape, c ? "%ld,%ld,%ld" : b ? "%ld,%ld" : a ? "%ld" : "", (long)a, (long)b, (long)c);
    uint64_t bytes = (uint64_t)((a ? a : 1) * (b ? b : 1) * (c ? c : 1) * sizes[dtype]), end = run->bytes + bytes;
    fd_add(&run->header, "%s\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}", key, names[dtype], shape,
           (unsigned long long)run->bytes, (unsigned long long)end);
    if (fwrite(data, 1, bytes, run->data) != bytes) fd_fail("cannot write tensors", run->dir);
    run->bytes = end;
}

/* Write the last step, and mark the trace complete. */
static inline void firstdiff_close(void) {
    fd_end_step();
    if (fd_recording()) fd_manifest("true");
    fd_run *run = fd_the_run;
    if (!run) return;
    fd_the_run = NULL;
    if (run->data) fclose(run->data);
    free(run->engine.s), free(run->layouts.s), free(run->steps.s);
    free(run->header.s), free(run->tokens.s), free(run->positions.s), free(run);
}

#endif
