/* A driver library for tests: what pycuda and device.py call of NVIDIA's libcuda, on a GPU that is host memory.
 *
 * Every call is held to the driver's rules: a current context, live handles, copies inside one allocation, no call that a
 * capture forbids, kernel arguments of the size that the loaded code takes. What breaks one is told by `pretend_fault` and
 * answered with the driver's error. Work runs when it is enqueued. Kernels are run by the test, through callbacks.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef int Status;
typedef unsigned long long Address;
enum { OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, NO_CONTEXT = 201, INVALID_IMAGE = 200, NO_BINARY = 209, INVALID_HANDLE = 400,
       NOT_FOUND = 500, NOT_READY = 600, FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum Kind { MEMORY, PINNED, STREAM, EVENT, MODULE, GRAPH, EXEC, KINDS };

typedef struct Operation {
    struct Operation *next;
    int kernel;
    Address to, from;
    size_t bytes;
    struct Function *function;
    unsigned grid[3], block[3], shared;
    unsigned char arguments[256];
} Operation;

typedef struct Handle { /* of whatever kind; never reused, so that a dead one is known */
    int kind, live;
    unsigned flags;
    Address base;
    size_t bytes;
    struct Handle *capturing; /* a stream's graph */
    int invalidated;
    Operation *first, *last;  /* a graph's */
    double when;              /* an event's */
    int code;                 /* a module's number at the test */
    struct Handle *next;
} Handle;

typedef struct Function {
    Handle *module;
    int number, most_shared, carveout; /* per cent of the L1 that is shared memory; -1: as the driver likes */
    size_t argument_bytes;
} Function;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Handle *handles;
static int context_users, fail_at, taken, broken, idle, major = 9, minor = 0;
static size_t total = (size_t)8 << 30, used;
static double clock_ms;
static char fault[512];
static __thread int depth;
static __thread Handle *my_capture;

/* ---- what the test sees -------------------------------------------------------------------------------------------- */

static int (*on_load)(const void *);
static int (*on_function)(int, const char *, size_t *);
static int (*on_launch)(int, const unsigned *, const unsigned *, unsigned, const void *);

void pretend_callbacks(void *load, void *function, void *launch) { on_load = load; on_function = function; on_launch = launch; }
void pretend_gpu(int cc_major, int cc_minor, size_t bytes) { major = cc_major; minor = cc_minor; total = bytes; }
void pretend_break(int status) { broken = status; } /* what a kernel that failed does to a context; 0: mended */
void pretend_idle(int on) { idle = on; } /* kernels take no time and do nothing: what is left is the host's own */
void pretend_fail_at(int number) { fail_at = number; taken = 0; }
int pretend_taken(void) { return taken; }
int pretend_contexts(void) { return context_users; }
const char *pretend_fault(void) { return fault; }
void pretend_forget_fault(void) { fault[0] = 0; }

int pretend_live(int kind) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (Handle *h = handles; h; h = h->next) count += h->live && h->kind == kind;
    pthread_mutex_unlock(&lock);
    return count;
}

/* Whether [at, at + bytes) lies in one live allocation; 0 or 1. */
int pretend_holds(Address at, size_t bytes) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Handle *h = handles; h && !found; h = h->next)
        found = h->live && h->kind == MEMORY && at >= h->base && at + bytes <= h->base + h->bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- rules --------------------------------------------------------------------------------------------------------- */

static Status wrong(Status status, const char *call, const char *what) {
    if (!fault[0]) snprintf(fault, sizeof fault, "%s: %s", call, what);
    return status;
}
#define NEEDS_CONTEXT(call) \
    if (!depth) return wrong(NO_CONTEXT, call, "no context is current on this thread"); \
    if (broken) return broken
#define NOT_IN_CAPTURE(call) if (my_capture) { my_capture->invalidated = 1; return wrong(CAPTURE_UNSUPPORTED, call, "not while this thread captures"); }
#define LIVE(handle, what, call) if (!is_live(handle, what)) return wrong(INVALID_HANDLE, call, "a handle that is not one, or not any more")

