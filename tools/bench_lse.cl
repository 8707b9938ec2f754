/*
 * The second half of the unfused baseline: log p(x) of each row from a stored block of products.
 *
 *   out[i] = log sum_k exp(x_i . m_k - |m_k|^2 / 2) - |x_i|^2 / 2 + constant        (variance 1, equal weights)
 *
 *   logits [n, K]: x . m, row after row; half_norm [K]: |m_k|^2 / 2; x [n, D]; out [n]
 *   one work-group a row
 */
#ifndef GROUP
#define GROUP 64 /* work-items a row, a power of two, 1 .. 1024 */
#endif
#if GROUP & (GROUP - 1)
#error "GROUP must be a power of two"
#endif

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void bench_lse(__global const float *logits,
                                                                           __global const float *half_norm,
                                                                           __global const float *x, int K, int D,
                                                                           float constant_term, __global float *out)
{
    __local float part[GROUP];
    const size_t row = get_group_id(0);
    const int me = get_local_id(0);

    float top = -1e30f;
    for (int k = me; k < K; k += GROUP) top = fmax(top, logits[row * K + k] - half_norm[k]);
    part[me] = top;
    for (int half_width = GROUP / 2; half_width > 0; half_width /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (me < half_width) part[me] = fmax(part[me], part[me + half_width]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    top = part[0];
    barrier(CLK_LOCAL_MEM_FENCE);

    float sum = 0.0f;
    for (int k = me; k < K; k += GROUP) sum += exp(logits[row * K + k] - half_norm[k] - top);
    part[me] = sum;
    for (int half_width = GROUP / 2; half_width > 0; half_width /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (me < half_width) part[me] += part[me + half_width];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    sum = part[0];
    barrier(CLK_LOCAL_MEM_FENCE);

    float square = 0.0f;
    for (int j = me; j < D; j += GROUP) square += x[row * D + j] * x[row * D + j];
    part[me] = square;
    for (int half_width = GROUP / 2; half_width > 0; half_width /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (me < half_width) part[me] += part[me + half_width];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (me == 0) out[row] = top + log(sum) - 0.5f * part[0] + constant_term;
}
