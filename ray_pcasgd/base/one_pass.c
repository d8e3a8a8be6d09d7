/* Weighted sums of long vectors in one pass over memory; one_pass.py says what is computed, and has this compiled.
 *
 * Every number is rounded where PyTorch's operations, one after another, round it: the compiler is told not to make a
 * product and a sum one operation, and a difference is the sum with the negated factor.
 */
#include <stdint.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define LARGE_BYTES (4 << 20) /* two large pages, and what is left over before and after them */

typedef struct {
    const float *start;
    int64_t stride; /* 1; or 0 where one tile stands for the whole vector, whose numbers are all the same */
} Vector;

static const float *tile_of(Vector vector, int64_t at) { return vector.start + vector.stride * at; }

/* moved <- sum_k d_k (rate_k + bend_k d_k h_k), without bends sum_k d_k rate_k, over the neighbors of a rate. */
static void move(float *restrict moved, int64_t size, int64_t at, int64_t neighbors, const Vector *directions,
                 const Vector *drifts, const float *rates, const float *bends)
{
    for (int64_t i = 0; i < size; i++) moved[i] = 0.0f;
    for (int64_t k = 0; k < neighbors; k++) {
        const float *restrict d = tile_of(directions[k], at);
        float rate = rates[k];
        if (rate == 0.0f) continue;
        if (!bends) {
            for (int64_t i = 0; i < size; i++) moved[i] += d[i] * rate;
            continue;
        }
        const float *restrict h = tile_of(drifts[k], at);
        float bend = bends[k];
        for (int64_t i = 0; i < size; i++) moved[i] += d[i] * (rate + bend * (d[i] * h[i]));
    }
}

/* sum <- weight_0 v_0 + weight_1 v_1 + ..., in this order; four at a time, since a loop writes its sums once a time. */
static void add(float *restrict sum, int64_t size, int64_t at, int64_t count, const Vector *vectors,
                const float *weights)
{
    const float *restrict first = tile_of(vectors[0], at);
    for (int64_t i = 0; i < size; i++) sum[i] = weights[0] * first[i];
    int64_t j = 1;
    for (; j + 3 < count; j += 4) {
        const float *restrict a = tile_of(vectors[j], at), *restrict b = tile_of(vectors[j + 1], at);
        const float *restrict c = tile_of(vectors[j + 2], at), *restrict d = tile_of(vectors[j + 3], at);
        float of_a = weights[j], of_b = weights[j + 1], of_c = weights[j + 2], of_d = weights[j + 3];
        for (int64_t i = 0; i < size; i++)
            sum[i] = (((sum[i] + of_a * a[i]) + of_b * b[i]) + of_c * c[i]) + of_d * d[i];
    }
    for (; j < count; j++) {
        const float *restrict v = tile_of(vectors[j], at);
        float weight = weights[j];
        for (int64_t i = 0; i < size; i++) sum[i] += weight * v[i];
    }
}

/* The elements from begin to end of all sums, less what is predicted where thetas are given, and of that itself where
 * moves are. */
void weighted_sums(int64_t begin, int64_t end, int64_t count, const Vector *vectors, int64_t num_sums,
                   const float *weights, float *const *sums, int64_t neighbors, const Vector *directions,
                   const Vector *drifts, const float *rates, const float *bends, const float *thetas,
                   const int64_t *places, float *const *moves)
{
    float moved[TILE];
    for (int64_t at = begin; at < end; at += TILE) {
        int64_t size = end - at < TILE ? end - at : TILE;
        for (int64_t s = 0, last = -1; s < num_sums; s++) {
            float *restrict sum = sums[s] + at;
            add(sum, size, at, count, vectors, weights + s * count);
            if (!thetas) continue;
            int64_t place = places[s];
            /* Sums of one rate come one after another, mostly. */
            if (place != last)
                move(moved, size, at, neighbors, directions, drifts, rates + place * neighbors,
                     bends ? bends + place * neighbors : 0);
            last = place;
            /* Not 0 * moved: a sum stays finite where the prediction overflows. */
            float theta = thetas[s];
            if (theta != 0.0f)
                for (int64_t i = 0; i < size; i++) sum[i] -= theta * moved[i];
            if (!moves) continue;
            float *restrict taken = moves[s] + at;
            for (int64_t i = 0; i < size; i++) taken[i] = theta != 0.0f ? theta * moved[i] : 0.0f;
        }
    }
}

/* Ask for large pages for memory that is going to be written as a whole: these are there much sooner. */
void expect_writing(char *start, int64_t bytes)
{
#ifdef MADV_HUGEPAGE
    int64_t page = 4096, skipped = -(intptr_t)start & (page - 1);
    if (bytes >= LARGE_BYTES) madvise(start + skipped, (bytes - skipped) / page * page, MADV_HUGEPAGE);
#endif
}
