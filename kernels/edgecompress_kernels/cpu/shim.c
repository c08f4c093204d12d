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
enum { REQUIRED = 0, OPTIONAL = 1 };
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
} Tensor;

/* Read an input; data is null where an optional one was left out. */
static Status *read_input(Context *context, size_t index, int type, const char *wrong, Tensor *tensor) {
    const Value *value = NULL;
    Shape *shape = NULL;
    int found = 0;
    tensor->data = NULL;
    tensor->rank = 0;
    tensor->elements = 0;
    TRY(input(context, index, &value));
    if (!value) return NULL;
    TRY(type_and_shape(value, &shape));
    Status *status = element_type(shape, &found);
    if (!status) status = dimension_count(shape, &tensor->rank);
    if (!status && (found != type || tensor->rank > MOST_DIMENSIONS)) status = create_status(INVALID_ARGUMENT, wrong);
    if (!status) status = dimensions(shape, tensor->dims, tensor->rank);
    release_shape(shape);
    if (status) return status;
    tensor->elements = 1;
    for (size_t i = 0; i < tensor->rank; i++) tensor->elements *= tensor->dims[i];
    return tensor_data((Value *)value, &tensor->data);
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

static Status *state_of(size_t bytes, void **state) {
    Allocator *allocator;
    char *memory;
    TRY(take(bytes, &allocator, &memory));
    *state = memory;
    return NULL;
}

static void destroy(void *state) {
    Allocator *allocator;
    Status *status = default_allocator(&allocator);
    if (status)
        release_status(status);
    else
        allocator->free(allocator, state);
}

/* ---- MatMulBlocks: blockwise.py ---- */

typedef struct Matmul {
    int64_t bits, block;
    int half, zeros;
    Kernel quantize, multiply;
} Matmul;

extern const Matmul MATMULS[]; /* made by build.py: the variants that were compiled, and one of zero bits at the end */

typedef struct MatmulState {
    int64_t inputs, outputs, bits, block;
} MatmulState;

typedef struct MatmulParameters { /* blockwise.SLOTS */
    void *x, *q, *x_scales, *x_sums, *weights, *scales, *zeros, *bias, *y;
    int64_t rows, outputs, inputs, tiles_per_part;
} MatmulParameters;

static const char *matmul_name(const CustomOp *op) { return "MatMulBlocks"; }
static size_t matmul_inputs(const CustomOp *op) { return 5; }
static int matmul_input_kind(const CustomOp *op, size_t index) { return index < 3 ? REQUIRED : OPTIONAL; }
static int matmul_input_type(const CustomOp *op, size_t index) {
    return index == 1 || index == 3 ? UINT8 : index == 2 ? 0 : FLOAT; /* scales: float or float16 */
}

static Status *matmul_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    MatmulState *made;
    TRY(state_of(sizeof *made, state));
    made = *state;
    TRY(attribute_int(info, "K", &made->inputs));
    TRY(attribute_int(info, "N", &made->outputs));
    TRY(attribute_int(info, "bits", &made->bits));
    TRY(attribute_int(info, "block_size", &made->block));
    if (made->block < 1 || made->inputs < 1 || made->outputs < 1 || made->inputs % made->block)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: K must be a multiple of block_size, and N at least 1");
    return NULL;
}

static Status *scale_type(Context *context, int *half) {
    const Value *value = NULL;
    Shape *shape = NULL;
    int type = 0;
    TRY(input(context, 2, &value));
    TRY(type_and_shape(value, &shape));
    Status *status = element_type(shape, &type);
    release_shape(shape);
    if (!status && type != FLOAT && type != FLOAT16)
        status = create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: scales must be float32 or float16");
    *half = type == FLOAT16;
    return status;
}

