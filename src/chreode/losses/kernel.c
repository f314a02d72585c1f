/* The two log-likelihoods of counts.py with all their gradients, one cell after the other.

   A cell's row stays in the nearest cache from softmax to gradient. Each cell is the work of one
   thread, so the result does not depend on their number. Formulas and names are those of the reference
   in counts.py. exp and log are polynomials, because a call into libm would keep a loop from being
   vectorised; so would long chains of operations, which is why there are several loops. NaN of a
   logit comes out as NaN. Compiled, loaded and checked by kernel.py. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define FLOOR 9.8607613e-32f /* smallest_mean of float32 */
#define LARGEST 3269017.4f /* theta that rises is kept between this, exp(15), and its inverse */

/* NaN in b is kept; fmaxf and fminf would be calls, and drop it */
static inline float max_(float a, float b) { return a > b ? a : b; }
static inline float min_(float a, float b) { return a < b ? a : b; }

static inline float as_float(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int32_t as_bits(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* exp(x) to 1e-7 of itself; 0 where that is no longer a normal number. */
static inline float exp_(float x)
{
    float inside = min_(88.3f, max_(-87.3f, x));
    float n = (inside * 1.44269504f + 12582912.0f) - 12582912.0f; /* the nearest integer */
    float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;   /* inside - n log 2 */
    float p = 0.00139504795f;
    p = p * r + 0.00836888223f;
    p = p * r + 0.041666206f;
    p = p * r + 0.166665189f;
    p = p * r + 0.5f;
    p = p * (r * r) + (r + 1.0f);
    return x < -87.3f ? 0.0f : p * as_float(((int32_t)n + 127) << 23);
}

/* log(x) of a positive normal number, to 1e-7 of itself. */
static inline float log_(float x)
{
    int32_t bits = as_bits(x) + (0x3f800000 - 0x3f3504f3); /* mantissas from sqrt(1/2) to sqrt(2) */
    float n = (float)((bits >> 23) - 127);
    float f = as_float((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    float p = 0.0870043643f;
    p = p * f - 0.142674866f;
    p = p * f + 0.149147676f;
    p = p * f - 0.165775847f;
    p = p * f + 0.199630638f;
    p = p * f - 0.25001337f;
    p = p * f + 0.333339107f;
    p = (p * f - 0.5f) * (f * f) - n * 2.12194440e-4f;
    return (p + f) + n * 0.693359375f;
}

/* log(1 + x) of x >= 0, given 1 / (1 + x): the second term is what rounding has taken from 1 + x. */
static inline float log1p_(float x, float inverse)
{
    float u = 1.0f + x;
    return log_(u) + (x - (u - 1.0f)) * inverse;
}

/* log(a / b) from a - b and min(a, b). */
static inline float log_ratio(float difference, float smaller)
{
    float x = fabsf(difference) / smaller;
    return copysignf(log1p_(x, 1.0f / (1.0f + x)), difference);
}

/* Sum of the logs of numbers between 1/2 and 2, which are spent: 64 are multiplied for each log. */
static float sum_of_logs(int64_t n, float *x)
{
    float total = 0.0f;
    for (int round = 0; round < 6; round++) {
        int64_t half = n / 2;
        n -= half;
#pragma omp simd
        for (int64_t j = 0; j < half; j++) x[j] *= x[n + j];
    }
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) total += log_(x[j]);
    return total;
}

/* out = exp(x - top) with top = max x; returns the sum. */
static float exp_row(int64_t n, const float *restrict x, float *restrict out)
{
    float top = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < n; j++) top = max_(top, x[j]);
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) total += out[j] = exp_(x[j] - top);
    return total;
}

static void exp_both(int64_t n, const float *restrict x, float *restrict out, float *restrict inverse)
{
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        out[j] = exp_(x[j]);
        inverse[j] = exp_(-x[j]);
    }
}

/* The theta of a cell, which rises from `base` with the frequencies e / total, and its inverse. */
static void risen(int64_t n, float total, const float *restrict e, const float *restrict base,
                  const float *restrict rise, float *restrict out, float *restrict inverse)
{
    float per = 1.0f / total;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        out[j] = min_(LARGEST, max_(1.0f / LARGEST, base[j] + rise[j] * (e[j] * per)));
        inverse[j] = 1.0f / out[j];
    }
}

