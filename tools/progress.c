/* The bar on stderr: stage, iteration, log-likelihood, rows a second, time left. */
#include "cli.h"

#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* A program has one terminal, so the bar's state is the program's. */
static struct {
    int drawn;   /* a line is on the screen */
    double last; /* when it was drawn */
} bar;

double cli_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int columns(void) {
    struct winsize w;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) != 0 || w.ws_col == 0) return 80;
    return w.ws_col;
}

void progress_wipe(void) {
    if (!bar.drawn) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    bar.drawn = 0;
}

static int iterates(const fgmm_progress *p) {
    return strcmp(p->stage, "fit") == 0 || strcmp(p->stage, "kmeans") == 0;
}

/* How much of the work is done, 0 .. 1; a fit that converges is done sooner. */
static double fraction(const fgmm_progress *p) {
    double pass = p->rows_total > 0 ? (double)p->rows_done / (double)p->rows_total : 0.0;
    if (!iterates(p) || p->max_iter <= 0) return pass;
    double one = ((double)p->iteration + (pass < 1.0 ? pass : 0.0)) / p->max_iter;
    if (one > 1.0) one = 1.0;
    return p->n_init > 1 ? (p->init + one) / p->n_init : one;
}

static void put_rate(char *out, size_t size, double rate) {
    if (rate >= 1e6) {
        snprintf(out, size, "%.1fM rows/s", rate / 1e6);
    } else if (rate >= 1e3) {
        snprintf(out, size, "%.1fk rows/s", rate / 1e3);
    } else {
        snprintf(out, size, "%.0f rows/s", rate);
    }
}

/* GB/s of the stages that can hold each other up. */
static void put_stages(char *out, size_t size, const fgmm_progress *p) {
    out[0] = 0;
    if (p->read_gbs <= 0.0) return;
    int used = snprintf(out, size, "  read %.3g", p->read_gbs);
    if (p->copy_gbs > 0.0) used += snprintf(out + used, size - (size_t)used, " copy %.3g", p->copy_gbs);
    snprintf(out + used, size - (size_t)used, " compute %.3g GB/s", p->compute_gbs);
}

static void put_left(char *out, size_t size, const fgmm_progress *p, int at_most) {
    out[0] = 0;
    if (!isfinite(p->seconds_left) || p->seconds < 0.5) return;
    long s = (long)(p->seconds_left + 0.5);
    const char *sign = at_most ? "<" : "";
    if (s < 3600) {
        snprintf(out, size, "  %s%ld:%02ld left", sign, s / 60, s % 60);
    } else {
        snprintf(out, size, "  %s%ld:%02ld:%02ld left", sign, s / 3600, s / 60 % 60, s % 60);
    }
}

int progress_draw(void *user, const fgmm_progress *p) {
    (void)user;
    double t = cli_now();
    int fitting = iterates(p);
    if (bar.drawn && t - bar.last < 0.1) return 0;
    bar.last = t;

    char line[512], restart[48] = "", what[64] = "", rate[32], stages[96], left[48], graph[24];
    double done = fraction(p);
    if (p->n_init > 1) snprintf(restart, sizeof restart, " %d/%d", p->init + 1, p->n_init);
    if (fitting) snprintf(what, sizeof what, "  iteration %d/%d", p->iteration, p->max_iter);
    char likelihood[48] = "";
    const char *name = strcmp(p->stage, "kmeans") == 0 ? "minus mean square" : "log-likelihood";
    if (isfinite(p->lower_bound)) snprintf(likelihood, sizeof likelihood, "  %s %.6g", name, p->lower_bound);
    put_rate(rate, sizeof rate, p->rows_per_second);
    put_stages(stages, sizeof stages, p);
    put_left(left, sizeof left, p, fitting);
    int cells = (int)(done * 20.0);
    for (int i = 0; i < 20; i++) graph[i] = i < cells ? '#' : '.';
    graph[20] = 0;

    int length = snprintf(line, sizeof line, "%-7s%s [%s]%s%s  %s%s%s", p->stage, restart, graph, what, likelihood,
                          rate, left, stages);
    int room = columns() - 1; /* a full line would wrap and stay */
    if (length > room) line[room > 0 && room < (int)sizeof line ? room : 0] = 0;
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    bar.drawn = 1;
    return 0;
}
