/* digits-report LABELS.npy TRUTH.npy MODEL.npz OUT.png: how well components match the digits, and what their means
 * look like. For tools/quickstart.sh. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

enum { DIGITS = 10, SIDE = 8, CELL = 14, GAP = 10, ACROSS = 5, BRIGHTEST = 16, COMPONENTS_MAX = 1000 };
enum { FONT_WIDTH = 3, FONT_HEIGHT = 5, DOT = 3, LABEL = FONT_HEIGHT * DOT + 5 };

/* An octal digit is a line of three dots, the top one first. */
static const unsigned font[DIGITS] = {075557, 026227, 071747, 071717, 055711, 074717, 074757, 071111, 075757, 075717};

/* ---- agreement ---------------------------------------------------------------------------- */

typedef struct table {
    int64_t n, k;
    int64_t (*count)[DIGITS]; /* [k][digit] */
} table;

static double pairs(int64_t n) {
    return 0.5 * (double)n * (double)(n - 1);
}

/* Share of rows whose digit is the commonest one of their component. */
static double purity(const table *t) {
    int64_t agree = 0;
    for (int64_t c = 0; c < t->k; c++) {
        int64_t best = 0;
        for (int g = 0; g < DIGITS; g++) best = t->count[c][g] > best ? t->count[c][g] : best;
        agree += best;
    }
    return (double)agree / (double)t->n;
}

/* Hubert and Arabie's index: pairs of rows that both groupings keep together, against chance. */
static double adjusted_rand(const table *t) {
    double together = 0, by_component = 0, by_digit = 0;
    int64_t digit[DIGITS] = {0};
    for (int64_t c = 0; c < t->k; c++) {
        int64_t sum = 0;
        for (int g = 0; g < DIGITS; g++) {
            together += pairs(t->count[c][g]);
            sum += t->count[c][g];
            digit[g] += t->count[c][g];
        }
        by_component += pairs(sum);
    }
    for (int g = 0; g < DIGITS; g++) by_digit += pairs(digit[g]);
    double chance = by_component * by_digit / pairs(t->n), most = 0.5 * (by_component + by_digit);
    return most > chance ? (together - chance) / (most - chance) : 1.0;
}

static const char *fill(table *t, const double *labels, const double *truth) {
    for (int64_t i = 0; i < t->n; i++) {
        if (labels[i] < 0 || labels[i] >= (double)t->k) return "a label names no component of the model";
        if (truth[i] < 0 || truth[i] >= DIGITS) return "a true label is not a digit";
        t->count[(int64_t)labels[i]][(int)truth[i]]++;
    }
    return NULL;
}

/* ---- picture ------------------------------------------------------------------------------ */

static uint32_t crc32_of(uint32_t crc, const unsigned char *p, size_t n) {
    crc = ~crc;
    while (n--) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static void put32(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> (24 - 8 * i));
}

static void put_chunk(FILE *f, const char *type, const unsigned char *body, size_t n) {
    unsigned char word[4];
    put32(word, (uint32_t)n);
    fwrite(word, 1, 4, f);
    fwrite(type, 1, 4, f);
    fwrite(body, 1, n, f);
    put32(word, crc32_of(crc32_of(0, (const unsigned char *)type, 4), body, n));
    fwrite(word, 1, 4, f);
}

/* A grey PNG with nothing compressed, which needs no library. @return 0 if written */
static int write_png(const char *path, const unsigned char *grey, uint32_t width, uint32_t height) {
    enum { STORED_MAX = 65535 };
    size_t line = (size_t)width + 1, raw = line * height, blocks = (raw + STORED_MAX - 1) / STORED_MAX;
    unsigned char *z = malloc(2 + raw + 5 * blocks + 4), *p = z;
    FILE *f = z ? fopen(path, "wb") : NULL;
    if (!f) {
        free(z);
        return -1;
    }
    *p++ = 0x78; /* zlib: deflate, no preset, check bits */
    *p++ = 0x01;
    uint32_t a = 1, b = 0; /* Adler-32 */
    for (size_t i = 0; i < raw; i++) {
        if (i % STORED_MAX == 0) {
            size_t n = raw - i < STORED_MAX ? raw - i : STORED_MAX;
            *p++ = n == raw - i; /* last block */
            *p++ = (unsigned char)n;
            *p++ = (unsigned char)(n >> 8);
            *p++ = (unsigned char)~n;
            *p++ = (unsigned char)(~n >> 8);
        }
        *p = i % line ? grey[i / line * width + i % line - 1] : 0; /* each line starts with its filter: none */
        a = (a + *p++) % 65521;
        b = (b + a) % 65521;
    }
    put32(p, b << 16 | a);
    p += 4;

    unsigned char head[13] = {0};
    put32(head, width);
    put32(head + 4, height);
    head[8] = 8; /* bits, grey */
    fwrite("\x89PNG\r\n\x1a\n", 1, 8, f);
    put_chunk(f, "IHDR", head, sizeof head);
    put_chunk(f, "IDAT", z, (size_t)(p - z));
    put_chunk(f, "IEND", head, 0);
    free(z);
    int bad = ferror(f);
    return fclose(f) != 0 || bad ? -1 : 0;
}

