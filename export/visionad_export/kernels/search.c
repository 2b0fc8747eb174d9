// Exact nearest-neighbour search on a CPU. visionad_runtime/search/numpy_search.py defines the result.
//
// One source for every instruction set (cpu.py compiles it), without a C library. Queries are processed a panel at a time, transposed
// so that a vector holds one column of several queries. Bank rows are read in place, one number for all queries of the panel. A score
// leaves its register only if the row may be among the k best, so no score matrix is ever stored.
//
// With projections (search/pruning.py), a product of a few columns gives an upper bound of each score, and a full row is read only
// if its bound does not rule it out.

#include <stdbool.h>
#include <stdint.h>

// As many accumulators as the registers hold, beside a column of the panel and one number of a row.
#if defined(__AVX2__)
enum { LANES = 8, VECTORS = 2, ROWS = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, VECTORS = 4, ROWS = 6 };
#else
enum { LANES = 4, VECTORS = 2, ROWS = 6 };
#endif
enum { PANEL = LANES * VECTORS, COLUMNS = 4, PARTIAL_SUMS = 8, MAX_CANDIDATES = 64, LINE = 64 };
// Projections are given up for a chunk once its queries have rescored more than 1 / FREE_PART of the bank's rows and 1 / RATE_PART of
// the rows seen so far.
enum { FREE_PART = 128, RATE_PART = 32 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
typedef bool bits __attribute__((ext_vector_type(LANES)));
typedef float four __attribute__((vector_size(16), aligned(4)));
typedef float parts __attribute__((vector_size(4 * PARTIAL_SUMS), aligned(4)));
typedef int32_t words __attribute__((vector_size(4 * PARTIAL_SUMS), aligned(4)));
typedef double wide __attribute__((vector_size(8 * PARTIAL_SUMS), aligned(8)));

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
// What Windows calls when it has loaded a library, which a C library would bring.
int __stdcall DllMainCRTStartup(void *library, uint32_t reason, void *reserved)
{
    (void)library, (void)reason, (void)reserved;
    return 1;
}
#else
#define EXPORTED __attribute__((visibility("default")))
#endif
#define EVERY(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < (n); i++)

// The two factors of the score product.
typedef struct {
    const float *queries, *rows;  // (count, dim), (length, dim)
    int64_t dim;
} Operands;

// One search, shared by its threads. search/native.py declares the same structure.
typedef struct {
    Operands full, projection;  // projection.dim: 0 for none, else at most full.dim
    int64_t query_count, row_count, k;
    int64_t row_chunk;   // rows of a chunk of work; its queries are one panel
    double error_bound;  // of a float32 score, and of a projected upper bound
    float *lower_bound;  // (query_count,): a row whose float32 score is below it is not among the k best
    char *unprunable;    // (panels,): not 0 where projections have ruled out too few rows
    int64_t next_chunk;  // taken by the next free thread
    int64_t rescored;    // pairs that were scored in float64
    int64_t not_finite;  // not 0 once a score was NaN or Inf
} Search;

// A thread's candidates for the queries of its panel, not yet scored in float64. Lies in memory from the caller, beside the panel,
// because it is too large for the thread stacks of some systems.
typedef struct {
    float lower_bound[PANEL];
    int32_t size[PANEL];
    int64_t row[PANEL][MAX_CANDIDATES];
    float score[PANEL][MAX_CANDIDATES];
    int64_t rescored;
    float panel[] __attribute__((aligned(LINE)));  // (dim, PANEL)
} Candidates;

// A thread's results: (query_count, k), highest score first, ties to the lowest row.
typedef struct {
    double *score;
    int64_t *row;
    int64_t k;
} Best;

static void insert(Best best, int64_t query, double score, int64_t row)
{
    double *s = best.score + query * best.k;
    int64_t *r = best.row + query * best.k, at = best.k;
    while (at > 0 && (score > s[at - 1] || (score == s[at - 1] && row < r[at - 1])))
        at--;
    if (at == best.k)
        return;
    for (int64_t i = best.k - 1; i > at; i--) {
        s[i] = s[i - 1];
        r[i] = r[i - 1];
    }
    s[at] = score;
    r[at] = row;
}

// A product of two float32 is exact in float64, and the order of summation depends on dim alone. So every
// instruction set gives the same sum, with fused multiplication or without.
static double exact_score(const float *a, const float *b, int64_t dim)
{
    wide sum = {0};
    int64_t d = 0;
    for (; d + PARTIAL_SUMS <= dim; d += PARTIAL_SUMS)
        sum += __builtin_convertvector(*(const parts *)(a + d), wide) * __builtin_convertvector(*(const parts *)(b + d), wide);
    EVERY(i, PARTIAL_SUMS - 1)
        if (d + i < dim)
            sum[i] += (double)a[d + i] * b[d + i];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

static bool rows_equal(const float *a, const float *b, int64_t dim)
{
    int64_t d = 0;
    for (; d + PARTIAL_SUMS <= dim; d += PARTIAL_SUMS)
        if (__builtin_reduce_or(*(const words *)(a + d) ^ *(const words *)(b + d)))
            return false;
    for (; d < dim; d++)
        if (a[d] != b[d])
            return false;
    return true;
}

// Scores the candidates of one query in float64, the most likely first. Repeated rows, as flat images have them, are scored once.
static void rescore_candidates(const Search *s, Candidates *c, int lane, int64_t query, Best best)
{
    const int64_t dim = s->full.dim;
    const float *last = 0;
    double score = 0;
    int first = 0;
    for (int i = 1; i < c->size[lane]; i++)
        if (c->score[lane][i] > c->score[lane][first])
            first = i;
    for (int n = 0; n < c->size[lane]; n++) {
        const int i = n == 0 ? first : n <= first ? n - 1 : n;
        if (c->score[lane][i] < c->lower_bound[lane])
            continue;
        const float *row = s->full.rows + c->row[lane][i] * dim;
        if (!last || !rows_equal(row, last, dim)) {
            score = exact_score(s->full.queries + query * dim, row, dim);
            c->rescored++;
        }
        last = row;
        insert(best, query, score, c->row[lane][i]);
        float lower_bound = (float)(best.score[query * s->k + s->k - 1] - s->error_bound);
        if (lower_bound > c->lower_bound[lane])
            c->lower_bound[lane] = lower_bound;
    }
    c->size[lane] = 0;
}

static void push_candidate(const Search *s, Candidates *c, bool bounds, int lane, int64_t query, int64_t row, float score, Best best)
{
    if (c->size[lane] == MAX_CANDIDATES)
        rescore_candidates(s, c, lane, query, best);
    if (bounds)  // the full row will be read
        for (int64_t d = 0; d < s->full.dim; d += LINE / sizeof(float))
            __builtin_prefetch(s->full.rows + row * s->full.dim + d);
    c->row[lane][c->size[lane]] = row;
    c->score[lane][c->size[lane]++] = score;
    float lower_bound = (float)(score - 2 * s->error_bound);
    if (!bounds && s->k == 1 && lower_bound > c->lower_bound[lane])
        c->lower_bound[lane] = lower_bound;
}

// Transposes up to PANEL queries into columns. Lanes beyond the last query repeat it.
static void transpose(const float *queries, int64_t count, int64_t dim, float *panel)
{
    for (int i = 0; i < PANEL; i += 4) {
        const float *q[4];
        EVERY(j, 4)
            q[j] = queries + (i + j < count ? i + j : count - 1) * dim;
        int64_t d = 0;
        for (; d + 4 <= dim; d += 4) {
            four a = *(const four *)(q[0] + d), b = *(const four *)(q[1] + d);
            four e = *(const four *)(q[2] + d), f = *(const four *)(q[3] + d);
            four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ef = __builtin_shufflevector(e, f, 0, 4, 1, 5);
            four ba = __builtin_shufflevector(a, b, 2, 6, 3, 7), fe = __builtin_shufflevector(e, f, 2, 6, 3, 7);
            *(four *)(panel + (d + 0) * PANEL + i) = __builtin_shufflevector(ab, ef, 0, 1, 4, 5);
            *(four *)(panel + (d + 1) * PANEL + i) = __builtin_shufflevector(ab, ef, 2, 3, 6, 7);
            *(four *)(panel + (d + 2) * PANEL + i) = __builtin_shufflevector(ba, fe, 0, 1, 4, 5);
            *(four *)(panel + (d + 3) * PANEL + i) = __builtin_shufflevector(ba, fe, 2, 3, 6, 7);
        }
        for (; d < dim; d++)
            EVERY(j, 4)
                panel[d * PANEL + i + j] = q[j][d];
    }
}

static inline __attribute__((always_inline)) void add_column(const float *column, const float *const *row, int64_t d, vector sum[ROWS][VECTORS])
{
    vector x[VECTORS];
    EVERY(v, VECTORS)
        x[v] = *(const vector *)(column + v * LANES);
    EVERY(i, ROWS) {
        float y = row[i][d];
        EVERY(v, VECTORS)
            sum[i][v] += x[v] * y;
    }
}

static unsigned lanes(mask m)
{
    bits b = __builtin_convertvector(m, bits);
    unsigned out = 0;
    __builtin_memcpy(&out, &b, sizeof b);
    return out & ((1u << LANES) - 1);
}

// Computes a panel's scores with the rows from start to end, or upper bounds of them. Compares ROWS rows with all queries at once;
// almost always none of them is a candidate. Returns the row at which it stopped: before the end if bounds rule out too few rows.
static inline __attribute__((always_inline)) int64_t scan_rows(
    Search *s, Candidates *c, const Operands *operands, bool bounds, int64_t query, int64_t start, int64_t end, Best best)
{
    const vector zero = {0};
    const int64_t dim = operands->dim, rescored = c->rescored;
    vector lower_bound[VECTORS], bad = zero;
    EVERY(v, VECTORS)
        lower_bound[v] = *(const vector *)(c->lower_bound + v * LANES);
    int64_t r = start;
    for (; r < end; r += ROWS) {
        const float *row[ROWS];
        EVERY(i, ROWS)
            row[i] = operands->rows + (r + i < end ? r + i : end - 1) * dim;
        vector sum[ROWS][VECTORS];
        EVERY(i, ROWS)
            EVERY(v, VECTORS)
                sum[i][v] = zero;
        int64_t d = 0;
        for (; d + COLUMNS <= dim; d += COLUMNS)
            EVERY(u, COLUMNS)
                add_column(c->panel + (d + u) * PANEL, row, d + u, sum);
        for (; d < dim; d++)
            add_column(c->panel + d * PANEL, row, d, sum);

        mask near = {0};
        EVERY(v, VECTORS) {
            vector all = zero;
            EVERY(i, ROWS) {
                near |= sum[i][v] >= lower_bound[v];
                if (!bounds)
                    all += sum[i][v];
            }
            bad += all * zero;  // NaN, once any of them is NaN or Inf
        }
        if (!__builtin_reduce_or(near))
            continue;
        EVERY(i, ROWS) {
            if (r + i == end)
                break;
            EVERY(v, VECTORS)
                for (unsigned left = lanes(sum[i][v] >= *(const vector *)(c->lower_bound + v * LANES)); left; left &= left - 1) {
                    int lane = v * LANES + __builtin_ctz(left);
                    push_candidate(s, c, bounds, lane, query + lane, r + i, sum[i][v][lane % LANES], best);
                }
        }
        EVERY(v, VECTORS)
            lower_bound[v] = *(const vector *)(c->lower_bound + v * LANES);
        if (bounds && c->rescored - rescored > PANEL * (s->row_count / FREE_PART + (r - start) / RATE_PART)) {
            r += ROWS;
            break;
        }
    }
    EVERY(l, LANES)
        if (bad[l] != 0)
            __atomic_store_n(&s->not_finite, 1, __ATOMIC_RELAXED);
    return r < end ? r : end;
}

// Not inlined, so that each has its own stack frame: Windows needs a C library for a frame above 4 kB.
static __attribute__((noinline)) int64_t scan_projections(Search *s, Candidates *c, int64_t query, int64_t start, int64_t end, Best best)
{
    return scan_rows(s, c, &s->projection, true, query, start, end, best);
}

static __attribute__((noinline)) void scan_full_rows(Search *s, Candidates *c, int64_t query, int64_t start, int64_t end, Best best)
{
    scan_rows(s, c, &s->full, false, query, start, end, best);
}

// Returns an initial lower bound for k = 1: the score of one row that is likely near. It is the best by upper bound of the rows at
// the query's own position, if the bank's rows come from images of as many patches as there are queries.
static float initial_lower_bound(const Search *s, int64_t query)
{
    const int64_t dim = s->projection.dim;
    const float *q = s->projection.queries + query * dim;
    int64_t likely = -1;
    float best_bound = -__builtin_inff();
    for (int64_t r = query; r < s->row_count; r += s->query_count) {
        parts sum = {0};
        for (int64_t d = 0; d < dim; d += PARTIAL_SUMS)
            sum += *(const parts *)(q + d) * *(const parts *)(s->projection.rows + r * dim + d);
        float bound = 0;
        EVERY(i, PARTIAL_SUMS)
            bound += sum[i];
        if (bound > best_bound) {
            best_bound = bound;
            likely = r;
        }
    }
    if (likely < 0)
        return best_bound;
    return (float)(exact_score(s->full.queries + query * s->full.dim, s->full.rows + likely * s->full.dim, s->full.dim) - s->error_bound);
}

static void raise_lower_bound(float *shared, float lower_bound)
{
    float known;
    __atomic_load(shared, &known, __ATOMIC_RELAXED);
    while (lower_bound > known && !__atomic_compare_exchange(shared, &known, &lower_bound, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

#ifdef __x86_64__
// For code that asks what the CPU can do: it must run on any x86-64 CPU, in every build.
#define BASELINE __attribute__((target("no-sse3,no-bmi,no-bmi2,no-lzcnt,no-movbe,no-popcnt")))

BASELINE static void cpuid(uint32_t leaf, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(0));
}

BASELINE static bool has(uint32_t flags, uint32_t expected)
{
    return (flags & expected) == expected;
}
#else
#define BASELINE
#endif

// Returns the x86-64 psABI level of this CPU under this system: 1 or 3. On other CPUs 1. (Intel's manual, volume 2, CPUID.)
EXPORTED BASELINE int64_t visionad_level(void)
{
#ifdef __x86_64__
    enum { EAX, EBX, ECX, EDX };
    uint32_t highest[4], leaf1[4], leaf7[4], extended[4], saved, upper;
    cpuid(0, highest);
    cpuid(0x80000000, extended);
    if (highest[EAX] < 7 || extended[EAX] < 0x80000001)
        return 1;
    cpuid(1, leaf1);
    cpuid(7, leaf7);
    cpuid(0x80000001, extended);
    // SSE3, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT, OSXSAVE, AVX, F16C; BMI1, AVX2, BMI2; LAHF, LZCNT
    if (!has(leaf1[ECX], 1 << 0 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 27 | 1 << 28 | 1 << 29)
        || !has(leaf7[EBX], 1 << 3 | 1 << 5 | 1 << 8) || !has(extended[ECX], 1 << 0 | 1 << 5))
        return 1;
    // Whether the system saves a thread's SSE and AVX registers.
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    return has(saved, 0x06) ? 3 : 1;
#else
    return 1;
#endif
}

// Returns the number of queries of a panel.
EXPORTED int64_t visionad_panel(void)
{
    return PANEL;
}

// Returns the bytes of scratch memory that a thread needs.
EXPORTED int64_t visionad_scratch(int64_t dim)
{
    return sizeof(Candidates) + dim * PANEL * sizeof(float) + LINE;
}

// Takes chunks of work until none is left. score, row: (query_count, k), this thread's results.
EXPORTED void visionad_search(Search *s, double *score, int64_t *row, char *scratch)
{
    Candidates *c = (Candidates *)(scratch + -(uintptr_t)scratch % LINE);
    const Best best = {score, row, s->k};
    const int64_t panels = (s->query_count + PANEL - 1) / PANEL, chunks = panels * ((s->row_count + s->row_chunk - 1) / s->row_chunk);
    c->rescored = 0;
    for (int64_t i = 0; i < s->query_count * s->k; i++) {
        score[i] = -__builtin_inf();
        row[i] = INT64_MAX;
    }
    // Panels change faster than row chunks, so that the rows which all threads read fit their shared cache.
    for (int64_t chunk; (chunk = __atomic_fetch_add(&s->next_chunk, 1, __ATOMIC_RELAXED)) < chunks;) {
        const int64_t query = chunk % panels * PANEL, count = s->query_count - query < PANEL ? s->query_count - query : PANEL;
        const int64_t start = chunk / panels * s->row_chunk, left = s->row_count - start;
        const int64_t end = start + (left < s->row_chunk ? left : s->row_chunk);
        char *unprunable = s->unprunable + chunk % panels;
        for (int l = 0; l < PANEL; l++) {
            c->size[l] = 0;
            if (l < count)
                __atomic_load(s->lower_bound + query + l, c->lower_bound + l, __ATOMIC_RELAXED);
            else
                c->lower_bound[l] = __builtin_nanf("");  // nothing compares with it, not even Inf
        }
        int64_t done = start;
        if (s->projection.dim && !__atomic_load_n(unprunable, __ATOMIC_RELAXED)) {
            if (start == 0 && s->k == 1)
                for (int l = 0; l < count; l++)
                    c->lower_bound[l] = initial_lower_bound(s, query + l);
            transpose(s->projection.queries + query * s->projection.dim, count, s->projection.dim, c->panel);
            done = scan_projections(s, c, query, start, end, best);
            if (done < end)
                __atomic_store_n(unprunable, 1, __ATOMIC_RELAXED);
        }
        if (done < end) {
            transpose(s->full.queries + query * s->full.dim, count, s->full.dim, c->panel);
            scan_full_rows(s, c, query, done, end, best);
        }
        for (int l = 0; l < count; l++) {
            rescore_candidates(s, c, l, query + l, best);
            raise_lower_bound(s->lower_bound + query + l, c->lower_bound[l]);
        }
    }
    __atomic_fetch_add(&s->rescored, c->rescored, __ATOMIC_RELAXED);
}

// Multiplies rows (count, dim) by columns (dim, width), width a multiple of PARTIAL_SUMS, summed in float64. With residual, the columns
// are components of which the last is zero; its place takes the length of what they leave of the row, rounded up (search/pruning.py).
EXPORTED void visionad_product(
    const float *rows, int64_t count, int64_t dim, const double *columns, int64_t width, int64_t residual, float *out)
{
    enum { BLOCK = 4 };
    for (int64_t r = 0; r < count; r += BLOCK) {
        const float *row[BLOCK];
        double rest[BLOCK];
        EVERY(i, BLOCK) {
            row[i] = rows + (r + i < count ? r + i : count - 1) * dim;
            rest[i] = residual ? exact_score(row[i], row[i], dim) : 0;
        }
        for (int64_t w = 0; w < width; w += PARTIAL_SUMS) {
            wide sum[BLOCK] = {0};
            for (int64_t d = 0; d < dim; d++) {
                const wide column = *(const wide *)(columns + d * width + w);
                EVERY(i, BLOCK)
                    sum[i] += column * (double)row[i][d];
            }
            EVERY(i, BLOCK) {
                if (r + i < count)
                    *(parts *)(out + (r + i) * width + w) = __builtin_convertvector(sum[i], parts);
                EVERY(p, PARTIAL_SUMS)
                    rest[i] -= sum[i][p] * sum[i][p];
            }
        }
        EVERY(i, BLOCK)
            if (residual && r + i < count)
                out[(r + i) * width + width - 1] = (float)(__builtin_sqrt((rest[i] > 0 ? rest[i] : 0) + 1e-11) * (1 + 1e-7));
    }
}

// Merges another thread's results into a thread's own.
EXPORTED void visionad_merge(int64_t count, int64_t k, double *score, int64_t *row, const double *others_score, const int64_t *others_row)
{
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < k; j++)
            insert((Best){score, row, k}, i, others_score[i * k + j], others_row[i * k + j]);
}
