/* A small llama in C, made to be judged: one file, float32 throughout, and a bug for every flag below.
 *
 *     cc -std=c99 -O2 -march=native -Idumps/writers tests/engines/c/llama.c -o engine -lm
 *     ./engine --model model.gguf --tokens 1,2,3 --decode 2 --dump run [--print] [--order feature-token]
 *     ./engine --model model.gguf --tokens 1,2,3 --logits logits [--parts 2,1]
 *
 * It reads a GGUF file of the llama architecture (F32, F16, Q4_0, Q4_1, Q8_0), runs the tokens as one step and decodes
 * greedily, and records every point with firstdiff.h. --print writes one line of statistics a tensor, as people put
 * them into engines; --order feature-token dumps every tensor with its axes reversed, and says so nowhere.
 *
 * -DCRASH_AT=n makes it abort in step n, whose tokens are read by then, and whose tensors are not.
 *
 * Bugs: -DBUG=name plants one, -DONLY_LAYER=n in that layer alone. `first` is the first site that goes
 * wrong where all layers have the bug.
 *
 *     name                     first                what it does
 *     -- tokens and positions
 *     token_of_before          embd                 embeds each token's predecessor, the first token itself
 *     rope_position            Qcur_rope-0@1        positions begin at 0 again when decoding
 *     -- weights
 *     weight_reinterpreted     Qcur-0               reads the row-major [out, in] data of every product as [in, out]
 *     weight_of_other_layer    ffn_out-0            takes ffn_down from the next layer (the last one from the first)
 *     head_transposed          result_output        reads the output matrix as [n_embd, n_vocab]
 *     bias_missing             Qcur-0               leaves out every bias
 *     -- dequantisation
 *     nibble_order             first 4-bit tensor   values 2i and 2i+1 in place of i and i+16 share a byte
 *     min_missing              first Q4_1 tensor    ignores the blocks' minima
 *     f16_subnormal            first with such      halves f16 numbers below 2^-14
 *     -- norms
 *     norm_eps                 attn_norm-0          epsilon 1e-3
 *     norm_eps_outside         attn_norm-0          adds epsilon after the root
 *     norm_weight_missing      attn_norm-0          leaves out the norms' weights
 *     final_norm_missing       result_norm          leaves out the last norm
 *     -- rope
 *     rope_pairing             Qcur_rope-0          turns (i, i + D/2) together in place of (2i, 2i + 1)
 *     rope_base                Qcur_rope-0          base 10000 whatever the file says
 *     rope_factors             Qcur_rope-0          ignores rope_freqs
 *     -- attention
 *     gqa_map                  kq-0                 head h reads KV head h mod n_kv in place of h / group
 *     scale_missing            kq_soft_max-0        leaves out 1 / sqrt(D)
 *     mask_missing             kq_soft_max-0        lets every token see the later ones
 *     head_merge               kqv_out-0            merges heads as [head, token] in place of [token, head]
 *     -- KV cache
 *     cache_stale              k_cache-0@1          leaves a decoded token's key as that of the token before it
 *     cache_overwritten        v_cache-0@1          writes a decoded token's value over the first one
 *     -- feed-forward
 *     gate_up_swapped          ffn_swiglu-0         silu(up) * gate
 *     gelu_for_silu            ffn_swiglu-0         the other activation
 *     -- residuals
 *     residual_missing         ffn_inp-0            leaves out the attention's residual
 *     residual_clipped         first sum beyond 3   clamps both residual sums to [-3, 3]
 *     -- output
 *     logits_of_wrong_row      result_output        gives each token its predecessor's logits
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "firstdiff.h"

#ifndef BUG
#define BUG none
#endif
#ifndef ONLY_LAYER
#define ONLY_LAYER -1
#endif
#ifndef CRASH_AT
#define CRASH_AT -1
#endif
#ifndef ACCUMULATORS
#define ACCUMULATORS 16 /* partial sums of a product; 1 is the naive loop */
#endif

enum {
    bug_none, bug_token_of_before, bug_rope_position, bug_weight_reinterpreted, bug_weight_of_other_layer,
    bug_head_transposed, bug_bias_missing, bug_nibble_order, bug_min_missing, bug_f16_subnormal, bug_norm_eps,
    bug_norm_eps_outside, bug_norm_weight_missing, bug_final_norm_missing, bug_rope_pairing, bug_rope_base,
    bug_rope_factors, bug_gqa_map, bug_scale_missing, bug_mask_missing, bug_head_merge, bug_cache_stale,
    bug_cache_overwritten, bug_gate_up_swapped, bug_gelu_for_silu, bug_residual_missing, bug_residual_clipped,
    bug_logits_of_wrong_row
};
#define JOINED(a, b) a##b
#define NUMBER_OF(bug) JOINED(bug_, bug)
#define OUTSIDE -1 /* the layer of what is outside the layers */

