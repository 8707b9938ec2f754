/* What the commands of `flashgmm ivf` share. */
#ifndef FLASHGMM_TOOLS_CLI_IVF_H
#define FLASHGMM_TOOLS_CLI_IVF_H

#include <flashgmm/ivf.h>

#include "cli.h"

/* Choices in the order of the library's values. */
#define CLI_METRICS "l2|angular|inner_product"
#define CLI_METHODS "kmeans|tied-spherical|spherical|diag"
#define CLI_INITS "trial|kmeans++|random"
#define CLI_RULES "soar|single|nearest|gap|responsibility|rair"

/* A --metric that was not given. */
#define CLI_METRIC_UNSAID (-1)

/* Says *metric where the user did not: the one that the rows' file names (ann-benchmarks: angular, euclidean), else l2.
 * @return CLI_DONE, or CLI_FAILED after a message about a name that flashgmm has nothing for. */
int cli_metric(const fgmm_rows *rows, int *metric);

/* What an index file of these rows takes. */
double cli_index_bytes(const fgmm_rows *rows, int64_t lists, int max_lists);

/* The lines on an index that `info` and `ivf build` print. */
void cli_print_index(const cli_session *s, const fgmm_ivf_info *info);
/* The same as keys of an object. */
void cli_json_index(json_out *j, const fgmm_ivf_info *info);

/* The first k true neighbours of the first n queries from a file of neighbours into out [n, k].
 * @param rows that the ids number; a file that names others, or too few, is told of and CLI_FAILED returned. */
int cli_truth(const cli_session *s, const char *path, int64_t n, int64_t k, int64_t rows, int64_t *out);

/* Of the k ids a query in `found`, how many are among the k of `truth`, as a share; -1 in truth counts for nothing. */
double cli_recall(const int64_t *found, const int64_t *truth, int64_t queries, int64_t k);

#endif