static Status *matmul_compute(void *state, Context *context) {
    const MatmulState *s = state;
    Tensor x, weights, scales, zeros, bias;
    int half = 0;
    TRY(scale_type(context, &half));
    TRY(read_input(context, 0, FLOAT, "edgecompress MatMulBlocks: A must be float32", &x));
    TRY(read_input(context, 1, UINT8, "edgecompress MatMulBlocks: the weights must be uint8", &weights));
    TRY(read_input(context, 2, half ? FLOAT16 : FLOAT, "edgecompress MatMulBlocks: scales of another type", &scales));
    TRY(read_input(context, 3, UINT8, "edgecompress MatMulBlocks: zero points must be uint8", &zeros));
    TRY(read_input(context, 4, FLOAT, "edgecompress MatMulBlocks: the bias must be float32", &bias));
    const int64_t blocks = s->inputs / s->block, tiles = (s->outputs + 15) / 16;
    if (x.rank < 1 || x.dims[x.rank - 1] != s->inputs)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: the last dimension of A must be K");
    if (weights.elements != tiles * 16 * s->inputs * s->bits / 8 || scales.elements != tiles * blocks * 16)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: weights or scales do not have the size of K and N");
    if ((zeros.data && zeros.elements != scales.elements) || (bias.data && bias.elements != s->outputs))
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: zero points or bias do not have the size of N");
    const Matmul *found = MATMULS;
    while (found->bits && (found->bits != s->bits || found->block != s->block || found->half != half ||
                           found->zeros != (zeros.data != NULL)))
        found++;
    if (!found->bits)
        return create_status(NOT_IMPLEMENTED, "edgecompress MatMulBlocks: this library has no kernel for these bits and block_size");

    const int64_t rows = x.elements / s->inputs;
    Value *y = NULL;
    void *y_data = NULL;
    x.dims[x.rank - 1] = s->outputs;
    TRY(output(context, 0, x.dims, x.rank, &y));
    if (!rows) return NULL;
    TRY(tensor_data(y, &y_data));

    const size_t q_bytes = up(rows * s->inputs), side_bytes = up(rows * blocks * 4);
    Allocator *allocator;
    char *scratch;
    TRY(take(q_bytes + 2 * side_bytes + 64, &allocator, &scratch));
    char *q = (char *)up((size_t)scratch);
    /* A part is a few hundred KiB of weights: small enough to share out, large enough to be worth a hand-over. */
    const int64_t tile_bytes = s->inputs * 2 * s->bits, most = (tiles + 7) / 8;
    int64_t each = (131072 + tile_bytes - 1) / tile_bytes;
    if (each > most) each = most;
    MatmulParameters p = {x.data, q, q + q_bytes, q + q_bytes + side_bytes, weights.data, scales.data, zeros.data,
                          bias.data, y_data, rows, s->outputs, s->inputs, each};
    Status *status = NULL;
    if (rows == 1)
        found->quantize(&p, 0);
    else
        status = parallel_for(context, found->quantize, rows, 0, &p);
    if (!status) status = parallel_for(context, found->multiply, (tiles + each - 1) / each, 0, &p);
    allocator->free(allocator, scratch);
    return status;
}

static const CustomOp MATMUL = {
    .version = API_VERSION, .name = matmul_name, .provider = on_cpu,
    .input_type = matmul_input_type, .input_count = matmul_inputs, .input_kind = matmul_input_kind,
    .output_type = type_float, .output_count = count_one, .output_kind = kind_required,
    .input_memory = memory_default, .variadic_input_min = one, .variadic_input_same = one,
    .variadic_output_min = one, .variadic_output_same = one,
    .create_v2 = matmul_create, .compute_v2 = matmul_compute, .destroy = destroy,
    .first_version = one, .last_version = any_version,
};


/* ---- CachedAttention: attention.py ---- */

enum { SPLIT = 512, TILE_ROWS = 8 }; /* as in attention.py */

typedef struct Attention {
    int64_t size;
    Kernel append, attend, combine;
} Attention;

extern const Attention ATTENTIONS[]; /* made by build.py, ended by a size of zero */

typedef struct AttentionState {
    int64_t heads, kv_heads, size, window;
    float scale;
} AttentionState;

typedef struct AttentionParameters { /* attention.SLOTS */
    const char *q_in, *k_in, *v_in;
    int64_t q_stride, k_stride, v_stride;
    void *past, *positions, *cos, *sin;
    int64_t rotary;
    void *q, *keys, *values, *partials, *y;
    int64_t batch, tokens, kv_heads, group, capacity, window;
    union {
        float value;
        int64_t slot;
    } scale;
    int64_t rows_per_part, row_parts, splits, split_parts;
} AttentionParameters;

static const char *attention_name(const CustomOp *op) { return "CachedAttention"; }
static size_t attention_inputs(const CustomOp *op) { return 10; }
static size_t attention_outputs(const CustomOp *op) { return 3; }
static int attention_input_kind(const CustomOp *op, size_t index) {
    return index == 1 || index == 2 || index > 6 ? OPTIONAL : REQUIRED;
}
static int attention_input_type(const CustomOp *op, size_t index) {
    return index == 5 || index == 6 ? INT32 : index == 9 ? INT64 : FLOAT;
}