/* whether a bug is planted here */
static bool planted(int bug, int layer) {
    return bug == NUMBER_OF(BUG) && (ONLY_LAYER < 0 || layer == ONLY_LAYER);
}

static void die(const char *what, const char *which) {
    fprintf(stderr, "engine: %s: %s\n", which, what);
    exit(1);
}

static void *allocate(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size);
    if (!p) die("out of memory", "allocate");
    return p;
}

/* ------------------------------------------------------------------ the file */

typedef struct { const uint8_t *at, *end; const char *path; } cursor;

static const uint8_t *take(cursor *c, uint64_t n) {
    if (n > (uint64_t)(c->end - c->at)) die("is cut short", c->path);
    const uint8_t *p = c->at;
    c->at += n;
    return p;
}

static uint64_t number(const uint8_t *p, int bytes) { /* little-endian */
    uint64_t x = 0;
    for (int i = 0; i < bytes; i++) x |= (uint64_t)p[i] << 8 * i;
    return x;
}

static uint32_t u32(cursor *c) { return (uint32_t)number(take(c, 4), 4); }
static uint64_t u64(cursor *c) { return number(take(c, 8), 8); }

static float f32_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static double f64_of(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }

/* a name, cut to what fits in 128 bytes */
static void text(cursor *c, char out[128]) {
    uint64_t n = u64(c);
    const uint8_t *s = take(c, n);
    size_t kept = n < 127 ? (size_t)n : 127;
    memcpy(out, s, kept);
    out[kept] = 0;
}

/* bytes of a metadata value of each type, 0 for strings (8) and arrays (9) */
static const int value_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* skip a metadata value; returns it if it is a number, and the string into out if it is one */
static double value(cursor *c, uint32_t type, char out[128]) {
    out[0] = 0;
    if (type > 12) die("has metadata of an unknown type", c->path);
    if (type == 8) { text(c, out); return 0; }
    if (type == 9) {
        uint32_t of = u32(c);
        for (uint64_t n = u64(c); n > 0; n--) { char unused[128]; value(c, of, unused); }
        out[0] = 0;
        return 0;
    }
    uint64_t bits = number(take(c, (uint64_t)value_bytes[type]), value_bytes[type]);
    return type == 6 ? (double)f32_of((uint32_t)bits) : type == 12 ? f64_of(bits) : (double)bits;
}

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q8_0 = 8 };

typedef struct {
    int type, layer;
    int64_t in, out;     /* row-major [out, in]; a vector has out = 1 */
    const uint8_t *data; /* NULL: the file has no such tensor */
} weight;

typedef struct {
    weight attn_norm, attn_q, attn_k, attn_v, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down;
    weight q_bias, k_bias, v_bias, output_bias, gate_bias, up_bias, down_bias;
} layer_weights;

typedef struct {
    int n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab;
    float eps;
    double rope_base, rope_scale;
    weight token_embd, output_norm, output, rope_freqs;
    layer_weights *layers;
} model;

static int block_size(int type) { return type == F32 || type == F16 ? 1 : 32; }
static int block_bytes(int type) {
    return type == F32 ? 4 : type == F16 ? 2 : type == Q4_0 ? 18 : type == Q4_1 ? 20 : 34;
}
static size_t row_bytes(const weight *w) { return (size_t)(w->in / block_size(w->type) * block_bytes(w->type)); }

/* where the model keeps the tensor of a name; NULL if it needs none such */
static weight *place_of(model *m, const char *name) {
    static const struct { const char *name; size_t at; } parts[] = {
#define PART(name, field) {name, offsetof(layer_weights, field)}
        PART("attn_norm.weight", attn_norm), PART("attn_q.weight", attn_q), PART("attn_k.weight", attn_k),
        PART("attn_v.weight", attn_v), PART("attn_output.weight", attn_output), PART("ffn_norm.weight", ffn_norm),
        PART("ffn_gate.weight", ffn_gate), PART("ffn_up.weight", ffn_up), PART("ffn_down.weight", ffn_down),
        PART("attn_q.bias", q_bias), PART("attn_k.bias", k_bias), PART("attn_v.bias", v_bias),
        PART("attn_output.bias", output_bias), PART("ffn_gate.bias", gate_bias), PART("ffn_up.bias", up_bias),
        PART("ffn_down.bias", down_bias),
    };
    int layer = 0, length = 0;
    if (strcmp(name, "token_embd.weight") == 0) return &m->token_embd;
    if (strcmp(name, "output_norm.weight") == 0) return &m->output_norm;
    if (strcmp(name, "output.weight") == 0) return &m->output;
    if (strcmp(name, "rope_freqs.weight") == 0) return &m->rope_freqs;
    if (sscanf(name, "blk.%d.%n", &layer, &length) != 1 || length == 0 || layer < 0 || layer >= m->n_layer) return NULL;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcmp(name + length, parts[i].name) == 0) {
            weight *w = (weight *)((char *)&m->layers[layer] + parts[i].at);
            w->layer = layer;
            return w;
        }
    return NULL;
}

