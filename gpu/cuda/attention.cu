// Attention over paged keys and values, read where they are: decoding and verification of many sessions in one launch.
//
// A block takes one row of the batch, up to GROUP of the query heads that share a key head, and SPLIT of the row's
// positions; a second kernel joins the parts. In a block each warp walks every WARPS-th position: its lanes hold pairs of
// the head's dimensions, scores are sums over the warp, and the softmax is kept running (largest score, sum, weighted
// values). All sums are float.
//
// Nothing but what gpu/cuda/emulate.h has is used of CUDA, so that the very kernels run, slowly, on a processor.

#ifndef EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

// Positions of a block: kernel.rs has the same number.
#define SPLIT 256u
#define WARPS 4u
#define GROUP 4

struct Pair {
    float x, y;
};

__device__ inline Pair pair(const float *at) { return {at[0], at[1]}; }

__device__ inline Pair pair(const __half *at) {
    float2 both = __half22float2(*reinterpret_cast<const __half2 *>(at));
    return {both.x, both.y};
}

__device__ inline Pair pair(const __nv_bfloat16 *at) {
    float2 both = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(at));
    return {both.x, both.y};
}

__device__ inline float warp_sum(float x) {
    for (int lane = 16; lane > 0; lane /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    }
    return x;
}

// Of a row: where its session's pages begin in `pages`, and the first and last position it sees.
struct Row {
    unsigned table, first, last;
};

// Grid: rows, key heads x parts of their group, splits. `cache` is [slot][keys of all heads | values of all heads], a page
// has 16 slots. `parts` is [row][head][split][largest, sum, head_dim weighted values].
template <typename T, int PAIRS>
__device__ inline void attend(const float *queries, const T *cache, const Row *rows, const unsigned *pages, float *parts,
                              unsigned heads, unsigned kv_heads, unsigned head_dim, float scale, float cap) {
    __shared__ float shared_largest[WARPS][GROUP];
    __shared__ float shared_sum[WARPS][GROUP];
    __shared__ float shared_values[WARPS][GROUP][64 * PAIRS];

    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned sharing = heads / kv_heads, chunks = (sharing + GROUP - 1) / GROUP;
    const unsigned kv_head = blockIdx.y / chunks, first_of_group = blockIdx.y % chunks * GROUP;
    const unsigned here = sharing - first_of_group < GROUP ? sharing - first_of_group : GROUP;
    const unsigned head = kv_head * sharing + first_of_group;
    const unsigned split = blockIdx.z, splits = gridDim.z;
    const Row row = rows[blockIdx.x];

    Pair query[GROUP][PAIRS], values[GROUP][PAIRS];
    float largest[GROUP], sum[GROUP];
    for (unsigned g = 0; g < GROUP; ++g) {
        largest[g] = -INFINITY;
        sum[g] = 0.0f;
        for (unsigned p = 0; p < PAIRS; ++p) {
            const unsigned d = 2 * (lane + 32 * p);
            values[g][p] = {0.0f, 0.0f};
            query[g][p] = {0.0f, 0.0f};
            if (g < here && d < head_dim) {
                query[g][p] = pair(queries + ((size_t)blockIdx.x * heads + head + g) * head_dim + d);
            }
        }
    }

    const unsigned begin = row.first > split * SPLIT ? row.first : split * SPLIT;
    const unsigned end = row.last + 1 < (split + 1) * SPLIT ? row.last + 1 : (split + 1) * SPLIT;
    for (unsigned position = begin + warp; position < end; position += WARPS) {
        const size_t slot = (size_t)pages[row.table + position / 16] * 16 + position % 16;
        const T *key = cache + (slot * 2 * kv_heads + kv_head) * head_dim;
        const T *value = key + (size_t)kv_heads * head_dim;
        Pair k[PAIRS], v[PAIRS];
        for (unsigned p = 0; p < PAIRS; ++p) {
            const unsigned d = 2 * (lane + 32 * p);
            k[p] = v[p] = {0.0f, 0.0f};
            if (d < head_dim) {
                k[p] = pair(key + d);
                v[p] = pair(value + d);
            }
        }
        for (unsigned g = 0; g < here; ++g) {
            float score = 0.0f;
            for (unsigned p = 0; p < PAIRS; ++p) {
                score += query[g][p].x * k[p].x + query[g][p].y * k[p].y;
            }
            score = warp_sum(score) * scale;
            if (cap > 0.0f) {
                score = cap * tanhf(score / cap);
            }
            const float now = score > largest[g] ? score : largest[g];
            const float before = expf(largest[g] - now), weight = expf(score - now);
            largest[g] = now;
            sum[g] = sum[g] * before + weight;
            for (unsigned p = 0; p < PAIRS; ++p) {
                values[g][p].x = values[g][p].x * before + weight * v[p].x;
                values[g][p].y = values[g][p].y * before + weight * v[p].y;
            }
        }
    }

    for (unsigned g = 0; g < here; ++g) {
        if (lane == 0) {
            shared_largest[warp][g] = largest[g];
            shared_sum[warp][g] = sum[g];
        }
        for (unsigned p = 0; p < PAIRS; ++p) {
            shared_values[warp][g][2 * (lane + 32 * p)] = values[g][p].x;
            shared_values[warp][g][2 * (lane + 32 * p) + 1] = values[g][p].y;
        }
    }
    __syncthreads();

    for (unsigned g = 0; g < here; ++g) {
        float most = -INFINITY, total = 0.0f;
        for (unsigned w = 0; w < WARPS; ++w) {
            most = shared_largest[w][g] > most ? shared_largest[w][g] : most;
        }
        // A warp without positions has no weight; where none has any, neither has the part.
        float weight[WARPS];
        for (unsigned w = 0; w < WARPS; ++w) {
            weight[w] = shared_sum[w][g] > 0.0f ? expf(shared_largest[w][g] - most) : 0.0f;
            total += shared_sum[w][g] * weight[w];
        }
        float *part = parts + (((size_t)blockIdx.x * heads + head + g) * splits + split) * (head_dim + 2);
        if (threadIdx.x == 0) {
            part[0] = most;
            part[1] = total;
        }
        for (unsigned d = threadIdx.x; d < head_dim; d += 32 * WARPS) {
            float value = 0.0f;
            for (unsigned w = 0; w < WARPS; ++w) {
                value += shared_values[w][g][d] * weight[w];
            }
            part[2 + d] = value;
        }
    }
}

