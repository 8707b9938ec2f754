/* --log: a line of JSON an iteration, for those who watch a long run from elsewhere. */
#include "cli.h"

#include <errno.h>
#include <string.h>

int cli_log_open(const cli_command *self, cli_session *s, cli_files inputs) {
    if (!s->log) return CLI_DONE;
    for (size_t i = 0; i < sizeof inputs.name / sizeof *inputs.name; i++)
        if (inputs.name[i] && cli_same_file(s->log, inputs.name[i]))
            return cli_usage(self, "option --log: '%s' would be written over '%s'", s->log, inputs.name[i]);
    s->log_file = fopen(s->log, "w");
    if (!s->log_file) return cli_say("cannot write '%s': %s", s->log, strerror(errno)), CLI_FAILED;
    return CLI_DONE;
}

static void stop(cli_session *s) {
    cli_say("warning: cannot write '%s': %s; it ends here", s->log, strerror(errno));
    fclose(s->log_file);
    s->log_file = NULL;
}

void cli_log_iteration(cli_session *s, const fgmm_progress *p) {
    if (!s->log_file) return;
    json_out j = json_begin(s->log_file);
    json_text(&j, "stage", p->stage);
    json_int(&j, "restart", p->init);
    json_int(&j, "iteration", p->iteration);
    json_real(&j, "lower_bound", p->lower_bound);
    json_real(&j, "change", p->change);
    json_int(&j, "rows", p->rows_total);
    json_real(&j, "seconds", p->seconds);
    json_real(&j, "seconds_left", p->seconds_left);
    json_real(&j, "rows_per_second", p->rows_per_second);
    json_real(&j, "read_gbs", p->read_gbs);
    json_real(&j, "copy_gbs", p->copy_gbs);
    json_real(&j, "compute_gbs", p->compute_gbs);
    json_end(&j);
    if (fflush(s->log_file) != 0 || ferror(s->log_file)) stop(s);
}

int cli_progress(void *user, const fgmm_progress *p) {
    cli_session *s = user;
    /* The first that is heard of an iteration is that it is whole. */
    if (p->init != s->log_restart || p->iteration != s->log_iteration) {
        s->log_restart = p->init;
        s->log_iteration = p->iteration;
        if (p->iteration > 0) cli_log_iteration(s, p);
    }
    return s->bar ? progress_draw(NULL, p) : 0;
}