static void expect(const weight *w, int64_t out, int64_t in, const char *name) {
    if (!w->data || w->out != out || w->in != in) die("is missing, or of another shape", name);
}

static void expect_if_there(const weight *w, int64_t n, const char *name) {
    if (w->data) expect(w, 1, n, name);
}

/* a count that the file gives */
static int count(double x, const char *path) {
    if (!(x >= 1 && x <= 1 << 24)) die("gives a count that cannot be", path);
    return (int)x;
}

/* map a GGUF file; the weights stay in it */
static model load(const char *path) {
    model m = {.rope_base = 10000.0, .rope_scale = 1.0};
    int file = open(path, O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0 || status.st_size == 0) die("cannot be read", path);
    const uint8_t *map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (map == MAP_FAILED) die("cannot be mapped", path);
    close(file);
    cursor c = {map, map + status.st_size, path};
    if (memcmp(take(&c, 4), "GGUF", 4) != 0 || u32(&c) < 2) die("is no GGUF file of version 2 or 3", path);
    uint64_t n_tensors = u64(&c), n_values = u64(&c), alignment = 32;

    // hyperparameters
    double factor = 1.0;
    for (uint64_t i = 0; i < n_values; i++) {
        char key[128], string[128];
        text(&c, key);
        uint32_t type = u32(&c);
        double x = value(&c, type, string);
        if (strcmp(key, "general.architecture") == 0 && strcmp(string, "llama") != 0) die("is no llama", path);
        if (strcmp(key, "general.alignment") == 0) alignment = (uint64_t)count(x, path);
        if (strcmp(key, "llama.block_count") == 0) m.n_layer = count(x, path);
        if (strcmp(key, "llama.embedding_length") == 0) m.n_embd = count(x, path);
        if (strcmp(key, "llama.feed_forward_length") == 0) m.n_ff = count(x, path);
        if (strcmp(key, "llama.attention.head_count") == 0) m.n_head = count(x, path);
        if (strcmp(key, "llama.attention.head_count_kv") == 0) m.n_head_kv = count(x, path);
        if (strcmp(key, "llama.attention.key_length") == 0) m.head_dim = count(x, path);
        if (strcmp(key, "llama.attention.layer_norm_rms_epsilon") == 0) m.eps = (float)x;
        if (strcmp(key, "llama.rope.freq_base") == 0) m.rope_base = x;
        if (strcmp(key, "llama.rope.scaling.type") == 0 && strcmp(string, "linear") != 0) die("scales otherwise", path);
        if (strcmp(key, "llama.rope.scaling.factor") == 0) factor = x;
    }
    if (m.n_layer < 1 || m.n_embd < 1 || m.n_head < 1 || m.n_ff < 1) die("lacks hyperparameters", path);
    if (m.n_head_kv < 1) m.n_head_kv = m.n_head;
    if (m.head_dim < 1) m.head_dim = m.n_embd / m.n_head;
    if (factor != 0) m.rope_scale = 1.0 / factor;
    m.layers = allocate((size_t)m.n_layer, sizeof *m.layers);

    // tensors: their offsets count from the end of this table, aligned
    const uint8_t *table = c.at;
    for (int pass = 0; pass < 2; pass++) {
        const uint64_t base = ((uint64_t)(c.at - map) + alignment - 1) / alignment * alignment; // known in pass 1
        c.at = table;
        for (uint64_t i = 0; i < n_tensors; i++) {
            char name[128];
            text(&c, name);
            uint32_t n_dims = u32(&c);
            uint64_t ne[4] = {1, 1, 1, 1};
            if (n_dims > 4) die("has a tensor of more than 4 dimensions", path);
            for (uint32_t d = 0; d < n_dims; d++) ne[d] = u64(&c);
            int type = (int)u32(&c);
            uint64_t offset = u64(&c);
            weight *w = place_of(&m, name);
            if (pass == 0 || !w) continue;
            bool known = type == F32 || type == F16 || type == Q4_0 || type == Q4_1 || type == Q8_0;
            if (!known) die("is of a type that is not read", name);
            if (ne[0] > 1 << 24 || ne[1] > 1 << 24 || ne[2] * ne[3] != 1) die("is too large", name);
            if (ne[0] % (uint64_t)block_size(type)) die("has rows that are no whole blocks", name);
            w->type = type, w->in = (int64_t)ne[0], w->out = (int64_t)ne[1];
            cursor data = {map, c.end, name};
            take(&data, base), take(&data, offset);
            w->data = take(&data, row_bytes(w) * (uint64_t)w->out);
        }
    }

    // shapes
    int q = m.n_head * m.head_dim, kv = m.n_head_kv * m.head_dim;
    m.n_vocab = (int)m.token_embd.out;
    if (!m.output.data) m.output = m.token_embd; // tied
    m.token_embd.layer = m.output_norm.layer = m.output.layer = m.rope_freqs.layer = OUTSIDE;
    expect(&m.token_embd, m.n_vocab, m.n_embd, "token_embd.weight");
    expect(&m.output, m.n_vocab, m.n_embd, "output.weight");
    expect(&m.output_norm, 1, m.n_embd, "output_norm.weight");
    expect_if_there(&m.rope_freqs, m.head_dim / 2, "rope_freqs.weight");
    for (int l = 0; l < m.n_layer; l++) {
        const layer_weights *w = &m.layers[l];
        expect(&w->attn_norm, 1, m.n_embd, "attn_norm.weight"), expect(&w->ffn_norm, 1, m.n_embd, "ffn_norm.weight");
        expect(&w->attn_q, q, m.n_embd, "attn_q.weight"), expect(&w->attn_k, kv, m.n_embd, "attn_k.weight");
        expect(&w->attn_v, kv, m.n_embd, "attn_v.weight"), expect(&w->attn_output, m.n_embd, q, "attn_output.weight");
        expect(&w->ffn_gate, m.n_ff, m.n_embd, "ffn_gate.weight");
        expect(&w->ffn_up, m.n_ff, m.n_embd, "ffn_up.weight");
        expect(&w->ffn_down, m.n_embd, m.n_ff, "ffn_down.weight");
        expect_if_there(&w->q_bias, q, "attn_q.bias"), expect_if_there(&w->k_bias, kv, "attn_k.bias");
        expect_if_there(&w->v_bias, kv, "attn_v.bias"), expect_if_there(&w->output_bias, m.n_embd, "attn_output.bias");
        expect_if_there(&w->gate_bias, m.n_ff, "ffn_gate.bias"), expect_if_there(&w->up_bias, m.n_ff, "ffn_up.bias");
        expect_if_there(&w->down_bias, m.n_embd, "ffn_down.bias");
    }
    return m;
}

