/* Custom operators for ONNX Runtime around the kernels that numba compiled. No header of ONNX Runtime's is needed: its table
 * of functions only ever grows at its end, and the few that are used are named here by their place in it. Every bad shape
 * or type comes back as an OrtStatus with a message. Threads are ONNX Runtime's own. Nothing is taken from libc. */

#include <stddef.h>
#include <stdint.h>

enum { API_VERSION = 18 }; /* ONNX Runtime 1.18, the first with all that is used here */

typedef struct Status Status;
typedef struct Value Value;
typedef struct Info Info;
typedef struct Context Context;
typedef struct Shape Shape;
typedef void (*Kernel)(void *, size_t);
typedef struct Allocator {
    uint32_t version;
    void *(*alloc)(struct Allocator *, size_t);
    void (*free)(struct Allocator *, void *);
} Allocator;
typedef struct Base {
    void *const *(*get_api)(uint32_t);
    const char *(*version)(void);
} Base;

enum { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6, INT64 = 7, FLOAT16 = 10 };
enum { REQUIRED = 0, OPTIONAL = 1, VARIADIC = 2 };
enum { FAIL = 1, INVALID_ARGUMENT = 2, NOT_IMPLEMENTED = 9 };

static void *const *api; /* one process has one ONNX Runtime */

#define CALL(slot, result, ...) ((result(*)(__VA_ARGS__))api[slot])
#define create_status CALL(0, Status *, int, const char *)
#define create_domain CALL(26, Status *, const char *, void **)
#define add_to_domain CALL(27, Status *, void *, const void *)
#define add_domain CALL(28, Status *, void *, void *)
#define tensor_data CALL(51, Status *, Value *, void **)
#define element_type CALL(60, Status *, const Shape *, int *)
#define dimension_count CALL(61, Status *, const Shape *, size_t *)
#define dimensions CALL(62, Status *, const Shape *, int64_t *, size_t)
#define type_and_shape CALL(65, Status *, const Value *, Shape **)
#define default_allocator CALL(78, Status *, Allocator **)
#define attribute_float CALL(85, Status *, const Info *, const char *, float *)
#define attribute_int CALL(86, Status *, const Info *, const char *, int64_t *)
#define input CALL(90, Status *, const Context *, size_t, const Value **)
#define output CALL(91, Status *, Context *, size_t, const int64_t *, size_t, Value **)
#define release_status CALL(93, void, Status *)
#define release_shape CALL(99, void, Shape *)
#define input_names CALL(230, Status *, const Info *, size_t *)
#define constant_input CALL(249, Status *, const Info *, size_t, int *, const Value **)
#define parallel_for CALL(274, Status *, const Context *, Kernel, size_t, size_t, void *)

#define TRY(expression)                  \
    do {                                 \
        Status *status_ = (expression);  \
        if (status_) return status_;     \
    } while (0)

typedef struct CustomOp { /* OrtCustomOp of version 18 */
    uint32_t version;
    void *(*create)(const struct CustomOp *, const void *, const Info *);
    const char *(*name)(const struct CustomOp *);
    const char *(*provider)(const struct CustomOp *);
    int (*input_type)(const struct CustomOp *, size_t);
    size_t (*input_count)(const struct CustomOp *);
    int (*output_type)(const struct CustomOp *, size_t);
    size_t (*output_count)(const struct CustomOp *);
    void (*compute)(void *, Context *);
    void (*destroy)(void *);
    int (*input_kind)(const struct CustomOp *, size_t);
    int (*output_kind)(const struct CustomOp *, size_t);
    int (*input_memory)(const struct CustomOp *, size_t);
    int (*variadic_input_min)(const struct CustomOp *);
    int (*variadic_input_same)(const struct CustomOp *);
    int (*variadic_output_min)(const struct CustomOp *);
    int (*variadic_output_same)(const struct CustomOp *);
    Status *(*create_v2)(const struct CustomOp *, const void *, const Info *, void **);
    Status *(*compute_v2)(void *, Context *);
    Status *(*infer_shape)(const struct CustomOp *, void *);
    int (*first_version)(const struct CustomOp *);
    int (*last_version)(const struct CustomOp *);
    size_t (*in_place)(int **, int **);
    void (*release_in_place)(int *, int *);
    size_t (*alias)(int **, int **);
    void (*release_alias)(int *, int *);
} CustomOp;

/* ---- what every operator needs ---- */