typedef struct { float ll, by_mu; } Sums; /* over the genes of a cell */

/* A row as if all its counts were zeros: log-probabilities, and their derivatives by log mu. */
static Sums zeros(int64_t n, float scale, const float *restrict e, const float *restrict theta,
                  const float *restrict inverse, float *restrict log_p, float *restrict by_mu)
{
    float ll = 0.0f, total = 0.0f;
#pragma omp simd reduction(+ : ll, total)
    for (int64_t j = 0; j < n; j++) {
        float mu = e[j] * scale, q = mu * inverse[j], r = 1.0f / (1.0f + q);
        log_p[j] = -theta[j] * log1p_(q, r);
        by_mu[j] = -mu * r;
        ll += log_p[j];
        total += by_mu[j];
    }
    return (Sums){ll, total};
}

/* The same with extra zeros: what `zeros` has left is weighted by the odds against one. */
static Sums inflate(int64_t n, float weight, const float *restrict logits, float *restrict log_p,
                    float *restrict by_mu, float *restrict by_dropout, float *restrict ratio)
{
    float ll = 0.0f, total = 0.0f;
#pragma omp simd reduction(+ : ll, total)
    for (int64_t j = 0; j < n; j++) {
        float v = -logits[j], u = log_p[j] + v;
        float tail_u = exp_(-fabsf(u)), tail_v = exp_(-fabsf(v));
        float both = 1.0f / ((1.0f + tail_u) * (1.0f + tail_v));
        float larger_u = (1.0f + tail_v) * both, larger_v = (1.0f + tail_u) * both;
        float counted = u < 0.0f ? tail_u * larger_u : larger_u; /* sigmoid(u) */
        float kept = v < 0.0f ? tail_v * larger_v : larger_v;
        ratio[j] = (1.0f + tail_u) * larger_v;
        ll += log_p[j] + max_(0.0f, -u) - max_(0.0f, -v);
        log_p[j] *= counted;
        by_mu[j] *= counted;
        total += by_mu[j];
        by_dropout[j] = weight * (kept - counted);
    }
    return (Sums){ll + sum_of_logs(n, ratio), total};
}

/* Gamma(v) at y = v + 4: log Gamma(v) = (v - 1/2) log y - y - log ratio + series + log(2 pi) / 2, and
   log y - digamma(v). */
typedef struct { float y, ratio, series, log_less_digamma; } Gamma;

static inline Gamma gamma_(float v)
{
    float y = v + 4.0f, inverse = 1.0f / y, square = inverse * inverse;
    float first = v * (v + 3.0f), second = first + 2.0f; /* v (v + 3) and (v + 1) (v + 2) */
    float series = inverse * (1.0f / 12 + square * (-1.0f / 360 + square * (1.0f / 1260)));
    float slope = square * (1.0f / 12 + square * (-1.0f / 120 + square * (1.0f / 252)));
    float reciprocals = (2.0f * v + 3.0f) * (1.0f / first + 1.0f / second);
    return (Gamma){y, first * square * (second * square), series, slope + 0.5f * inverse + reciprocals};
}

/* Counts k of mean m and inverse dispersion t: returns the sum of their log-probabilities, and leaves
   their derivatives by log mu in m, and in t what is -theta log(1 + q) in the derivative of a zero. */
static float counted(int64_t n, const float *restrict k, float *restrict m, float *restrict t)
{
    float ll = 0.0f;
#pragma omp simd reduction(+ : ll)
    for (int64_t i = 0; i < n; i++) {
        float x = k[i], mu = max_(FLOOR, m[i]), theta = t[i], both = mu + theta;
        Gamma z = gamma_(x + theta), s = gamma_(theta), f = gamma_(x + 1.0f);
        float of_theta = log_ratio(theta * (x - mu) - 4.0f * mu, min_(z.y * theta, s.y * both));
        float of_x = log_ratio(theta * (mu - f.y) - mu, min_(z.y * mu, f.y * both));
        float ratio = z.ratio / (s.ratio * f.ratio);
        ll += theta * of_theta + x * of_x - 0.5f * log_(ratio * ratio * z.y * f.y / s.y);
        ll += z.series - s.series - f.series + (5.0f - 0.918938533f);
        m[i] = (x - mu) * theta / both;
        t[i] = theta * (of_theta - z.log_less_digamma + s.log_less_digamma);
    }
    return ll;
}