static int is_live(const Handle *handle, int kind) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Handle *h = handles; h && !found; h = h->next) found = h == handle && h->live && h->kind == kind;
    pthread_mutex_unlock(&lock);
    return found;
}

/* From the chosen one on: pycuda collects garbage and asks once more. */
static int refuses(void) { return ++taken >= fail_at && fail_at; }

static Handle *make(int kind) {
    Handle *h = calloc(1, sizeof *h);
    h->kind = kind;
    h->live = 1;
    pthread_mutex_lock(&lock);
    h->next = handles;
    handles = h;
    pthread_mutex_unlock(&lock);
    return h;
}

/* ---- device and context -------------------------------------------------------------------------------------------- */

Status cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
Status cuDriverGetVersion(int *version) { *version = 13000; return OK; }
Status cuDeviceGetCount(int *count) { *count = 1; return OK; }
Status cuDeviceGet(int *device, int index) { *device = 0; return index ? 101 : OK; }
Status cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, size, "Pretend GPU"); return OK; }
Status cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = total; return OK; }
Status cuDeviceComputeCapability(int *a, int *b, int device) { (void)device; *a = major; *b = minor; return OK; }
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 16 ? 3 : attribute == 75 ? major : attribute == 76 ? minor : 0;
    return OK;
}

static char primary;
Status cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    if (refuses()) return NO_MEMORY;
    context_users++;
    *context = &primary;
    return OK;
}
Status cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    if (!context_users) return wrong(NO_CONTEXT, "cuDevicePrimaryCtxRelease", "released more often than retained");
    context_users--;
    return OK;
}
Status cuCtxPushCurrent_v2(void *context) { if (context != &primary) return INVALID_HANDLE; depth++; return OK; }
Status cuCtxPopCurrent_v2(void **context) {
    if (!depth) return wrong(NO_CONTEXT, "cuCtxPopCurrent", "nothing to pop");
    depth--;
    if (context) *context = &primary;
    return OK;
}
Status cuCtxSetCurrent(void *context) { depth = context != NULL; return OK; }
Status cuCtxGetDevice(int *device) { if (!depth) return NO_CONTEXT; *device = 0; return OK; }
Status cuCtxSynchronize(void) { NEEDS_CONTEXT("cuCtxSynchronize"); NOT_IN_CAPTURE("cuCtxSynchronize"); return OK; }
Status cuCtxGetApiVersion(void *context, unsigned *version) { (void)context; *version = 13000; return OK; }

Status cuGetErrorString(Status status, const char **text) {
    *text = status == NO_MEMORY ? "out of memory" : status == NO_BINARY ? "no kernel image is available for execution on the device"
          : status == FAILED ? "unspecified launch failure"
          : status == CAPTURE_UNSUPPORTED ? "operation not permitted when stream is capturing" : "an error of the pretended driver";
    return OK;
}

/* ---- memory -------------------------------------------------------------------------------------------------------- */