/* ------------------------------------------------------------------ dequantisation */

static float half(const uint8_t *p, int layer) {
    int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float x = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                             : ldexpf((float)fraction, planted(bug_f16_subnormal, layer) ? -25 : -24);
    return bits & 0x8000 ? -x : x;
}

/* row `at` of w -> y [in] */
static void row(float *y, const weight *w, int64_t at) {
    const uint8_t *p = w->data + (size_t)at * row_bytes(w);
    int64_t blocks = w->in / block_size(w->type);
    for (int64_t b = 0; b < blocks; b++, p += block_bytes(w->type)) {
        if (w->type == F32) { y[b] = f32_of((uint32_t)number(p, 4)); continue; }
        float d = half(p, w->layer), min = 0.0f;
        if (w->type == F16) { y[b] = d; continue; }
        float *v = y + 32 * b;
        if (w->type == Q8_0) { // d, 32 codes
            for (int i = 0; i < 32; i++) v[i] = d * (float)(p[2 + i] < 128 ? p[2 + i] : p[2 + i] - 256);
            continue;
        }
        // d, for Q4_1 the minimum, 16 bytes of two codes: the first half of the block in the low bits
        const uint8_t *codes = p + (w->type == Q4_1 ? 4 : 2);
        int zero = w->type == Q4_1 ? 0 : 8;
        if (w->type == Q4_1 && !planted(bug_min_missing, w->layer)) min = half(p + 2, w->layer);
        for (int i = 0; i < 16; i++) {
            int low = planted(bug_nibble_order, w->layer) ? 2 * i : i;
            int high = planted(bug_nibble_order, w->layer) ? 2 * i + 1 : i + 16;
            v[low] = d * (float)((codes[i] & 15) - zero) + min;
            v[high] = d * (float)((codes[i] >> 4) - zero) + min;
        }
    }
}

