// Armadillo's gmm_diag as a peer, in float as the rows are: two to three times as fast as in double. It prints a line and flushes at the end of each
// iteration, which is where the time is taken.
#include "bench_peer.h"

#include <armadillo>
#include <cstring>
#include <streambuf>
#include <string>

// Takes the time at each line that holds a likelihood.
class line_clock : public std::streambuf {
  public:
    explicit line_clock(peer_ticks *ticks) : ticks_(ticks) {}

  protected:
    int overflow(int c) override {
        line_ += static_cast<char>(c);
        return c;
    }
    int sync() override {
        const char *value = std::strstr(line_.c_str(), "avg_log_p: ");
        if (value) peer_tick(ticks_, std::atof(value + std::strlen("avg_log_p: ")));
        line_.clear();
        return 0;
    }

  private:
    peer_ticks *ticks_;
    std::string line_;
};

int main(int argc, char **argv) {
    peer_job job = peer_start(argc, argv);
    arma::Mat<float> rows(job.d, job.n), means(job.d, job.k), variances(job.d, job.k, arma::fill::ones);
    for (size_t i = 0; i < job.n * job.d; i++) rows[i] = job.rows[i];
    for (size_t i = 0; i < job.k * job.d; i++) means[i] = job.means[i];
    arma::Row<float> weights(job.k);
    weights.fill(1.0f / float(job.k));
    arma::fgmm_diag model;
    model.set_params(means, variances, weights);

    peer_ticks ticks = {};
    line_clock clock(&ticks);
    std::ostream lines(&clock);
    lines.precision(17);
    arma::set_cout_stream(lines);
    bool fitted =
        model.learn(rows, job.k, arma::eucl_dist, arma::keep_existing, 0, arma::uword(job.iterations), 1e-6, true);
    if (!fitted) {
        fprintf(stderr, "Armadillo: learn failed\n");
        return 1;
    }
    char name[64];
    snprintf(name, sizeof name, "Armadillo %d.%d gmm_diag, float", ARMA_VERSION_MAJOR, ARMA_VERSION_MINOR);
    peer_print(name, NULL, &ticks);
    free(job.means);
    free(job.rows);
    return 0;
}