static Status take(int kind, Address *at, size_t bytes, const char *call) {
    NEEDS_CONTEXT(call);
    NOT_IN_CAPTURE(call);
    if (!bytes) return wrong(INVALID_VALUE, call, "no bytes");
    if (refuses() || (kind == MEMORY && used + bytes > total)) return NO_MEMORY;
    void *memory = mmap(NULL, bytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return NO_MEMORY;
    memset(memory, 0x5A, bytes < 1 << 24 ? bytes : 1 << 24);
    Handle *h = make(kind);
    h->base = *at = (Address)memory;
    h->bytes = bytes;
    if (kind == MEMORY) used += bytes;
    return OK;
}

static Status give_back(int kind, Address at, const char *call) {
    NEEDS_CONTEXT(call);
    NOT_IN_CAPTURE(call);
    for (Handle *h = handles; h; h = h->next)
        if (h->live && h->kind == kind && h->base == at) {
            h->live = 0;
            if (kind == MEMORY) used -= h->bytes;
            /* the addresses are never used again: who still looks there stops the process */
            mmap((void *)at, h->bytes + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
            return OK;
        }
    return wrong(INVALID_VALUE, call, "freed twice, or never taken");
}

Status cuMemAlloc_v2(Address *at, size_t bytes) { return take(MEMORY, at, bytes, "cuMemAlloc"); }
Status cuMemFree_v2(Address at) { return give_back(MEMORY, at, "cuMemFree"); }
Status cuMemHostAlloc(void **at, size_t bytes, unsigned flags) { (void)flags; return take(PINNED, (Address *)at, bytes, "cuMemHostAlloc"); }
Status cuMemFreeHost(void *at) { return give_back(PINNED, (Address)at, "cuMemFreeHost"); }
Status cuMemGetInfo_v2(size_t *left, size_t *all) { NEEDS_CONTEXT("cuMemGetInfo"); *left = total - used; *all = total; return OK; }

static int inside(int kind, Address at, size_t bytes) {
    for (Handle *h = handles; h; h = h->next)
        if (h->live && h->kind == kind && at >= h->base && at + bytes <= h->base + h->bytes) return 1;
    return 0;
}

static Status run(const Operation *op) {
    if (!op->kernel) {
        int there = inside(MEMORY, op->to, op->bytes) && inside(PINNED, op->from, op->bytes);
        int back = inside(MEMORY, op->from, op->bytes) && inside(PINNED, op->to, op->bytes);
        if (!there && !back) return wrong(INVALID_VALUE, "a copy", "not between one live page-locked array and one live buffer");
        memcpy((void *)op->to, (const void *)op->from, op->bytes);
        return OK;
    }
    if (!is_live(op->function->module, MODULE)) return wrong(INVALID_HANDLE, "a launch", "of a module that was unloaded");
    if (idle) return OK;
    return on_launch(op->function->number, op->grid, op->block, op->shared, op->arguments) ? FAILED : OK;
}

static Status enqueue(Handle *stream, const Operation *op, const char *call) {
    NEEDS_CONTEXT(call);
    LIVE(stream, STREAM, call);
    if (!stream->capturing) {
        if (my_capture && !(stream->flags & 1)) return wrong(CAPTURE_UNSUPPORTED, call, "on a blocking stream while another is captured");
        return run(op);
    }
    Operation *copy = malloc(sizeof *copy);
    *copy = *op;
    copy->next = NULL;
    Handle *graph = stream->capturing;
    if (graph->last) graph->last->next = copy; else graph->first = copy;
    graph->last = copy;
    return OK;
}

static Status copy(Address to, Address from, size_t bytes, Handle *stream, const char *call) {
    Operation op = {.to = to, .from = from, .bytes = bytes};
    return enqueue(stream, &op, call);
}
Status cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Handle *s) { return copy(to, (Address)from, bytes, s, "cuMemcpyHtoDAsync"); }
Status cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Handle *s) { return copy((Address)to, from, bytes, s, "cuMemcpyDtoHAsync"); }

/* ---- streams and events -------------------------------------------------------------------------------------------- */

Status cuStreamCreate(Handle **stream, unsigned flags) {
    NEEDS_CONTEXT("cuStreamCreate");
    if (refuses()) return NO_MEMORY;
    *stream = make(STREAM);
    (*stream)->flags = flags;
    return OK;
}
Status cuStreamDestroy_v2(Handle *s) { NEEDS_CONTEXT("cuStreamDestroy"); LIVE(s, STREAM, "cuStreamDestroy"); s->live = 0; return OK; }
Status cuStreamSynchronize(Handle *s) {
    NEEDS_CONTEXT("cuStreamSynchronize");
    LIVE(s, STREAM, "cuStreamSynchronize");
    NOT_IN_CAPTURE("cuStreamSynchronize");
    return OK;
}
Status cuStreamQuery(Handle *s) { NEEDS_CONTEXT("cuStreamQuery"); LIVE(s, STREAM, "cuStreamQuery"); return OK; }
Status cuStreamWaitEvent(Handle *s, Handle *e, unsigned flags) {
    NEEDS_CONTEXT("cuStreamWaitEvent");
    LIVE(s, STREAM, "cuStreamWaitEvent");
    LIVE(e, EVENT, "cuStreamWaitEvent");
    return flags ? INVALID_VALUE : OK;
}