/* Returns the sum of log sigmoid(-logits), and leaves its derivatives in their place. */
static float not_dropped(int64_t n, float *restrict logits)
{
    float ll = 0.0f;
#pragma omp simd reduction(+ : ll)
    for (int64_t i = 0; i < n; i++) {
        float v = -logits[i], tail = exp_(-fabsf(v)), larger = 1.0f / (1.0f + tail);
        ll -= max_(0.0f, -v) + log_(1.0f + tail);
        logits[i] = (v < 0.0f ? tail * larger : larger) - 1.0f;
    }
    return ll;
}

/* Adds to by_theta, and makes of the derivative by log mu that by the softmax's logits, weighted. */
static void finish(int64_t n, float weight, float share, const float *restrict e,
                   const float *restrict log_p, float *restrict by_mu, float *restrict by_theta)
{
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        by_theta[j] += weight * (log_p[j] - by_mu[j]);
        by_mu[j] = weight * (by_mu[j] - e[j] * share);
    }
}

/* As `finish`, where theta rises with the frequencies; log_p is spent. */
static void finish_risen(int64_t n, float weight, float by_mu_sum, float total, const float *restrict rise,
                         const float *restrict theta, const float *restrict inverse,
                         const float *restrict e, float *restrict log_p, float *restrict by_mu,
                         float *restrict by_theta, float *restrict by_rise)
{
    float per = 1.0f / total, sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        float d = theta[j] > 1.0f / LARGEST && theta[j] < LARGEST ? log_p[j] - by_mu[j] : 0.0f;
        float risen = d * (rise[j] * (e[j] * per) * inverse[j]); /* its share of the derivative */
        by_theta[j] += weight * (d - risen);
        by_rise[j] += weight * risen;
        log_p[j] = risen;
        sum += risen;
    }
    float share = (by_mu_sum + sum) * per;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) by_mu[j] = weight * (by_mu[j] + log_p[j] - e[j] * share);
}

/* What a thread works with: rows of g numbers. */
typedef struct {
    float *e, *log_p, *spare, *theta; /* of the genes; theta is followed by its inverse */
    float *k, *m, *t, *dropped;       /* of the counts: themselves, exp(logit), theta, dropout logit */
    int32_t *at;                      /* and their genes */
} Rows;

enum { ROWS = 10, BLOCKS = 16 };

static Rows rows_at(float *scratch, int64_t g)
{
    Rows r = {.e = scratch, .log_p = scratch + g, .spare = scratch + 2 * g, .theta = scratch + 3 * g};
    r.k = r.theta + 2 * g;
    r.m = r.k + g;
    r.t = r.m + g;
    r.dropped = r.t + g;
    r.at = (int32_t *)(r.dropped + g);
    return r;
}

/* Moves a cell's counts out of its row, where `zeros` then finds a mean of 0 and makes terms of 0.
   Returns their number, or -1 if columns are not those of a matrix with g of them. */
static int64_t take(int64_t g, int64_t stored, const int64_t *columns, const float *values,
                    const float *theta, const float *dropout, Rows r)
{
    int64_t n = 0;
    for (int64_t c = 0; c < stored; c++) {
        int64_t j = columns[c];
        if (j < 0 || j >= g || n >= g) return -1;
        if (values[c] == 0.0f) continue; /* a stored zero is a zero */
        r.at[n] = (int32_t)j;
        r.k[n] = values[c];
        r.m[n] = r.e[j];
        r.t[n] = theta[j];
        if (dropout) r.dropped[n] = dropout[j];
        r.e[j] = 0.0f;
        n++;
    }
    return n;
}

/* Puts counts back, with their terms; returns the sums that they add to those of the zeros. */
static Sums put(int64_t n, float weight, float scale, Rows r, float *by_mu, float *by_dropout)
{
    for (int64_t c = 0; c < n; c++) {
        r.e[r.at[c]] = r.m[c];
        r.m[c] *= scale;
    }
    Sums sums = {counted(n, r.k, r.m, r.t), 0.0f};
    if (by_dropout) sums.ll += not_dropped(n, r.dropped);
    for (int64_t c = 0; c < n; c++) {
        int32_t j = r.at[c];
        r.log_p[j] = r.t[c];
        by_mu[j] = r.m[c];
        sums.by_mu += r.m[c];
        if (by_dropout) by_dropout[j] = weight * r.dropped[c];
    }
    return sums;
}