// Grid: rows, heads. Joins the parts of a row and a head.
extern "C" __global__ void join(const float *parts, float *out, unsigned head_dim, unsigned splits) {
    const size_t at = (size_t)blockIdx.x * gridDim.y + blockIdx.y;
    const float *own = parts + at * splits * (head_dim + 2);
    float most = -INFINITY, total = 0.0f;
    for (unsigned s = 0; s < splits; ++s) {
        const float *part = own + (size_t)s * (head_dim + 2);
        most = part[1] > 0.0f && part[0] > most ? part[0] : most;
    }
    for (unsigned s = 0; s < splits; ++s) {
        const float *part = own + (size_t)s * (head_dim + 2);
        total += part[1] > 0.0f ? part[1] * expf(part[0] - most) : 0.0f;
    }
    for (unsigned d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float value = 0.0f;
        for (unsigned s = 0; s < splits; ++s) {
            const float *part = own + (size_t)s * (head_dim + 2);
            value += part[1] > 0.0f ? part[2 + d] * expf(part[0] - most) : 0.0f;
        }
        out[at * head_dim + d] = value / total;
    }
}

// For heads of up to 64 x PAIRS dimensions.
#define ATTEND(NAME, T, PAIRS)                                                                                         \
    extern "C" __global__ void NAME(const float *queries, const T *cache, const unsigned *rows, const unsigned *pages, \
                                    float *parts, unsigned heads, unsigned kv_heads, unsigned head_dim, float scale,   \
                                    float cap) {                                                                       \
        attend<T, PAIRS>(queries, cache, reinterpret_cast<const Row *>(rows), pages, parts, heads, kv_heads, head_dim, \
                         scale, cap);                                                                                  \
    }

ATTEND(attend_f32_64, float, 1)
ATTEND(attend_f32_128, float, 2)
ATTEND(attend_f32_256, float, 4)
ATTEND(attend_f16_64, __half, 1)
ATTEND(attend_f16_128, __half, 2)
ATTEND(attend_f16_256, __half, 4)
ATTEND(attend_bf16_64, __nv_bfloat16, 1)
ATTEND(attend_bf16_128, __nv_bfloat16, 2)
ATTEND(attend_bf16_256, __nv_bfloat16, 4)