static void draw_mean(unsigned char *grey, size_t width, const double *mean) {
    for (size_t y = 0; y < SIDE * CELL; y++) {
        for (size_t x = 0; x < SIDE * CELL; x++) {
            double v = mean[y / CELL * SIDE + x / CELL] / BRIGHTEST;
            grey[y * width + x] = (unsigned char)(255.0 * (v < 0 ? 0 : v > 1 ? 1 : v) + 0.5);
        }
    }
}

static void draw_digit(unsigned char *grey, size_t width, int digit) {
    for (size_t y = 0; y < FONT_HEIGHT * DOT; y++) {
        for (size_t x = 0; x < FONT_WIDTH * DOT; x++) {
            size_t bit = (FONT_HEIGHT - 1 - y / DOT) * FONT_WIDTH + (FONT_WIDTH - 1 - x / DOT);
            if (font[digit] >> bit & 1) grey[y * width + x] = 255;
        }
    }
}

/* The digit that most rows of a component show: components are drawn in this order. */
static int main_digit(const table *t, int64_t c) {
    int best = 0;
    for (int g = 1; g < DIGITS; g++) best = t->count[c][g] > t->count[c][best] ? g : best;
    return best;
}

/* The means in the order of their digits, each with its digit below. */
static int draw(const char *path, const table *t, const double *means) {
    size_t tile = SIDE * CELL + GAP, down = ((size_t)t->k + ACROSS - 1) / ACROSS;
    size_t width = ACROSS * tile + GAP, height = down * (tile + LABEL) + GAP, at = 0;
    unsigned char *grey = malloc(width * height);
    if (!grey) return -1;
    memset(grey, 96, width * height);
    for (int g = 0; g < DIGITS; g++) {
        for (int64_t c = 0; c < t->k; c++) {
            if (main_digit(t, c) != g) continue;
            size_t x = at % ACROSS * tile + GAP, y = at / ACROSS * (tile + LABEL) + GAP;
            draw_mean(grey + y * width + x, width, means + c * SIDE * SIDE);
            draw_digit(grey + (y + SIDE * CELL + 5) * width + x + (SIDE * CELL - FONT_WIDTH * DOT) / 2, width, g);
            at++;
        }
    }
    int failed = write_png(path, grey, (uint32_t)width, (uint32_t)height);
    free(grey);
    return failed;
}

/* ---- the report --------------------------------------------------------------------------- */

static const char *report(const double *labels, const double *truth, int64_t n, const fgmm_model *model,
                          const char *picture) {
    table t = {.n = n, .k = fgmm_model_components(model)};
    if (fgmm_model_features(model) != SIDE * SIDE || t.k > COMPONENTS_MAX)
        return "the model is not one of 8 x 8 digits";
    t.count = calloc((size_t)t.k, sizeof *t.count);
    if (!t.count) return "no memory";
    const char *why = fill(&t, labels, truth);
    if (!why && draw(picture, &t, fgmm_model_means(model)) != 0) why = "cannot write the picture";
    if (!why) {
        printf("%.1f%% of the images are in a component whose commonest digit is theirs; adjusted Rand index %.3f\n",
               100.0 * purity(&t), adjusted_rand(&t));
    }
    free(t.count);
    return why;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fputs("usage: digits-report LABELS.npy TRUTH.npy MODEL.npz OUT.png\n", stderr);
        return CLI_USAGE;
    }
    char error[512] = "";
    double *labels = NULL, *truth = NULL;
    int64_t n = 0, n_truth = 0;
    fgmm_context *ctx = NULL;
    fgmm_model *model = NULL;
    fgmm_context_options o = FGMM_CONTEXT_OPTIONS_INIT;
    o.device = "cpu";
    o.error = error;
    o.error_size = sizeof error;
    const char *why = npy_read_column(argv[1], &labels, &n, error, sizeof error);
    if (!why) why = npy_read_column(argv[2], &truth, &n_truth, error, sizeof error);
    if (!why && (n != n_truth || n == 0)) why = "the labels are not as many as the digits";
    if (!why && fgmm_context_create(&ctx, &o) != FGMM_OK) why = error;
    if (!why && fgmm_model_load(ctx, &model, argv[3]) != FGMM_OK) why = fgmm_context_message(ctx);
    if (!why) why = report(labels, truth, n, model, argv[4]);
    if (why) fprintf(stderr, "digits-report: %s\n", why);
    fgmm_model_free(ctx, model);
    fgmm_context_free(ctx);
    free(truth);
    free(labels);
    return why ? CLI_FAILED : CLI_DONE;
}
