// The search's machine code for CPUs. What it must find, and why its bound proves it: visionad_runtime/search.py.
//
// One source for every instruction set (cpu.py builds it), without a C library. Queries are taken a panel at a time, turned so
// that a vector holds one column of several queries; bank rows are read where they lie, one number for all queries of the panel. A
// score leaves its register only if it may be among the k best, so there is no matrix of scores, not even a tile of one.
//
// With heads (axes.py), what is multiplied is a few columns that give an upper bound of each score, and the rows themselves are
// read only where it does not rule them out.

#include <stdbool.h>
#include <stdint.h>

// As many sums as the registers hold, beside a column of the panel and one number of a row.
#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 2, ROWS = 12 };
#elif defined(__AVX2__)
enum { LANES = 8, VECTORS = 2, ROWS = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, VECTORS = 4, ROWS = 6 };
#else
enum { LANES = 4, VECTORS = 2, ROWS = 6 };
#endif
enum { PANEL = LANES * VECTORS, COLUMNS = 4, PARTS = 8, ROOM = 64, LINE = 64 };
// With bounds, what a query may have scored of a piece of work before that is done without: one of FREE of the bank's rows, and one
// of FEW of those so far.
enum { FREE = 128, FEW = 32 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
typedef bool bits __attribute__((ext_vector_type(LANES)));
typedef float four __attribute__((vector_size(16), aligned(4)));
typedef float parts __attribute__((vector_size(4 * PARTS), aligned(4)));
typedef int32_t words __attribute__((vector_size(4 * PARTS), aligned(4)));
typedef double wide __attribute__((vector_size(8 * PARTS), aligned(8)));

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

// What is multiplied.
typedef struct {
    const float *queries, *rows;  // (count, dim), (length, dim)
    int64_t dim;
} Sides;

// One search, shared by its threads; cpu/__init__.py has the same.
typedef struct {
    Sides whole, head;  // head.dim: 0 for none, else at most that of the whole
    int64_t count, length, k;
    int64_t stretch;  // rows of a piece of work, whose other side is a panel
    double slack;     // bound of the error of a float32 score, and of a bound
    float *cut;       // (count,): rows whose float32 score is below are not among the k best
    char *hard;       // (panels,): not 0 where bounds have ruled out too little
    int64_t next;     // piece of work to be taken next
    int64_t scored;   // pairs that were scored in float64
    int64_t broken;   // not 0 once a score was NaN or Inf
} Search;

// What a thread found for the queries of its panel, and has not scored in float64 yet. Beside the panel in memory that the caller
// gives: too large for the stack of every system's threads.
typedef struct {
    float cut[PANEL];
    int32_t found[PANEL];
    int64_t row[PANEL][ROOM];
    float score[PANEL][ROOM];
    int64_t scored;
    float panel[] __attribute__((aligned(LINE)));  // (dim, PANEL)
} Candidates;

// A thread's best: (count, k), highest score first, of equal scores the lowest row.
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

// A product of two float32 is exact in float64, and the order in which they are added up depends on dim alone: every
// instruction set gives the same sum, with fused multiplication or without.
static double exact(const float *a, const float *b, int64_t dim)
{
    wide sum = {0};
    int64_t d = 0;
    for (; d + PARTS <= dim; d += PARTS)
        sum += __builtin_convertvector(*(const parts *)(a + d), wide) * __builtin_convertvector(*(const parts *)(b + d), wide);
    EVERY(i, PARTS - 1)
        if (d + i < dim)
            sum[i] += (double)a[d + i] * b[d + i];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

static bool same(const float *a, const float *b, int64_t dim)
{
    int64_t d = 0;
    for (; d + PARTS <= dim; d += PARTS)
        if (__builtin_reduce_or(*(const words *)(a + d) ^ *(const words *)(b + d)))
            return false;
    for (; d < dim; d++)
        if (a[d] != b[d])
            return false;
    return true;
}

// Scores the candidates of one query in float64, the likeliest first. Of a row that comes again and again, as it does in flat
// pictures, only one is.
static void settle(const Search *s, Candidates *c, int lane, int64_t query, Best best)
{
    const int64_t dim = s->whole.dim;
    const float *last = 0;
    double score = 0;
    int first = 0;
    for (int i = 1; i < c->found[lane]; i++)
        if (c->score[lane][i] > c->score[lane][first])
            first = i;
    for (int n = 0; n < c->found[lane]; n++) {
        const int i = n == 0 ? first : n <= first ? n - 1 : n;
        if (c->score[lane][i] < c->cut[lane])
            continue;
        const float *row = s->whole.rows + c->row[lane][i] * dim;
        if (!last || !same(row, last, dim)) {
            score = exact(s->whole.queries + query * dim, row, dim);
            c->scored++;
        }
        last = row;
        insert(best, query, score, c->row[lane][i]);
        float cut = (float)(best.score[query * s->k + s->k - 1] - s->slack);
        if (cut > c->cut[lane])
            c->cut[lane] = cut;
    }
    c->found[lane] = 0;
}

static void note(const Search *s, Candidates *c, bool bounds, int lane, int64_t query, int64_t row, float score, Best best)
{
    if (c->found[lane] == ROOM)
        settle(s, c, lane, query, best);
    if (bounds)  // it will be read
        for (int64_t d = 0; d < s->whole.dim; d += LINE / sizeof(float))
            __builtin_prefetch(s->whole.rows + row * s->whole.dim + d);
    c->row[lane][c->found[lane]] = row;
    c->score[lane][c->found[lane]++] = score;
    float cut = (float)(score - 2 * s->slack);
    if (!bounds && s->k == 1 && cut > c->cut[lane])
        c->cut[lane] = cut;
}

// Turns up to PANEL queries into columns. Lanes beyond them repeat the last.
static void turn(const float *queries, int64_t count, int64_t dim, float *panel)
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

// A panel's scores with the rows from start to end, or bounds of them. Compares ROWS rows with all queries at once; almost always
// none of them is near. Returns where it ended: earlier if bounds rule out too little.
static inline __attribute__((always_inline)) int64_t sweep_with(
    Search *s, Candidates *c, const Sides *sides, bool bounds, int64_t query, int64_t start, int64_t end, Best best)
{
    const vector zero = {0};
    const int64_t dim = sides->dim, scored = c->scored;
    vector cut[VECTORS], bad = zero;
    EVERY(v, VECTORS)
        cut[v] = *(const vector *)(c->cut + v * LANES);
    int64_t r = start;
    for (; r < end; r += ROWS) {
        const float *row[ROWS];
        EVERY(i, ROWS)
            row[i] = sides->rows + (r + i < end ? r + i : end - 1) * dim;
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
                near |= sum[i][v] >= cut[v];
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
                for (unsigned left = lanes(sum[i][v] >= *(const vector *)(c->cut + v * LANES)); left; left &= left - 1) {
                    int lane = v * LANES + __builtin_ctz(left);
                    note(s, c, bounds, lane, query + lane, r + i, sum[i][v][lane % LANES], best);
                }
        }
        EVERY(v, VECTORS)
            cut[v] = *(const vector *)(c->cut + v * LANES);
        if (bounds && c->scored - scored > PANEL * (s->length / FREE + (r - start) / FEW)) {
            r += ROWS;
            break;
        }
    }
    EVERY(l, LANES)
        if (bad[l] != 0)
            __atomic_store_n(&s->broken, 1, __ATOMIC_RELAXED);
    return r < end ? r : end;
}

// Not inlined, so that each has a frame of its own: Windows wants a C library for one of more than 4 kB.
static __attribute__((noinline)) int64_t sweep_bounds(Search *s, Candidates *c, int64_t query, int64_t start, int64_t end, Best best)
{
    return sweep_with(s, c, &s->head, true, query, start, end, best);
}

static __attribute__((noinline)) void sweep(Search *s, Candidates *c, int64_t query, int64_t start, int64_t end, Best best)
{
    sweep_with(s, c, &s->whole, false, query, start, end, best);
}

// A first cut for a query whose nearest row is wanted: the score of one row that is likely near it, the best by bounds of those at
// the query's own place if the bank's rows are those of pictures like the queries'.
static float first_cut(const Search *s, int64_t query)
{
    const int64_t dim = s->head.dim;
    const float *q = s->head.queries + query * dim;
    int64_t likely = -1;
    float most = -__builtin_inff();
    for (int64_t r = query; r < s->length; r += s->count) {
        parts sum = {0};
        for (int64_t d = 0; d < dim; d += PARTS)
            sum += *(const parts *)(q + d) * *(const parts *)(s->head.rows + r * dim + d);
        float bound = 0;
        EVERY(i, PARTS)
            bound += sum[i];
        if (bound > most) {
            most = bound;
            likely = r;
        }
    }
    if (likely < 0)
        return most;
    return (float)(exact(s->whole.queries + query * s->whole.dim, s->whole.rows + likely * s->whole.dim, s->whole.dim) - s->slack);
}

static void raise(float *shared, float cut)
{
    float known;
    __atomic_load(shared, &known, __ATOMIC_RELAXED);
    while (cut > known && !__atomic_compare_exchange(shared, &known, &cut, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

#ifdef __x86_64__
static void cpuid(uint32_t leaf, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(0));
}

static bool has(uint32_t found, uint32_t wanted)
{
    return (found & wanted) == wanted;
}
#endif

// The level of the x86-64 psABI that this CPU has under this system: 1, 3 or 4. On other CPUs 1. (Intel's manual, volume 2, CPUID.)
EXPORTED int64_t visionad_level(void)
{
#ifdef __x86_64__
    enum { EAX, EBX, ECX, EDX };
    uint32_t most[4], basic[4], more[4], extended[4], kept, upper;
    cpuid(0, most);
    cpuid(0x80000000, extended);
    if (most[EAX] < 7 || extended[EAX] < 0x80000001)
        return 1;
    cpuid(1, basic);
    cpuid(7, more);
    cpuid(0x80000001, extended);
    // SSE3, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT, OSXSAVE, AVX, F16C; BMI1, AVX2, BMI2; LAHF, LZCNT
    if (!has(basic[ECX], 1 << 0 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 27 | 1 << 28 | 1 << 29)
        || !has(more[EBX], 1 << 3 | 1 << 5 | 1 << 8) || !has(extended[ECX], 1 << 0 | 1 << 5))
        return 1;
    // Whether the system keeps a thread's registers: SSE and AVX; AVX-512's masks and its two halves.
    __asm__ volatile("xgetbv" : "=a"(kept), "=d"(upper) : "c"(0));
    if (!has(kept, 0x06))
        return 1;
    // AVX512F, DQ, CD, BW, VL
    return has(kept, 0xe6) && has(more[EBX], 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1u << 31) ? 4 : 3;
#else
    return 1;
#endif
}

// Queries of a panel.
EXPORTED int64_t visionad_panel(void)
{
    return PANEL;
}

// Bytes of scratch memory that a thread needs.
EXPORTED int64_t visionad_scratch(int64_t dim)
{
    return sizeof(Candidates) + dim * PANEL * sizeof(float) + LINE;
}

// Takes pieces of work until none is left. score, row: (count, k), this thread's best.
EXPORTED void visionad_search(Search *s, double *score, int64_t *row, char *scratch)
{
    Candidates *c = (Candidates *)(scratch + -(uintptr_t)scratch % LINE);
    const Best best = {score, row, s->k};
    const int64_t panels = (s->count + PANEL - 1) / PANEL, pieces = panels * ((s->length + s->stretch - 1) / s->stretch);
    c->scored = 0;
    for (int64_t i = 0; i < s->count * s->k; i++) {
        score[i] = -__builtin_inf();
        row[i] = INT64_MAX;
    }
    // Panels change faster than stretches, so that the rows which all threads read fit their common cache.
    for (int64_t piece; (piece = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < pieces;) {
        const int64_t query = piece % panels * PANEL, count = s->count - query < PANEL ? s->count - query : PANEL;
        const int64_t start = piece / panels * s->stretch, left = s->length - start;
        const int64_t end = start + (left < s->stretch ? left : s->stretch);
        char *hard = s->hard + piece % panels;
        for (int l = 0; l < PANEL; l++) {
            c->found[l] = 0;
            if (l < count)
                __atomic_load(s->cut + query + l, c->cut + l, __ATOMIC_RELAXED);
            else
                c->cut[l] = __builtin_nanf("");  // nothing compares with it, not even Inf
        }
        int64_t done = start;
        if (s->head.dim && !__atomic_load_n(hard, __ATOMIC_RELAXED)) {
            if (start == 0 && s->k == 1)
                for (int l = 0; l < count; l++)
                    c->cut[l] = first_cut(s, query + l);
            turn(s->head.queries + query * s->head.dim, count, s->head.dim, c->panel);
            done = sweep_bounds(s, c, query, start, end, best);
            if (done < end)
                __atomic_store_n(hard, 1, __ATOMIC_RELAXED);
        }
        if (done < end) {
            turn(s->whole.queries + query * s->whole.dim, count, s->whole.dim, c->panel);
            sweep(s, c, query, done, end, best);
        }
        for (int l = 0; l < count; l++) {
            settle(s, c, l, query + l, best);
            raise(s->cut + query + l, c->cut[l]);
        }
    }
    __atomic_fetch_add(&s->scored, c->scored, __ATOMIC_RELAXED);
}

// Rows (count, dim) times columns (dim, width), width a multiple of PARTS, summed in float64. With heads, the columns are axes of
// which the last is zero, and in its place comes the length of what they leave of the row, or a little more (axes.py).
EXPORTED void visionad_product(
    const float *rows, int64_t count, int64_t dim, const double *columns, int64_t width, int64_t heads, float *out)
{
    enum { BLOCK = 4 };
    for (int64_t r = 0; r < count; r += BLOCK) {
        const float *row[BLOCK];
        double left[BLOCK];
        EVERY(i, BLOCK) {
            row[i] = rows + (r + i < count ? r + i : count - 1) * dim;
            left[i] = heads ? exact(row[i], row[i], dim) : 0;
        }
        for (int64_t w = 0; w < width; w += PARTS) {
            wide sum[BLOCK] = {0};
            for (int64_t d = 0; d < dim; d++) {
                const wide column = *(const wide *)(columns + d * width + w);
                EVERY(i, BLOCK)
                    sum[i] += column * (double)row[i][d];
            }
            EVERY(i, BLOCK) {
                if (r + i < count)
                    *(parts *)(out + (r + i) * width + w) = __builtin_convertvector(sum[i], parts);
                EVERY(p, PARTS)
                    left[i] -= sum[i][p] * sum[i][p];
            }
        }
        EVERY(i, BLOCK)
            if (heads && r + i < count)
                out[(r + i) * width + width - 1] = (float)(__builtin_sqrt((left[i] > 0 ? left[i] : 0) + 1e-11) * (1 + 1e-7));
    }
}

// Puts another thread's best among a thread's own.
EXPORTED void visionad_merge(int64_t count, int64_t k, double *score, int64_t *row, const double *others_score, const int64_t *others_row)
{
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < k; j++)
            insert((Best){score, row, k}, i, others_score[i * k + j], others_row[i * k + j]);
}

// The float64 scores of pairs of a query and a row.
EXPORTED void visionad_exact(const float *queries, const float *rows, int64_t dim, const int64_t *query, const int64_t *row, int64_t pairs, double *score)
{
    for (int64_t i = 0; i < pairs; i++)
        score[i] = exact(queries + query[i] * dim, rows + row[i] * dim, dim);
}
