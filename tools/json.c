/* A JSON writer: just enough for one object with arrays of objects in it. */
#include "cli.h"

#include <math.h>

static void put_string(FILE *f, const char *s) {
    fputc('"', f);
    while (*s) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') {
            fprintf(f, "\\%c", c);
        } else if (c < 0x20 || c == 0x7f) {
            fprintf(f, "\\u%04x", c);
        } else if (c < 0x80) {
            fputc(c, f);
        } else {
            /* File and device names may hold any bytes; JSON may hold only UTF-8. */
            int more = c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : 0;
            int whole = more > 0;
            for (int i = 1; whole && i <= more; i++) whole = ((unsigned char)s[i] & 0xc0) == 0x80;
            if (whole) {
                fwrite(s, 1, (size_t)more + 1, f);
                s += more;
            } else {
                fputs("\\ufffd", f);
            }
        }
        s++;
    }
    fputc('"', f);
}

static void put_key(json_out *j, const char *key) {
    if (j->items++) fputs(", ", j->file);
    if (!key) return;
    put_string(j->file, key);
    fputs(": ", j->file);
}

json_out json_begin(FILE *file) {
    fputc('{', file);
    return (json_out){file, 0};
}

void json_end(json_out *j) {
    fputs("}\n", j->file);
}

void json_text(json_out *j, const char *key, const char *value) {
    put_key(j, key);
    put_string(j->file, value);
}

void json_int(json_out *j, const char *key, int64_t value) {
    put_key(j, key);
    fprintf(j->file, "%lld", (long long)value);
}

void json_real(json_out *j, const char *key, double value) {
    put_key(j, key);
    if (isfinite(value)) {
        fprintf(j->file, "%.17g", value);
    } else {
        fputs("null", j->file);
    }
}

void json_bool(json_out *j, const char *key, int value) {
    put_key(j, key);
    fputs(value ? "true" : "false", j->file);
}

void json_raw(json_out *j, const char *key, const char *value) {
    put_key(j, key);
    fputs(value, j->file);
}

void json_warnings(json_out *j, const fgmm_report *report) {
    int kept = (int)(sizeof report->warnings / sizeof report->warnings[0]);
    json_array(j, "warnings");
    for (int i = 0; i < report->n_warnings && i < kept; i++) json_text(j, NULL, report->warnings[i]);
    json_close(j, ']');
}

void json_array(json_out *j, const char *key) {
    put_key(j, key);
    fputc('[', j->file);
    j->items = 0;
}

void json_object(json_out *j) {
    put_key(j, NULL);
    fputc('{', j->file);
    j->items = 0;
}

void json_close(json_out *j, char bracket) {
    fputc(bracket, j->file);
    j->items = 1; /* what was closed is itself an item of what holds it */
}