static void add_blocks(int64_t g, const float *restrict blocks, float *restrict out)
{
    memcpy(out, blocks, sizeof(float) * g);
    for (int64_t block = 1; block < BLOCKS; block++) {
        const float *restrict row = blocks + block * g;
#pragma omp simd
        for (int64_t j = 0; j < g; j++) out[j] += row[j];
    }
}

/* Log-likelihoods of b cells with g genes, and the gradient of their sum weighted by `weights`.
   theta has one row or b; dropout_logits and by_dropout are NULL for the negative binomial. With
   log_rise (else NULL; then theta has one row) theta is exp(log_theta) + exp(log_rise) x frequency.
   by_theta and by_rise are summed over blocks of cells, then over the blocks, whatever the number of
   threads. scratch: ROWS rows of g for each thread, then 3 + 2 BLOCKS. Returns 0, or 1 if columns are
   wrong. */
int chreode_counts(int64_t threads, int64_t b, int64_t g, int64_t theta_rows, const int64_t *indptr,
                   const int64_t *columns, const float *values, const float *weights,
                   const float *logits, const float *log_library, const float *log_theta,
                   const float *dropout_logits, const float *log_rise, float *scratch, float *ll,
                   float *by_logits, float *by_library, float *by_theta, float *by_dropout,
                   float *by_rise)
{
    int shared = theta_rows == 1, wrong = 0;
    float *shared_theta = scratch + ROWS * threads * g, *rise = shared_theta + 2 * g;
    float *blocks = rise + g, *sums_by_theta = shared ? blocks : by_theta;
    float *sums_by_rise = blocks + BLOCKS * g;
    if (shared) exp_both(g, log_theta, shared_theta, shared_theta + g);
    if (log_rise) {
        for (int64_t j = 0; j < g; j++) rise[j] = exp_(log_rise[j]);
        memset(sums_by_rise, 0, sizeof(float) * BLOCKS * g);
    }
    memset(sums_by_theta, 0, sizeof(float) * (shared ? BLOCKS : b) * g);
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : wrong)
    for (int64_t thread = 0; thread < threads; thread++) {
        Rows r = rows_at(scratch + ROWS * thread * g, g);
        if (shared && !log_rise) r.theta = shared_theta;
        for (int64_t block = thread; block < BLOCKS; block += threads) {
            for (int64_t i = b * block / BLOCKS; i < b * (block + 1) / BLOCKS; i++) {
                const float *dropout = dropout_logits ? dropout_logits + i * g : NULL;
                float *d = by_logits + i * g, *p = dropout ? by_dropout + i * g : NULL;
                if (!shared) exp_both(g, log_theta + i * g, r.theta, r.theta + g);
                float total = exp_row(g, logits + i * g, r.e);
                float scale = expf(log_library[i]) / total;
                if (log_rise) risen(g, total, r.e, shared_theta, rise, r.theta, r.theta + g);
                int64_t from = indptr[i], stored = indptr[i + 1] - from;
                int64_t n = take(g, stored, columns + from, values + from, r.theta, dropout, r);
                if (n < 0) {
                    wrong = 1;
                    continue;
                }
                Sums sums = zeros(g, scale, r.e, r.theta, r.theta + g, r.log_p, d);
                if (dropout) sums = inflate(g, weights[i], dropout, r.log_p, d, p, r.spare);
                Sums more = put(n, weights[i], scale, r, d, p);
                float by_mu = sums.by_mu + more.by_mu;
                ll[i] = sums.ll + more.ll;
                by_library[i] = weights[i] * by_mu;
                if (log_rise)
                    finish_risen(g, weights[i], by_mu, total, rise, r.theta, r.theta + g, r.e, r.log_p,
                                 d, sums_by_theta + block * g, sums_by_rise + block * g);
                else
                    finish(g, weights[i], by_mu / total, r.e, r.log_p, d,
                           sums_by_theta + (shared ? block : i) * g);
            }
        }
    }
    if (shared) add_blocks(g, blocks, by_theta);
    if (log_rise) add_blocks(g, sums_by_rise, by_rise);
    return wrong;
}
