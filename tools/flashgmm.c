/* flashgmm: Gaussian mixtures from the command line. Everything here goes through the public interface. */
#include "cli.h"

#include <errno.h>
#include <string.h>

static const cli_command *const commands[] = {
    &cmd_devices,   &cmd_fit,       &cmd_kmeans,     &cmd_merge,    &cmd_partial_fit, &cmd_select,
    &cmd_predict,   &cmd_score,     &cmd_sample,     &cmd_export,   &cmd_info,        &cmd_tune,
    &cmd_ivf_train, &cmd_ivf_build, &cmd_ivf_search, &cmd_ivf_eval, &cmd_bench_estep, &cmd_bench_em,
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_commands(FILE *f) {
    fputs("usage: flashgmm COMMAND [OPTION]...\n\nFits Gaussian mixtures to data of any size, and uses them.\n\n", f);
    for (int i = 0; i < N_COMMANDS; i++) fprintf(f, "  %-12s  %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n'flashgmm COMMAND --help' lists a command's options with an example.\n", f);
}

static int hint(const char *what, const char *name) {
    fprintf(stderr, "flashgmm: unknown %s '%s'\nTry 'flashgmm --help'.\n", what, name);
    return CLI_USAGE;
}

static int run(int argc, char **argv) {
    if (argc < 2) {
        print_commands(stderr);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_commands(stdout);
        return CLI_DONE;
    }
    if (strcmp(name, "--version") == 0) {
        printf("flashgmm %s\n", fgmm_version());
        return CLI_DONE;
    }
    if (name[0] == '-') return hint("option", name);

    /* "bench estep" is one command of two words. */
    static const struct {
        const char *word, *missing;
    } pairs[] = {{"bench", "bench what? try: flashgmm bench estep, or flashgmm bench em"},
                 {"ivf", "ivf what? try: flashgmm ivf train, build, search or eval"}};
    char joined[64];
    int used = 1;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (strcmp(name, pairs[i].word) != 0) continue;
        if (argc == 2) {
            fprintf(stderr, "flashgmm: %s\n", pairs[i].missing);
            return CLI_USAGE;
        }
        if (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0) {
            print_commands(stdout);
            return CLI_DONE;
        }
        if (strlen(argv[2]) < 32) {
            snprintf(joined, sizeof joined, "%s %s", name, argv[2]);
            name = joined;
            used = 2;
        }
        break;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i]->name, name) == 0) return commands[i]->run(commands[i], argc - used, argv + used);
    }
    return hint("command", name);
}

int main(int argc, char **argv) {
    int rc = run(argc, argv);
    /* A report that did not reach a full disk or a closed pipe is not "done". */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "flashgmm: cannot write to standard output: %s\n", strerror(errno));
        if (rc == CLI_DONE) rc = CLI_FAILED;
    }
    return rc;
}