Status cuEventCreate(Handle **event, unsigned flags) {
    NEEDS_CONTEXT("cuEventCreate");
    if (refuses()) return NO_MEMORY;
    *event = make(EVENT);
    (*event)->flags = flags;
    (*event)->when = -1;
    return OK;
}
Status cuEventDestroy_v2(Handle *e) { NEEDS_CONTEXT("cuEventDestroy"); LIVE(e, EVENT, "cuEventDestroy"); e->live = 0; return OK; }
Status cuEventRecord(Handle *e, Handle *s) {
    NEEDS_CONTEXT("cuEventRecord");
    LIVE(e, EVENT, "cuEventRecord");
    LIVE(s, STREAM, "cuEventRecord");
    e->when = clock_ms += 0.01;
    return OK;
}
Status cuEventQuery(Handle *e) { NEEDS_CONTEXT("cuEventQuery"); LIVE(e, EVENT, "cuEventQuery"); NOT_IN_CAPTURE("cuEventQuery"); return OK; }
Status cuEventSynchronize(Handle *e) { NEEDS_CONTEXT("cuEventSynchronize"); LIVE(e, EVENT, "cuEventSynchronize"); NOT_IN_CAPTURE("cuEventSynchronize"); return OK; }
static Status elapsed(float *ms, Handle *from, Handle *to) {
    NEEDS_CONTEXT("cuEventElapsedTime");
    LIVE(from, EVENT, "cuEventElapsedTime");
    LIVE(to, EVENT, "cuEventElapsedTime");
    if (from->when < 0 || to->when < 0) return wrong(INVALID_HANDLE, "cuEventElapsedTime", "an event that was never recorded");
    if ((from->flags | to->flags) & 2) return wrong(INVALID_HANDLE, "cuEventElapsedTime", "an event made without timing");
    *ms = (float)(to->when - from->when);
    return OK;
}
Status cuEventElapsedTime(float *ms, Handle *from, Handle *to) { return elapsed(ms, from, to); }
Status cuEventElapsedTime_v2(float *ms, Handle *from, Handle *to) { return elapsed(ms, from, to); }

/* ---- kernels ------------------------------------------------------------------------------------------------------- */

static Status load(Handle **module, const void *image, const char *call) {
    NEEDS_CONTEXT(call);
    NOT_IN_CAPTURE(call);
    if (refuses()) return NO_MEMORY;
    int code = on_load(image);
    if (code < 0) return -code;
    *module = make(MODULE);
    (*module)->code = code;
    return OK;
}
Status cuModuleLoadData(Handle **module, const void *image) { return load(module, image, "cuModuleLoadData"); }
Status cuModuleLoadDataEx(Handle **module, const void *image, unsigned count, void *options, void **values) {
    (void)count, (void)options, (void)values;
    return load(module, image, "cuModuleLoadDataEx");
}
Status cuModuleUnload(Handle *m) { NEEDS_CONTEXT("cuModuleUnload"); LIVE(m, MODULE, "cuModuleUnload"); m->live = 0; return OK; }
Status cuModuleGetFunction(Function **function, Handle *module, const char *name) {
    NEEDS_CONTEXT("cuModuleGetFunction");
    LIVE(module, MODULE, "cuModuleGetFunction");
    size_t bytes = 0;
    int number = on_function(module->code, name, &bytes);
    if (number < 0) return NOT_FOUND;
    *function = calloc(1, sizeof **function);
    (*function)->module = module;
    (*function)->number = number;
    (*function)->argument_bytes = bytes;
    (*function)->most_shared = 48 * 1024;
    (*function)->carveout = -1;
    return OK;
}
Status cuFuncGetAttribute(int *value, int attribute, Function *function) { (void)attribute, (void)function; *value = 0; return OK; }
Status cuFuncSetAttribute(Function *function, int attribute, int value) {
    NEEDS_CONTEXT("cuFuncSetAttribute");
    if (attribute == 8) function->most_shared = value; /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
    if (attribute == 9) function->carveout = value; /* CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT */
    return OK;
}
Status cuFuncSetBlockShape(Function *f, int x, int y, int z) { /* deprecated; pycuda calls it all the same */
    NEEDS_CONTEXT("cuFuncSetBlockShape");
    (void)f;
    return x > 0 && y > 0 && z > 0 ? OK : INVALID_VALUE;
}