/* all of w -> [out * in], to be freed; NULL for a tensor that the file does not have */
static float *all(const weight *w) {
    if (!w->data) return NULL;
    float *y = allocate((size_t)(w->in * w->out), sizeof *y);
    for (int64_t o = 0; o < w->out; o++) row(y + o * w->in, w, o);
    return y;
}

/* ------------------------------------------------------------------ operations */

/* a [n], b [n] -> their product, in several partial sums: the error of one float grows with n */
static float dot(const float *a, const float *b, int64_t n) {
    float sums[ACCUMULATORS] = {0};
    int64_t i = 0;
    for (; i + ACCUMULATORS <= n; i += ACCUMULATORS)
        for (int j = 0; j < ACCUMULATORS; j++) sums[j] += a[i + j] * b[i + j];
    for (int j = 0; i < n; i++, j++) sums[j] += a[i] * b[i];
    for (int width = ACCUMULATORS / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++) sums[j] += sums[j + width];
    return sums[0];
}

/* x [T, in] @ W [out, in] transposed + bias [out] -> y [T, out] */
static void linear(float *y, const float *x, int T, const weight *w, const weight *bias) {
    bool other = planted(w->layer == OUTSIDE ? bug_head_transposed : bug_weight_reinterpreted, w->layer);
    float *offsets = bias && !planted(bug_bias_missing, bias->layer) ? all(bias) : NULL;
    float *whole = other ? all(w) : NULL, *of = allocate((size_t)w->in, sizeof *of);
    for (int64_t o = 0; o < w->out; o++) {
        if (other) for (int64_t i = 0; i < w->in; i++) of[i] = whole[i * w->out + o];
        else row(of, w, o);
        for (int t = 0; t < T; t++) y[t * w->out + o] = dot(x + t * w->in, of, w->in) + (offsets ? offsets[o] : 0.0f);
    }
    free(of), free(whole), free(offsets);
}

/* x [T, n] -> y [T, n] */
static void rms_norm(float *y, const float *x, int T, const weight *w, float eps) {
    float *scales = all(w);
    bool plain = planted(bug_norm_weight_missing, w->layer);
    int64_t n = w->in;
    if (planted(bug_norm_eps, w->layer)) eps = 1e-3f;
    for (int t = 0; t < T; t++, x += n, y += n) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
        float mean = (float)(sum / (double)n);
        float scale = 1.0f / (planted(bug_norm_eps_outside, w->layer) ? sqrtf(mean) + eps : sqrtf(mean + eps));
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * (plain ? 1.0f : scales[i]);
    }
    free(scales);
}

/* x [T, H, D] -> y [T, H, D]: the pairs of each head turn by their angles */
static void rope(float *y, const float *x, int T, int H, const model *m, int first_position, int layer) {
    int D = m->head_dim;
    float *factors = planted(bug_rope_factors, layer) ? NULL : all(&m->rope_freqs);
    double base = planted(bug_rope_base, layer) ? 10000.0 : m->rope_base;
    bool half_split = planted(bug_rope_pairing, layer);
    if (planted(bug_rope_position, layer)) first_position = 0;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < D / 2; i++) {
            double angle = (first_position + t) * pow(base, -2.0 * i / D) * m->rope_scale;
            if (factors) angle /= factors[i];
            float c = (float)cos(angle), s = (float)sin(angle);
            int first = half_split ? i : 2 * i, second = half_split ? i + D / 2 : 2 * i + 1;
            for (int h = 0; h < H; h++) {
                const float *in = x + ((int64_t)t * H + h) * D;
                float *out = y + ((int64_t)t * H + h) * D;
                out[first] = in[first] * c - in[second] * s;
                out[second] = in[first] * s + in[second] * c;
            }
        }
    free(factors);
}

/* kq [H, T, S] -> p [H, T, S]: each query's weights of the keys up to its own; 0 for the others */
static void soft_max(float *p, const float *kq, int H, int T, int S, float scale, int layer) {
    for (int r = 0; r < H * T; r++, p += S, kq += S) {
        int seen = planted(bug_mask_missing, layer) ? S : S - T + r % T + 1;
        float top = -INFINITY;
        double sum = 0;
        for (int s = 0; s < seen; s++) top = fmaxf(top, kq[s] * scale);
        for (int s = 0; s < S; s++) sum += p[s] = s < seen ? expf(kq[s] * scale - top) : 0.0f;
        for (int s = 0; s < seen; s++) p[s] *= (float)(1.0 / sum);
    }
}

static float silu(float x) { return x / (1.0f + expf(-x)); }
static float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }

