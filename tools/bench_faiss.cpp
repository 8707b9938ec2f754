// faiss's k-means (Lloyd over an exact index, as its Kmeans does) as a peer; it keeps the time of each iteration itself.
#include "bench_peer.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>

extern "C" char *openblas_get_corename(void);

int main(int argc, char **argv) {
    peer_job job = peer_start(argc, argv);
    faiss::Clustering clustering(int(job.d), int(job.k));
    clustering.niter = job.iterations;
    clustering.min_points_per_centroid = 1;
    clustering.max_points_per_centroid = int(job.n);
    clustering.centroids.assign(job.means, job.means + job.k * job.d);
    faiss::IndexFlatL2 index{faiss::Index::idx_t(job.d)};
    clustering.train(faiss::Index::idx_t(job.n), job.rows, index);
    peer_ticks ticks = {};
    for (const faiss::ClusteringIterationStats &stats : clustering.iteration_stats) {
        peer_tick(&ticks, stats.obj / double(job.n));
        ticks.at[ticks.n - 1] = stats.time;
    }
    char name[128];
    snprintf(name, sizeof name, "faiss %d.%d.%d (C++)", FAISS_VERSION_MAJOR, FAISS_VERSION_MINOR, FAISS_VERSION_PATCH);
    peer_print(name, openblas_get_corename(), &ticks);
    free(job.means);
    free(job.rows);
    return 0;
}
