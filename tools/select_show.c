#include "select_show.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

void select_print_table(const select_list *list) {
    printf("   %-10s %7s %11s %15s %15s %15s %6s %9s\n", "covariance", "K", "parameters", "nats a row", "AIC", "BIC",
           "iter", "seconds");
    for (int64_t i = 0; i < list->n; i++) {
        const select_fit *f = &list->fits[i];
        printf(" %c %-10s %7lld ", i == list->best ? '*' : ' ', fgmm_covariance_name(f->type), (long long)f->k);
        if (f->error[0]) {
            printf("%s\n", f->error);
            continue;
        }
        printf("%11lld %15.8g %15.8g %15.8g %5d%c %9.3f\n", (long long)f->parameters, f->score.log_likelihood,
               f->score.aic, f->score.bic, f->n_iter, f->converged ? ' ' : '+', f->seconds);
    }
    printf(" * best by %s; + not converged\n", list->criterion);
}

void select_json_fits(json_out *j, const select_list *list) {
    json_array(j, "fits");
    for (int64_t i = 0; i < list->n; i++) {
        const select_fit *f = &list->fits[i];
        json_object(j);
        json_text(j, "covariance_type", fgmm_covariance_name(f->type));
        json_int(j, "n_components", f->k);
        if (f->error[0]) {
            json_text(j, "error", f->error);
        } else {
            json_int(j, "n_parameters", f->parameters);
            json_real(j, "log_likelihood", f->score.log_likelihood);
            json_real(j, "aic", f->score.aic);
            json_real(j, "bic", f->score.bic);
            json_int(j, "n_iter", f->n_iter);
            json_bool(j, "converged", f->converged);
            json_real(j, "seconds", f->seconds);
        }
        json_close(j, '}');
    }
    json_close(j, ']');
}

/* ---- the curve in text ---- */

enum { CURVE_COLUMNS = 64, CURVE_LINES = 16 };

typedef struct curve_range {
    double k_low, k_high, low, high;
} curve_range;

static curve_range find_range(const select_list *list) {
    curve_range r = {INFINITY, -INFINITY, INFINITY, -INFINITY};
    for (int64_t i = 0; i < list->n; i++) {
        const select_fit *f = &list->fits[i];
        if (isnan(f->criterion)) continue;
        r.k_low = fmin(r.k_low, (double)f->k);
        r.k_high = fmax(r.k_high, (double)f->k);
        r.low = fmin(r.low, f->criterion);
        r.high = fmax(r.high, f->criterion);
    }
    return r;
}

static int place(double value, double low, double high, int cells) {
    return high > low ? (int)((value - low) / (high - low) * (cells - 1) + 0.5) : 0;
}

void select_print_curve(const select_list *list) {
    char field[CURVE_LINES][CURVE_COLUMNS + 1];
    curve_range r = find_range(list);
    if (!(r.high > r.low) || !(r.k_high > r.k_low)) return; /* a point is no curve */
    for (int line = 0; line < CURVE_LINES; line++) {
        memset(field[line], ' ', CURVE_COLUMNS);
        field[line][CURVE_COLUMNS] = 0;
    }
    for (int64_t i = 0; i < list->n; i++) {
        const select_fit *f = &list->fits[i];
        if (isnan(f->criterion)) continue;
        int line = place(r.high - f->criterion, 0, r.high - r.low, CURVE_LINES);
        int column = place((double)f->k, r.k_low, r.k_high, CURVE_COLUMNS);
        char *cell = &field[line][column];
        if (*cell != '*') *cell = i == list->best ? '*' : *cell == ' ' ? fgmm_covariance_name(f->type)[0] : '&';
    }
    printf("\n%15s\n", list->criterion);
    for (int line = 0; line < CURVE_LINES; line++) {
        char label[32] = "";
        if (line == 0) snprintf(label, sizeof label, "%.8g", r.high);
        if (line == CURVE_LINES - 1) snprintf(label, sizeof label, "%.8g", r.low);
        int length = CURVE_COLUMNS;
        while (length > 0 && field[line][length - 1] == ' ') length--;
        printf("%15s |%.*s\n", label, length, field[line]);
    }
    printf("%15s +", "");
    for (int i = 0; i < CURVE_COLUMNS; i++) putchar('-');
    printf("\n%15s  K = %-*.0f%.0f\n", "", CURVE_COLUMNS - 8, r.k_low, r.k_high);
    printf("%15s  s spherical, d diag, t tied, f full, & several, * best\n", "");
}

/* ---- the curve in a picture ---- */

static void put_data(FILE *gnuplot, const select_list *list, int type) {
    for (int64_t i = 0; i < list->n; i++) {
        const select_fit *f = &list->fits[i];
        if ((int)f->type == type && !isnan(f->criterion))
            fprintf(gnuplot, "%lld %.17g\n", (long long)f->k, f->criterion);
    }
    fputs("e\n", gnuplot);
}

static int has_type(const select_list *list, int type) {
    for (int64_t i = 0; i < list->n; i++)
        if ((int)list->fits[i].type == type && !isnan(list->fits[i].criterion)) return 1;
    return 0;
}

static void put_script(FILE *gnuplot, const select_list *list, const char *path) {
    fprintf(gnuplot, "set terminal %s size 900,600\nset output '", cli_ends_with(path, ".svg") ? "svg" : "png");
    /* A quote is doubled; a name that begins with '|' would be a command. */
    if (path[0] != '/') fputs("./", gnuplot);
    for (const char *c = path; *c; c++) fputs(*c == '\'' ? "''" : (char[]){*c, 0}, gnuplot);
    fprintf(gnuplot, "'\nset xlabel 'components'\nset ylabel '%s'\nset grid\nset key outside\nplot ", list->criterion);
    for (int type = FGMM_SPHERICAL; type <= FGMM_FULL; type++) {
        if (has_type(list, type)) {
            fprintf(gnuplot, "'-' using 1:2 with linespoints title '%s', ",
                    fgmm_covariance_name((fgmm_covariance)type));
        }
    }
    fputs("'-' using 1:2 with points pointtype 7 pointsize 2 title 'best'\n", gnuplot);
    for (int type = FGMM_SPHERICAL; type <= FGMM_FULL; type++) {
        if (has_type(list, type)) put_data(gnuplot, list, type);
    }
    const select_fit *best = &list->fits[list->best];
    fprintf(gnuplot, "%lld %.17g\ne\n", (long long)best->k, best->criterion);
}

int select_plot(const select_list *list, const char *path) {
    if (list->best < 0) return cli_say("there is nothing to plot in '%s'", path), CLI_FAILED;
    if (system("command -v gnuplot > /dev/null 2>&1") != 0) {
        return cli_say("'%s' not drawn: gnuplot is not installed", path), CLI_FAILED;
    }
    signal(SIGPIPE, SIG_IGN); /* a gnuplot that gives up is told by its exit status */
    FILE *gnuplot = popen("gnuplot", "w");
    if (!gnuplot) return cli_say("'%s' not drawn: gnuplot does not start", path), CLI_FAILED;
    put_script(gnuplot, list, path);
    if (pclose(gnuplot) != 0) return cli_say("'%s' not drawn: gnuplot failed", path), CLI_FAILED;
    return CLI_DONE;
}