/* x [n] + y [n] -> out [n] */
static void add(float *out, const float *x, const float *y, int64_t n, int layer) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = x[i] + y[i];
        if (planted(bug_residual_clipped, layer)) out[i] = fminf(fmaxf(out[i], -3.0f), 3.0f);
    }
}

/* ------------------------------------------------------------------ recording */

static bool print_statistics, feature_first;

/* one line a tensor, as people print them: [layer 3] Qcur rms=0.01234 min=-1.2 max=3.4 mean=0.001 first 10: [...] */
static void print_line(const char *point, int layer, const float *x, int64_t n) {
    double squares = 0, sum = 0;
    float min = INFINITY, max = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        squares += (double)x[i] * x[i], sum += x[i];
        min = fminf(min, x[i]), max = fmaxf(max, x[i]);
    }
    double rms = sqrt(squares / (double)n), mean = sum / (double)n;
    if (layer != OUTSIDE) printf("[layer %d] ", layer);
    printf("%s rms=%.6g min=%.6g max=%.6g mean=%.6g first 10: [", point, rms, min, max, mean);
    for (int64_t i = 0; i < n && i < 10; i++) printf(i ? ", %.6g" : "%.6g", x[i]);
    printf("]\n");
}

/* x [a, b, c], or [a, b] with c = 0 */
static void record(const char *point, int layer, const float *x, int64_t a, int64_t b, int64_t c) {
    int64_t deep = c ? c : 1, n = a * b * deep;
    if (print_statistics) print_line(point, layer, x, n);
    if (!feature_first) { firstdiff_put(point, layer, x, FD_F32, a, b, c); return; }
    float *y = allocate((size_t)n, sizeof *y); // [c, b, a]
    for (int64_t i = 0; i < a; i++)
        for (int64_t j = 0; j < b; j++)
            for (int64_t k = 0; k < deep; k++) y[(k * b + j) * a + i] = x[(i * b + j) * deep + k];
    firstdiff_put(point, layer, y, FD_F32, c ? c : b, c ? b : a, c ? a : 0);
    free(y);
}

/* ------------------------------------------------------------------ the forward pass */

typedef struct { float *k, *v; } kv_cache; /* of a layer: [n_ctx, H_kv, D] each */

/* keys [S, H_kv, D], values [S, H_kv, D], q [T, H, D] -> o [T, H * D] */
static void attention(float *o, const float *q, const kv_cache *cache, int T, int S, const model *m, int layer) {
    int H = m->n_head, H_kv = m->n_head_kv, D = m->head_dim;
    float *kq = allocate((size_t)H * T * S, sizeof *kq), *p = allocate((size_t)H * T * S, sizeof *p);
    float *column = allocate((size_t)S, sizeof *column);

    // scores of each head's queries with the keys of its KV head, unscaled
    for (int h = 0; h < H; h++) {
        int g = planted(bug_gqa_map, layer) ? h % H_kv : h / (H / H_kv);
        for (int t = 0; t < T; t++)
            for (int s = 0; s < S; s++) {
                const float *query = q + ((int64_t)t * H + h) * D, *key = cache->k + ((int64_t)s * H_kv + g) * D;
                kq[((int64_t)h * T + t) * S + s] = dot(query, key, D);
            }
    }
    record("kq", layer, kq, H, T, S);

    // attention weights
    soft_max(p, kq, H, T, S, planted(bug_scale_missing, layer) ? 1.0f : 1.0f / sqrtf((float)D), layer);
    record("kq_soft_max", layer, p, H, T, S);

    // weighted sums of the values, heads side by side
    for (int h = 0; h < H; h++)
        for (int d = 0; d < D; d++) {
            int g = h / (H / H_kv);
            for (int s = 0; s < S; s++) column[s] = cache->v[((int64_t)s * H_kv + g) * D + d];
            for (int t = 0; t < T; t++) {
                int64_t at = planted(bug_head_merge, layer) ? (int64_t)h * T + t : (int64_t)t * H + h;
                o[at * D + d] = dot(p + ((int64_t)h * T + t) * S, column, S);
            }
        }
    record("kqv_out", layer, o, T, (int64_t)H * D, 0);
    free(kq), free(p), free(column);
}

