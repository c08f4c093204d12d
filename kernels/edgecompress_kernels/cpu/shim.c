/* ONNX Runtime custom operators around the kernels that numba compiled: code shared by all operators. A bad shape or type
 * returns an OrtStatus with a message. Threads are ONNX Runtime's. Does not use libc. */

#include "shim.h"

/* Describe a value; data is null if it is missing. */
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

/* Read an input of any type; data is null for an omitted optional input. */
static Status *read_any(Context *context, size_t index, Tensor *tensor) {
    const Value *value = NULL;
    TRY(input(context, index, &value));
    return describe(value, tensor);
}

/* Read an input of one type; it can be omitted. */
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
static int no(const CustomOp *op) { return 0; }
static int one(const CustomOp *op) { return 1; }
static int any_version(const CustomOp *op) { return 2147483647; }
static const char *on_cpu(const CustomOp *op) { return NULL; }
static size_t count_one(const CustomOp *op) { return 1; }
static int type_float(const CustomOp *op, size_t index) { return FLOAT; }

/* Scratch memory that no operator currently uses, preceded by its size. It is kept, since new memory would be mapped page by
 * page at every call, and freed with the last operator. */
static Scratch *spare;
static int64_t operators;

static void give_back(Allocator *allocator, Scratch *scratch) {
    Scratch *const other = __atomic_exchange_n(&spare, scratch, __ATOMIC_ACQ_REL);
    if (other) allocator->free(allocator, other);
}

/* At least ``bytes`` of scratch memory, aligned to cache lines, until it is returned. */
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