Status cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      Handle *stream, void **parameters, void **extra) {
    Operation op = {.kernel = 1, .function = f, .grid = {gx, gy, gz}, .block = {bx, by, bz}, .shared = shared};
    const void *buffer = NULL;
    size_t bytes = 0;
    if (parameters) return wrong(NOT_SUPPORTED, "cuLaunchKernel", "arguments one by one");
    for (; extra && *extra; extra += 2) {
        if (*extra == (void *)1) buffer = extra[1];
        else if (*extra == (void *)2) bytes = *(size_t *)extra[1];
        else return wrong(INVALID_VALUE, "cuLaunchKernel", "an extra that is none");
    }
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !bx || bx * by * bz > 1024) return wrong(INVALID_VALUE, "cuLaunchKernel", "grid or block");
    if (shared > 48 * 1024 && f->carveout != 100)
        return wrong(INVALID_VALUE, "cuLaunchKernel", "much shared memory, and how many programs fit at once is left to the driver");
    if (shared > (unsigned)f->most_shared) return wrong(INVALID_VALUE, "cuLaunchKernel", "more shared memory than was asked for");
    if (bytes != f->argument_bytes || bytes > sizeof op.arguments || !buffer) {
        char text[128];
        snprintf(text, sizeof text, "the code takes %zu bytes of arguments, found %zu", f->argument_bytes, bytes);
        return wrong(INVALID_VALUE, "cuLaunchKernel", text);
    }
    memcpy(op.arguments, buffer, bytes);
    return enqueue(stream, &op, "cuLaunchKernel");
}

/* ---- graphs -------------------------------------------------------------------------------------------------------- */

Status cuStreamBeginCapture_v2(Handle *stream, int mode) {
    NEEDS_CONTEXT("cuStreamBeginCapture");
    LIVE(stream, STREAM, "cuStreamBeginCapture");
    if (mode != 1 || stream->capturing || my_capture) return wrong(INVALID_VALUE, "cuStreamBeginCapture", "mode, or captured already");
    my_capture = stream->capturing = make(GRAPH);
    return OK;
}
Status cuStreamEndCapture(Handle *stream, Handle **graph) {
    NEEDS_CONTEXT("cuStreamEndCapture");
    LIVE(stream, STREAM, "cuStreamEndCapture");
    if (!stream->capturing) return wrong(INVALID_VALUE, "cuStreamEndCapture", "nothing is captured");
    *graph = stream->capturing;
    stream->capturing = my_capture = NULL;
    if (!(*graph)->invalidated) return OK;
    (*graph)->live = 0;
    *graph = NULL;
    return CAPTURE_INVALIDATED;
}
Status cuGraphInstantiateWithFlags(Handle **exec, Handle *graph, unsigned long long flags) {
    NEEDS_CONTEXT("cuGraphInstantiate");
    LIVE(graph, GRAPH, "cuGraphInstantiate");
    if (flags) return INVALID_VALUE;
    if (refuses()) return NO_MEMORY;
    *exec = make(EXEC);
    (*exec)->first = graph->first;
    return OK;
}
Status cuGraphLaunch(Handle *exec, Handle *stream) {
    NEEDS_CONTEXT("cuGraphLaunch");
    LIVE(exec, EXEC, "cuGraphLaunch");
    for (Operation *op = exec->first; op; op = op->next) {
        Status status = enqueue(stream, op, "cuGraphLaunch");
        if (status) return status;
    }
    return OK;
}
Status cuGraphExecDestroy(Handle *h) { NEEDS_CONTEXT("cuGraphExecDestroy"); LIVE(h, EXEC, "cuGraphExecDestroy"); h->live = 0; return OK; }
Status cuGraphDestroy(Handle *h) { NEEDS_CONTEXT("cuGraphDestroy"); LIVE(h, GRAPH, "cuGraphDestroy"); h->live = 0; return OK; }
