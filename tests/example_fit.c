#include <flashgmm/flashgmm.h>
#include <stdio.h>

/* Fits ten components to rows in a file and writes the model. */
int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: example_fit DATA MODEL.npz\n"), 2;

    fgmm_context *ctx = NULL;
    fgmm_rows *rows = NULL;
    fgmm_model *model = NULL;
    fgmm_fit_options options = FGMM_FIT_OPTIONS_INIT;
    options.n_components = 10;
    options.covariance_type = FGMM_DIAG;
    options.reg_covar = 1.0;
    options.seed = 1;

    fgmm_status status = fgmm_context_create(&ctx, NULL);
    if (status == FGMM_OK) status = fgmm_rows_open(ctx, &rows, argv[1], NULL);
    if (status == FGMM_OK) status = fgmm_fit(ctx, &model, rows, &options, NULL);
    if (status == FGMM_OK) status = fgmm_model_save(ctx, model, argv[2]);
    if (status == FGMM_OK) {
        printf("%.6f nats a row after %d iterations on %s\n", fgmm_model_lower_bound(model),
               fgmm_model_iterations(model), fgmm_context_device(ctx));
    } else {
        fprintf(stderr, "%s\n", ctx ? fgmm_context_message(ctx) : fgmm_status_name(status));
    }

    fgmm_model_free(ctx, model);
    fgmm_rows_free(ctx, rows);
    fgmm_context_free(ctx);
    return status == FGMM_OK ? 0 : 1;
}
