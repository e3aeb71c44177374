/* How many products of fp16-coded weights with vectors are not exact below the normal range of their format, where values are
 * multiples of 2^least: those with |w x| < 2^normal that are no such multiple. For each x these are
 *   the w below a threshold, in the order of their codes, that
 *   are no multiple of 2^s, where s = least - (place of x's last bit): by w's exponent, some of its last bits are not 0.
 * So a weight takes a comparison, and a test against one of 32 masks, which depend on s. Where x has more bits than a value below the
 * normal range can have, so has any product, and the comparison alone tells.
 */
#if defined(LEVEL_AVX512)

#define LEAST_S (-23)         /* below, all fp16 values are multiples; */
#define MOST_S 17             /* from here on none but 0 */

/* Which last bits of a code are not 0 where a value of exponent e is no multiple of 2^s. */
#define BITS(s, e) ((s) + ((e) ? 25 - (e) : 24))
#define ONE_MASK(s, e) (BITS(s, e) < 1 ? 0 : BITS(s, e) > 10 ? 0x7fff : (1 << (BITS(s, e) < 1 ? 0 : BITS(s, e) & 15)) - 1)
#define FOUR_MASKS(s, e) ONE_MASK(s, e), ONE_MASK(s, (e) + 1), ONE_MASK(s, (e) + 2), ONE_MASK(s, (e) + 3)
#define MASKS(s)                                                                                                      \
    {FOUR_MASKS(s, 0),  FOUR_MASKS(s, 4),  FOUR_MASKS(s, 8),  FOUR_MASKS(s, 12),                                      \
     FOUR_MASKS(s, 16), FOUR_MASKS(s, 20), FOUR_MASKS(s, 24), FOUR_MASKS(s, 28)}
#define EIGHT(s) MASKS(s), MASKS((s) + 1), MASKS((s) + 2), MASKS((s) + 3), MASKS((s) + 4), MASKS((s) + 5), MASKS((s) + 6), MASKS((s) + 7)
static const uint16_t masks[MOST_S - LEAST_S + 1][32] ALIGNED = {
    EIGHT(LEAST_S), EIGHT(LEAST_S + 8), EIGHT(LEAST_S + 16), EIGHT(LEAST_S + 24), EIGHT(LEAST_S + 32), MASKS(MOST_S)};

/* The least code of an fp16 value v >= 0 with v |x| >= 2^normal. Their 35 bits tell the quotient from any fp16 value. */
static uint16_t threshold_of(double x, double normal) {
    const double q = normal / x;
    if (q >= 65520.0) return 0x7c00;
    if (q <= 0x1p-14) {
        const int32_t below = (int32_t)(q * 0x1p24);
        return (uint16_t)(below + (below < q * 0x1p24));
    }
    uint64_t bits;
    memcpy(&bits, &q, 8);
    return (uint16_t)(((bits + (((uint64_t)1 << 42) - 1)) >> 42) - (1023 - 15) * 1024);
}

/* Columns of one vector: `plain` ones from the front of its `inputs`, `tested` ones from the back. */
void LEVEL(columns)(columns *to, const float *x, ptrdiff_t pitch, ptrdiff_t inputs, int normal, int least) {
    const double smallest = ldexp(1.0, normal);
    to->plain = to->tested = 0;
    for (ptrdiff_t j = 0; j < inputs; j++) {
        const float v = fabsf(x[j / 16 * pitch + j % 16]);
        uint32_t bits;
        memcpy(&bits, &v, 4);
        if (bits == 0) continue;
        const int exponent = (int)(bits >> 23), place = exponent ? exponent - 150 : -149;
        const uint32_t significand = (bits & 0x7fffff) | (exponent ? 0x800000 : 0);
        const int zeros = __builtin_ctz(significand), s = least - place - zeros;
        if (s < LEAST_S) continue;
        const uint16_t threshold = threshold_of(v, smallest);
        if (threshold <= 1) continue;
        const int length = 32 - __builtin_clz(significand) - zeros;
        column *c = length > normal - least ? to->list + to->plain++ : to->list + inputs - ++to->tested;
        *c = (column){(uint32_t)(j * 16), threshold, (uint16_t)((s < MOST_S ? s : MOST_S) - LEAST_S)};
    }
}

/* Those of 4 or 8 rows with some columns, in each of 32 lanes. */
INLINE __m512i found_in(const uint16_t *const *row, const int rows, const column *c, ptrdiff_t count, const int tested) {
    const __m512i magnitude = _mm512_set1_epi16(0x7fff), minus = _mm512_set1_epi16(-1);
    __m512i found[4];
    for (int k = 0; k < rows / 2; k++) found[k] = _mm512_setzero_si512();
    for (const column *end = c + count; c < end; c++) {
        const __m512i threshold = _mm512_set1_epi16((short)c->threshold);
        const __m512i mask = tested ? _mm512_load_si512(masks[c->s]) : minus;
        for (int k = 0; k < rows / 2; k++) {
            const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(row[2 * k] + c->at));
            const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(row[2 * k + 1] + c->at));
            const __m512i w = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), size = _mm512_and_si512(w, magnitude);
            __mmask32 below;
            if (tested) {
                const __m512i last = _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 10), mask);
                below = _mm512_mask_test_epi16_mask(_mm512_cmplt_epu16_mask(size, threshold), w, last);
            } else /* 0 - 1 is no less than any threshold - 1 */
                below = _mm512_cmplt_epu16_mask(_mm512_add_epi16(size, minus), _mm512_add_epi16(threshold, minus));
            found[k] = _mm512_mask_sub_epi16(found[k], below, found[k], minus);
        }
    }
    for (int k = 1; k < rows / 2; k++) found[0] = _mm512_add_epi16(found[0], found[k]);
    return found[0];
}

int64_t LEVEL(underflows)(const matrix *m, const int32_t *order, ptrdiff_t count, const columns *to) {
    const ptrdiff_t inputs = m->subs * 16;
    const __m512i one = _mm512_set1_epi16(1);
    __m512i total = _mm512_setzero_si512();
    for (ptrdiff_t r = 0; r < count;) {
        const int rows = count - r < 8 ? 4 : 8;
        const uint16_t *row[8];
        for (int k = 0; k < rows; k++) row[k] = (const uint16_t *)m->w + order[r + k] * inputs * 16;
        for (int tested = 0; tested < 2; tested++) {
            const ptrdiff_t all = tested ? to->tested : to->plain;
            const column *c = tested ? to->list + inputs - all : to->list;
            for (ptrdiff_t some, left = all; left > 0; left -= some, c += some) {
                some = left < 4096 ? left : 4096; /* no lane reaches 2^15 */
                const __m512i found = rows == 8 ? (tested ? found_in(row, 8, c, some, 1) : found_in(row, 8, c, some, 0))
                                                : (tested ? found_in(row, 4, c, some, 1) : found_in(row, 4, c, some, 0));
                total = _mm512_add_epi32(total, _mm512_madd_epi16(found, one));
            }
        }
        r += rows;
    }
    return _mm512_reduce_add_epi32(total);
}

#else

void LEVEL(columns)(columns *to, const float *x, ptrdiff_t pitch, ptrdiff_t inputs, int normal, int least) {
    (void)to, (void)x, (void)pitch, (void)inputs, (void)normal, (void)least;
}
int64_t LEVEL(underflows)(const matrix *m, const int32_t *order, ptrdiff_t count, const columns *to) {
    (void)m, (void)order, (void)count, (void)to;
    return 0;
}

#endif
