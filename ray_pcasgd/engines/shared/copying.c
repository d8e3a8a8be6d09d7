/* Copies float32 numbers, and looks at them as they pass by; copying.py has this compiled. */
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

static const uint32_t EXPONENT = 0x7f800000u; /* all ones: infinite, or not a number */

static uint32_t copied(float *restrict target, const float *restrict source, int64_t size)
{
    uint32_t odd = 0;
    for (int64_t i = 0; i < size; i++) {
        uint32_t bits;
        memcpy(&bits, source + i, sizeof bits);
        odd |= (bits & EXPONENT) == EXPONENT;
        memcpy(target + i, &bits, sizeof bits);
    }
    return odd;
}

/* Return 1 where all numbers are finite, else 0. */
int32_t copy(float *restrict target, const float *restrict source, int64_t size)
{
    int64_t i = 0;
    uint32_t odd = 0;
#ifdef __SSE2__
    /* Past the caches: what is written is not read first, and another process reads it. */
    while (i < size && ((uintptr_t)(target + i) & 15)) i++;
    odd = copied(target, source, i);
    const __m128i mask = _mm_set1_epi32((int32_t)EXPONENT);
    __m128i found = _mm_setzero_si128();
    for (; i + 4 <= size; i += 4) {
        __m128i four = _mm_loadu_si128((const __m128i *)(source + i));
        found = _mm_or_si128(found, _mm_cmpeq_epi32(_mm_and_si128(four, mask), mask));
        _mm_stream_si128((__m128i *)(target + i), four);
    }
    _mm_sfence();
    odd |= _mm_movemask_epi8(found) != 0;
#endif
    return !(odd | copied(target + i, source + i, size - i));
}