/* x [T, n_embd] -> x [T, n_embd], with `past` tokens in the cache */
static void block(float *x, int T, int past, const model *m, kv_cache *cache, int layer) {
    const layer_weights *w = &m->layers[layer];
    int H = m->n_head, H_kv = m->n_head_kv, D = m->head_dim, S = past + T;
    int64_t n = (int64_t)T * m->n_embd, n_ff = (int64_t)T * m->n_ff;
    int64_t n_q = (int64_t)T * H * D, n_kv = (int64_t)T * H_kv * D;
    float *h = allocate((size_t)n, sizeof *h), *inp = allocate((size_t)n, sizeof *inp);
    float *q = allocate((size_t)n_q, sizeof *q), *q_turned = allocate((size_t)n_q, sizeof *q);
    float *k = allocate((size_t)n_kv, sizeof *k), *k_turned = allocate((size_t)n_kv, sizeof *k);
    float *v = allocate((size_t)n_kv, sizeof *v);
    float *gate = allocate((size_t)n_ff, sizeof *gate), *up = allocate((size_t)n_ff, sizeof *up);

    // attention norm
    rms_norm(h, x, T, &w->attn_norm, m->eps);
    record("attn_norm", layer, h, T, m->n_embd, 0);

    // queries, keys and values
    linear(q, h, T, &w->attn_q, &w->q_bias);
    record("Qcur", layer, q, T, H, D);
    linear(k, h, T, &w->attn_k, &w->k_bias);
    record("Kcur", layer, k, T, H_kv, D);
    linear(v, h, T, &w->attn_v, &w->v_bias);
    record("Vcur", layer, v, T, H_kv, D);

    // positions
    rope(q_turned, q, T, H, m, past, layer);
    record("Qcur_rope", layer, q_turned, T, H, D);
    rope(k_turned, k, T, H_kv, m, past, layer);
    record("Kcur_rope", layer, k_turned, T, H_kv, D);

    // the cache
    int64_t size = (int64_t)H_kv * D, key_at = past * size, value_at = past * size;
    memcpy(cache->k + key_at, k_turned, (size_t)n_kv * sizeof *k);
    if (planted(bug_cache_stale, layer) && past > 0)
        memcpy(cache->k + key_at, cache->k + key_at - size, (size_t)size * sizeof *k);
    if (planted(bug_cache_overwritten, layer)) value_at = 0;
    memcpy(cache->v + value_at, v, (size_t)n_kv * sizeof *v);
    record("k_cache", layer, cache->k, S, H_kv, D);
    record("v_cache", layer, cache->v, S, H_kv, D);

    // attention
    attention(q, q_turned, cache, T, S, m, layer);
    linear(h, q, T, &w->attn_output, &w->output_bias);
    record("attn_out", layer, h, T, m->n_embd, 0);
    if (planted(bug_residual_missing, layer)) memset(x, 0, (size_t)n * sizeof *x);
    add(inp, h, x, n, layer);
    record("ffn_inp", layer, inp, T, m->n_embd, 0);

    // feed-forward
    rms_norm(h, inp, T, &w->ffn_norm, m->eps);
    record("ffn_norm", layer, h, T, m->n_embd, 0);
    linear(gate, h, T, &w->ffn_gate, &w->gate_bias);
    record("ffn_gate", layer, gate, T, m->n_ff, 0);
    linear(up, h, T, &w->ffn_up, &w->up_bias);
    record("ffn_up", layer, up, T, m->n_ff, 0);
    for (int64_t i = 0; i < n_ff; i++)
        gate[i] = planted(bug_gate_up_swapped, layer) ? silu(up[i]) * gate[i]
                  : planted(bug_gelu_for_silu, layer) ? gelu(gate[i]) * up[i]
                                                      : silu(gate[i]) * up[i];
    record("ffn_swiglu", layer, gate, T, m->n_ff, 0);
    weight down = w->ffn_down;
    if (planted(bug_weight_of_other_layer, layer)) down = m->layers[(layer + 1) % m->n_layer].ffn_down;
    linear(h, gate, T, &down, &w->down_bias);
    record("ffn_out", layer, h, T, m->n_embd, 0);
    add(x, h, inp, n, layer);
    record("l_out", layer, x, T, m->n_embd, 0);
    free(h), free(inp), free(q), free(q_turned), free(k), free(k_turned), free(v), free(gate), free(up);
}