static Status *attention_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    AttentionState *made;
    TRY(state_of(sizeof *made, state));
    made = *state;
    TRY(attribute_int(info, "num_heads", &made->heads));
    TRY(attribute_int(info, "kv_num_heads", &made->kv_heads));
    TRY(attribute_int(info, "head_size", &made->size));
    TRY(attribute_int(info, "local_window_size", &made->window));
    TRY(attribute_float(info, "scale", &made->scale));
    if (made->kv_heads < 1 || made->heads < 1 || made->heads % made->kv_heads)
        return create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: num_heads must be a multiple of kv_num_heads");
    return NULL;
}

static void copy(char *to, const char *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) to[i] = from[i];
}

/* The present buffer: past itself where the caller bound one memory to both, else a copy of what past holds. */
static Status *present_of(Context *context, size_t index, const Tensor *past, int64_t capacity, int64_t row_bytes, void **data) {
    Value *value = NULL;
    const int64_t dims[4] = {past->dims[0], past->dims[1], capacity, past->dims[3]};
    TRY(output(context, index, dims, 4, &value));
    TRY(tensor_data(value, data));
    if (*data == past->data) return NULL;
    for (int64_t i = 0; i < dims[0] * dims[1]; i++)
        copy((char *)*data + i * capacity * row_bytes, (const char *)past->data + i * past->dims[2] * row_bytes,
             past->dims[2] * row_bytes);
    return NULL;
}

static Status *attention_compute(void *state, Context *context) {
    const AttentionState *s = state;
    static const char types[] = "edgecompress CachedAttention: an input is of the wrong type";
    Tensor q, k, v, past_key, past_value, last, total, cos, sin, positions;
    Tensor *const all[] = {&q, &k, &v, &past_key, &past_value, &last, &total, &cos, &sin, &positions};
    for (size_t i = 0; i < 10; i++) TRY(read_input(context, i, attention_input_type(NULL, i), types, all[i]));
    const int64_t size = s->size, group = s->heads / s->kv_heads, width = s->heads * size, kv_width = s->kv_heads * size;
    const Attention *found = ATTENTIONS;
    while (found->size && found->size != size) found++;
    if (!found->size)
        return create_status(NOT_IMPLEMENTED, "edgecompress CachedAttention: this library has no kernel for this head_size");
    if (q.rank != 3 || q.dims[2] != (k.data ? width : width + 2 * kv_width))
        return create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: the query does not have the width of its heads");
    const int64_t batch = q.dims[0], tokens = q.dims[1];
    if (k.data && (!v.data || k.elements != batch * tokens * kv_width || v.elements != k.elements))
        return create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: keys or values do not have the size of the query");
    if (past_key.rank != 4 || past_value.rank != 4 || past_key.dims[0] != batch || past_key.dims[1] != s->kv_heads ||
        past_key.dims[3] != size || past_value.elements != past_key.elements || past_value.dims[2] != past_key.dims[2])
        return create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: the past must be [B, kv_num_heads, capacity, head_size]");
    if (last.elements != batch || total.elements != 1)
        return create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: seqlens_k must be [B] and total_sequence_length one number");
    const int64_t rotary = cos.data ? 2 * cos.dims[cos.rank - 1] : 0;
    if (rotary && (!sin.data || !positions.data || sin.elements != cos.elements || positions.elements != batch * tokens ||
                   rotary > size || rotary % 32 || cos.rank != 2))
        return create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: cos, sin and position_ids do not fit each other");
    const int64_t longest = *(const int32_t *)total.data;
    const int64_t capacity = past_key.dims[2] > longest ? past_key.dims[2] : longest;

    Value *y = NULL;
    const int64_t y_dims[3] = {batch, tokens, width};
    AttentionParameters p = {.rotary = rotary, .batch = batch, .tokens = tokens, .kv_heads = s->kv_heads, .group = group,
                             .capacity = capacity, .window = s->window, .cos = cos.data, .sin = sin.data};
    TRY(output(context, 0, y_dims, 3, &y));
    TRY(present_of(context, 1, &past_key, capacity, size * 4, &p.keys));
    TRY(present_of(context, 2, &past_value, capacity, size * 4, &p.values));
    if (!batch || !tokens) return NULL;
    TRY(tensor_data(y, &p.y));
    p.scale.value = s->scale;
    p.q_in = q.data;
    p.k_in = k.data ? k.data : p.q_in + width * 4;
    p.v_in = v.data ? v.data : p.k_in + kv_width * 4;
    p.q_stride = q.dims[2] * 4;
    p.k_stride = k.data ? kv_width * 4 : p.q_stride;
    p.v_stride = p.k_stride;

    const int64_t rows = tokens * group, heads = batch * s->kv_heads;
    p.splits = (longest + SPLIT - 1) / SPLIT;
    const int64_t row_parts = (rows + TILE_ROWS - 1) / TILE_ROWS;
    /* Many rows: a tile each, over all keys. Few: all rows over a split each, joined afterwards in the same order. */
    const int apart = p.splits > 1 && heads * row_parts < 16;
    p.rows_per_part = apart ? rows : TILE_ROWS;
    p.row_parts = apart ? 1 : row_parts;
    p.split_parts = apart ? p.splits : 1;
    const size_t past_bytes = up(batch * 8), position_bytes = up(batch * tokens * 8), q_bytes = up(batch * tokens * width * 4);
    const size_t partial_bytes = apart ? up(heads * rows * p.splits * (size + 16) * 4) : 0;
    Allocator *allocator;
    char *scratch;
    TRY(take(past_bytes + position_bytes + q_bytes + partial_bytes + 64, &allocator, &scratch));
    char *const start = (char *)up((size_t)scratch);
    int64_t *const past = (int64_t *)start, *const where = (int64_t *)(start + past_bytes);
    p.past = past;
    p.positions = rotary ? positions.data : where;
    p.q = start + past_bytes + position_bytes;
    p.partials = (char *)p.q + q_bytes;
    Status *status = NULL;
    for (int64_t b = 0; b < batch; b++) {
        past[b] = tokens == longest ? 0 : ((const int32_t *)last.data)[b] + 1 - tokens;
        if (past[b] < 0 || past[b] + tokens > longest)
            status = create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: seqlens_k does not fit total_sequence_length");
        for (int64_t t = 0; t < tokens; t++) {
            where[b * tokens + t] = 0;
            const int64_t at = rotary ? ((const int64_t *)positions.data)[b * tokens + t] : 0;
            if (!status && (at < 0 || (rotary && at >= cos.dims[0])))
                status = create_status(INVALID_ARGUMENT, "edgecompress CachedAttention: a position is beyond the rotary table");
            if (status) break;
        }
        if (status) break;
    }
    if (!status && batch * tokens == 1)
        found->append(&p, 0);
    else if (!status)
        status = parallel_for(context, found->append, batch * tokens, 0, &p);
    if (!status) status = parallel_for(context, found->attend, heads * p.row_parts * p.split_parts, 0, &p);
    if (!status && apart)
        for (int64_t i = 0; i < heads; i++) found->combine(&p, i);
    allocator->free(allocator, scratch);
    return status;
}