enum { MOST_DIMENSIONS = 8 };
typedef struct Tensor {
    void *data;
    int64_t dims[MOST_DIMENSIONS];
    size_t rank;
    int64_t elements;
    int type;
} Tensor;

/* What a value is; data is null where there is none. */
static Status *describe(const Value *value, Tensor *tensor) {
    Shape *shape = NULL;
    tensor->data = NULL;
    tensor->rank = 0;
    tensor->elements = 0;
    tensor->type = 0;
    if (!value) return NULL;
    TRY(type_and_shape(value, &shape));
    Status *status = element_type(shape, &tensor->type);
    if (!status) status = dimension_count(shape, &tensor->rank);
    if (!status && tensor->rank > MOST_DIMENSIONS)
        status = create_status(INVALID_ARGUMENT, "edgecompress: an input has more dimensions than any operator takes");
    if (!status) status = dimensions(shape, tensor->dims, tensor->rank);
    release_shape(shape);
    if (status) return status;
    tensor->elements = 1;
    for (size_t i = 0; i < tensor->rank; i++) tensor->elements *= tensor->dims[i];
    return tensor_data((Value *)value, &tensor->data);
}

/* Read an input of any type; data is null where an optional one was left out. */
static Status *read_any(Context *context, size_t index, Tensor *tensor) {
    const Value *value = NULL;
    TRY(input(context, index, &value));
    return describe(value, tensor);
}

/* Read an input of one type, or left out. */
static Status *read_input(Context *context, size_t index, int type, const char *wrong, Tensor *tensor) {
    TRY(read_any(context, index, tensor));
    return tensor->type && tensor->type != type ? create_status(INVALID_ARGUMENT, wrong) : NULL;
}

static Status *take(size_t bytes, Allocator **allocator, char **memory) {
    TRY(default_allocator(allocator));
    *memory = (*allocator)->alloc(*allocator, bytes);
    return *memory ? NULL : create_status(FAIL, "edgecompress: there is no memory for the kernel's scratch buffer");
}

static size_t up(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

static int kind_required(const CustomOp *op, size_t index) { return REQUIRED; }
static int memory_default(const CustomOp *op, size_t index) { return 0; }
static int one(const CustomOp *op) { return 1; }
static int any_version(const CustomOp *op) { return 2147483647; }
static const char *on_cpu(const CustomOp *op) { return NULL; }
static size_t count_one(const CustomOp *op) { return 1; }
static int type_float(const CustomOp *op, size_t index) { return FLOAT; }

/* Scratch memory that no operator uses at the moment, its size in front: fresh memory would have to be mapped, page by page,
 * at every call. It goes with the last operator. */
typedef union Scratch {
    size_t bytes;
    char line[64];
} Scratch;
static Scratch *spare;
static int64_t operators;

static void give_back(Allocator *allocator, Scratch *scratch) {
    Scratch *const other = __atomic_exchange_n(&spare, scratch, __ATOMIC_ACQ_REL);
    if (other) allocator->free(allocator, other);
}

/* At least ``bytes`` from ``memory`` on, a cache line's multiple, until they are given back. */
static Status *take_scratch(size_t bytes, Allocator **allocator, Scratch **scratch, char **memory) {
    TRY(default_allocator(allocator));
    Scratch *found = __atomic_exchange_n(&spare, NULL, __ATOMIC_ACQ_REL);
    if (found && found->bytes < bytes) {
        (*allocator)->free(*allocator, found);
        found = NULL;
    }
    if (!found) {
        char *fresh;
        TRY(take(bytes + 2 * sizeof *found, allocator, &fresh));
        found = (Scratch *)fresh;
        found->bytes = bytes;
    }
    *scratch = found;
    *memory = (char *)up((size_t)(found + 1));
    return NULL;
}

static Status *state_of(size_t bytes, void **state) {
    Allocator *allocator;
    char *memory;
    TRY(take(bytes, &allocator, &memory));
    __atomic_fetch_add(&operators, 1, __ATOMIC_RELAXED);
    *state = memory;
    return NULL;
}

static void destroy(void *state) {
    Allocator *allocator;
    Status *status = default_allocator(&allocator);
    if (status) {
        release_status(status);
        return;
    }
    allocator->free(allocator, state);
    if (__atomic_sub_fetch(&operators, 1, __ATOMIC_ACQ_REL) == 0) give_back(allocator, NULL);
}