/* tokens [T] -> the likeliest next token */
static int32_t forward(const int32_t *tokens, int T, int past, const model *m, kv_cache *caches, FILE *out) {
    float *x = allocate((size_t)T * m->n_embd, sizeof *x), *h = allocate((size_t)T * m->n_embd, sizeof *h);
    float *logits = allocate((size_t)T * m->n_vocab, sizeof *logits);

    // embedding
    int before = planted(bug_token_of_before, OUTSIDE) ? 1 : 0;
    for (int t = 0; t < T; t++) row(x + (int64_t)t * m->n_embd, &m->token_embd, tokens[t < before ? t : t - before]);
    record("embd", OUTSIDE, x, T, m->n_embd, 0);

    for (int layer = 0; layer < m->n_layer; layer++) block(x, T, past, m, &caches[layer], layer);

    // logits of every token
    rms_norm(h, x, T, &m->output_norm, m->eps);
    if (planted(bug_final_norm_missing, OUTSIDE)) memcpy(h, x, (size_t)T * m->n_embd * sizeof *h);
    record("result_norm", OUTSIDE, h, T, m->n_embd, 0);
    linear(logits, h, T, &m->output, NULL);
    if (planted(bug_logits_of_wrong_row, OUTSIDE))
        memmove(logits + m->n_vocab, logits, (size_t)(T - 1) * m->n_vocab * sizeof *logits);
    record("result_output", OUTSIDE, logits, T, m->n_vocab, 0);
    if (out && fwrite(logits, sizeof *logits, (size_t)T * m->n_vocab, out) != (size_t)T * m->n_vocab)
        die("cannot be written", "--logits");

    // greedy
    const float *last = logits + (int64_t)(T - 1) * m->n_vocab;
    int32_t best = 0;
    for (int i = 1; i < m->n_vocab; i++) if (last[i] > last[best]) best = i;
    free(x), free(h), free(logits);
    return best;
}

/* "1,2,3" -> tokens [n] */
static int read_tokens(const char *list, int32_t **tokens, int n_vocab) {
    int n = 0;
    *tokens = allocate(strlen(list) + 1, sizeof **tokens);
    for (char *end; *list; list = *end == ',' ? end + 1 : end) {
        long token = strtol(list, &end, 10);
        if (end == list || token < 0 || token >= n_vocab) die("is no list of this model's tokens", list);
        (*tokens)[n++] = (int32_t)token;
    }
    if (n == 0) die("give some", "--tokens");
    return n;
}

int main(int argc, char **argv) {
    const char *path = NULL, *list = "", *dump = NULL, *order = "", *written = NULL, *counts = NULL;
    int decode = 0;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (more && strcmp(argv[i], "--model") == 0) path = argv[++i];
        else if (more && strcmp(argv[i], "--tokens") == 0) list = argv[++i];
        else if (more && strcmp(argv[i], "--decode") == 0) decode = atoi(argv[++i]);
        else if (more && strcmp(argv[i], "--dump") == 0) dump = argv[++i];
        else if (more && strcmp(argv[i], "--logits") == 0) written = argv[++i];
        else if (more && strcmp(argv[i], "--parts") == 0) counts = argv[++i];
        else if (more && strcmp(argv[i], "--order") == 0) order = argv[++i];
        else if (strcmp(argv[i], "--print") == 0) print_statistics = true;
        else die("is not understood", argv[i]);
    }
    feature_first = strcmp(order, "feature-token") == 0;
    if (!path || decode < 0 || (*order && !feature_first))
        die("--model M --tokens 1,2,3 [--decode N] [--dump DIR] [--logits FILE [--parts 2,1]] [--print] "
            "[--order feature-token]", "usage");

    model m = load(path);
    int32_t *tokens;
    int T = read_tokens(list, &tokens, m.n_vocab), past = 0, given = T;
    kv_cache *caches = allocate((size_t)m.n_layer, sizeof *caches);
    for (int l = 0; l < m.n_layer; l++) {
        size_t size = (size_t)(T + decode) * m.n_head_kv * m.head_dim;
        caches[l].k = allocate(size, sizeof(float)), caches[l].v = allocate(size, sizeof(float));
    }

    FILE *out = written ? fopen(written, "wb") : NULL;
    if (written && !out) die("cannot be written", written);
    firstdiff_open(dump, "llama.c");
    firstdiff_about("arithmetic", "f32");
    while (counts && *counts && past < given) {  // so many of the tokens at a time, and nothing after them
        char *end;
        long count = strtol(counts, &end, 10);
        if (end == counts || count < 1 || count > given - past) die("does not add up to the tokens", "--parts");
        forward(tokens + past, (int)count, past, &m, caches, out);
        past += (int)count, counts = *end == ',' ? end + 1 : end;
    }
    if (counts) decode = -1;
    for (int step = 0; step <= decode; step++) {
        firstdiff_step(tokens, T, past);
        if (step == CRASH_AT) fputs("engine: about to crash\n", stderr), abort();
        int32_t next = forward(tokens, T, past, &m, caches, out);
        fprintf(stderr, "next token: %d\n", next);
        past += T, T = 1, tokens[0] = next;
    }
    firstdiff_close();
    if (out && fclose(out) != 0) die("cannot be written", written);

    for (int l = 0; l < m.n_layer; l++) free(caches[l].k), free(caches[l].v);
    free(caches), free(tokens), free(m.layers);
    return 0;
}
