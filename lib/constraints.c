#include "constraints.h"

#include <math.h>

static void unit_means(fgmm_model *model) {
    for (int64_t i = 0; i < model->k; i++) {
        double *mean = model->means + i * model->d, square = 0;
        for (int64_t j = 0; j < model->d; j++) square += mean[j] * mean[j];
        for (int64_t j = 0; j < model->d && square > 0; j++) mean[j] /= sqrt(square);
    }
}

static void one_variance(fgmm_model *model) {
    double sum = 0, weight = 0;
    for (int64_t i = 0; i < model->k; i++) {
        sum += model->weights[i] * model->covariances[i];
        weight += model->weights[i];
    }
    for (int64_t i = 0; i < model->k && weight > 0; i++) model->covariances[i] = sum / weight;
}

void fgmm_constrain(fgmm_model *model, unsigned constraints) {
    if (constraints & FGMM_UNIT_MEANS) unit_means(model);
    if (constraints & FGMM_ONE_VARIANCE) one_variance(model);
}