static const CustomOp ATTENTION = {
    .version = API_VERSION, .name = attention_name, .provider = on_cpu,
    .input_type = attention_input_type, .input_count = attention_inputs, .input_kind = attention_input_kind,
    .output_type = type_float, .output_count = attention_outputs, .output_kind = kind_required,
    .input_memory = memory_default, .variadic_input_min = one, .variadic_input_same = one,
    .variadic_output_min = one, .variadic_output_same = one,
    .create_v2 = attention_create, .compute_v2 = attention_compute, .destroy = destroy,
    .first_version = one, .last_version = any_version,
};

extern const char ISA[]; /* made by build.py: what the kernels were compiled for, and the features of a CPU that it means */
extern const char *const NEEDS[];
static Status *add_encoder_ops(void *domain); /* shim_encoder.c */

__attribute__((visibility("default"))) Status *RegisterCustomOps(void *options, const Base *base) {
    api = base->get_api(API_VERSION);
    if (!api) {
        api = base->get_api(1); /* the same table, of which the oldest version has all that a message takes */
        return create_status(FAIL, "edgecompress: these kernels need ONNX Runtime 1.18 or later");
    }
    const char *const missing = lacking(NEEDS);
    if (missing) {
        char text[160], *at = text, *const end = text + sizeof text - 1;
        at = append_text(at, end, "edgecompress: these kernels are for ");
        at = append_text(at, end, ISA);
        at = append_text(at, end, ", and this CPU lacks ");
        append_text(at, end, missing);
        return create_status(FAIL, text);
    }
    void *domain;
    TRY(create_domain("edgecompress", &domain));
    TRY(add_to_domain(domain, &MATMUL));
    TRY(add_to_domain(domain, &ATTENTION));
    TRY(add_encoder_ops(domain));
    return add_domain(options, domain);
}
