/* Options from tables: one table gives the parsing, the range checks and the help. */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int cli_usage(const cli_command *self, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "flashgmm %s: ", self->name);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nTry 'flashgmm %s --help'.\n", self->name);
    return CLI_USAGE;
}

static void print_help(const cli_command *self, const cli_option *options) {
    printf("usage: flashgmm %s %s\n\n%s\n\noptions:\n", self->name, self->usage, self->summary);
    for (const cli_option *o = options; o->name; o++) {
        char left[96];
        const char *hint = o->hint && o->kind != CLI_FLAG ? o->hint : "";
        snprintf(left, sizeof left, "%c%c --%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ', o->name,
                 *hint ? " " : "", hint);
        if (strlen(left) > 34) {
            printf("  %s\n  %-34s  %s\n", left, "", o->help);
        } else {
            printf("  %-34s  %s\n", left, o->help);
        }
    }
    printf("  %-34s  %s\n\nexample:\n%s", "-h --help", "this text", self->example);
}

/* Which of "a|b|c" the first `length` characters of word are; -1 if none. */
static int choice(const char *choices, const char *word, size_t length) {
    int index = 0;
    for (const char *c = choices;; index++) {
        size_t n = strcspn(c, "|");
        if (n == length && strncmp(c, word, n) == 0) return index;
        if (!c[n]) return -1;
        c += n + 1;
    }
}

static int wrong_value(const cli_command *self, const cli_option *o, const char *text, const char *wanted) {
    return cli_usage(self, "option --%s: '%s' is not %s", o->name, text, wanted);
}

static int read_integer(const cli_command *self, const cli_option *o, const char *text) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || text[0] == ' ' || (errno && errno != ERANGE)) {
        return wrong_value(self, o, text, "a whole number");
    }
    if (errno == ERANGE || (double)v < o->low || (double)v > o->high) {
        return cli_usage(self, "option --%s: %s is outside %.0f .. %.0f", o->name, text, o->low, o->high);
    }
    if (o->kind == CLI_INT) {
        *(int *)o->value = (int)v;
    } else {
        *(int64_t *)o->value = v;
    }
    return CLI_GO_ON;
}

static int read_seed(const cli_command *self, const cli_option *o, const char *text) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    /* strtoull would take "-1" for a large number. */
    if (text[0] < '0' || text[0] > '9' || *end || errno) {
        return wrong_value(self, o, text, "a whole number from 0 to 18446744073709551615");
    }
    *(uint64_t *)o->value = v;
    return CLI_GO_ON;
}

static int read_real(const cli_command *self, const cli_option *o, const char *text) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || text[0] == ' ' || !isfinite(v)) return wrong_value(self, o, text, "a number");
    if (v < o->low || v > o->high) {
        return cli_usage(self, "option --%s: %s is outside %g .. %g", o->name, text, o->low, o->high);
    }
    *(double *)o->value = v;
    return CLI_GO_ON;
}

/* A number of bytes, such as 268435456, 256M or 1.5G. */
static int read_bytes(const cli_command *self, const cli_option *o, const char *text) {
    static const char units[] = "KMGT";
    char *end;
    double v = strtod(text, &end);
    const char *unit = *end ? strchr(units, *end) : NULL;
    if (unit) {
        v = ldexp(v, 10 * (int)(unit - units + 1));
        end++;
    }
    if (end == text || *end || text[0] < '0' || text[0] > '9' || !isfinite(v)) {
        return wrong_value(self, o, text, "a number of bytes, such as 500M or 4G");
    }
    if (v < 1.0 || v > 9e18) return cli_usage(self, "option --%s: %s is outside 1 .. 8388607T", o->name, text);
    *(size_t *)o->value = (size_t)v;
    return CLI_GO_ON;
}

static int read_set(const cli_command *self, const cli_option *o, const char *text) {
    unsigned bits = 0;
    for (const char *c = text;;) {
        size_t n = strcspn(c, ",");
        int index = choice(o->hint, c, n);
        if (index < 0) {
            return cli_usage(self, "option --%s: '%.*s' is not one of %s", o->name, (int)n, c, o->hint);
        }
        bits |= 1u << index;
        if (!c[n]) break;
        c += n + 1;
    }
    *(unsigned *)o->value = bits;
    return CLI_GO_ON;
}

static int read_value(const cli_command *self, const cli_option *o, const char *text) {
    switch (o->kind) {
    case CLI_INT:
    case CLI_INT64: return read_integer(self, o, text);
    case CLI_SEED: return read_seed(self, o, text);
    case CLI_REAL: return read_real(self, o, text);
    case CLI_BYTES: return read_bytes(self, o, text);
    case CLI_SET: return read_set(self, o, text);
    case CLI_CHOICE: {
        int index = choice(o->hint, text, strlen(text));
        if (index < 0) return cli_usage(self, "option --%s: '%s' is not one of %s", o->name, text, o->hint);
        *(int *)o->value = index;
        return CLI_GO_ON;
    }
    default:
        if (!*text) return wrong_value(self, o, text, "a name");
        *(const char **)o->value = text;
        return CLI_GO_ON;
    }
}

/* The option that an argument names: "--name", "--name=value", "-x", "-xvalue". @param value the part after, or NULL */
static const cli_option *find_option(const cli_option *options, const char *arg, const char **value) {
    *value = NULL;
    if (arg[1] == '-') {
        size_t n = strcspn(arg + 2, "=");
        if (arg[2 + n] == '=') *value = arg + 2 + n + 1;
        for (const cli_option *o = options; o->name; o++) {
            if (strlen(o->name) == n && strncmp(o->name, arg + 2, n) == 0) return o;
        }
        return NULL;
    }
    if (arg[2]) *value = arg + 2;
    for (const cli_option *o = options; o->name; o++) {
        if (o->letter == arg[1]) return o;
    }
    return NULL;
}

int cli_parse(const cli_command *self, const cli_option *options, int argc, char **argv, const char **operand) {
    int only_operands = 0, found = 0;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value;
        if (only_operands || arg[0] != '-' || !arg[1]) {
            if (found++ >= self->operands)
                return cli_usage(self,
                                 "'%s' is one file name too many; several files of rows are given as a folder or as "
                                 "'a quoted pattern*'",
                                 arg);
            operand[found - 1] = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            only_operands = 1;
            continue;
        }
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            print_help(self, options);
            return CLI_DONE;
        }
        const cli_option *o = find_option(options, arg, &value);
        if (!o) return cli_usage(self, "unknown option '%.*s'", (int)strcspn(arg, "="), arg);
        if (o->kind == CLI_FLAG) {
            if (value) return cli_usage(self, "option --%s takes no value", o->name);
            *(int *)o->value = 1;
            continue;
        }
        if (!value && ++i < argc) value = argv[i];
        if (!value) return cli_usage(self, "option --%s needs a value", o->name);
        int rc = read_value(self, o, value);
        if (rc != CLI_GO_ON) return rc;
    }
    if (found == 0 && self->operands > 0) return cli_usage(self, "the file to read is missing");
    return CLI_GO_ON;
}
