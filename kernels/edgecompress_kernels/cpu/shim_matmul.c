/* ---- MatMulBlocks: blockwise.py ---- */

#include "shim.h"

static const char *matmul_name(const CustomOp *op) { return MATMUL_NAME; }
static size_t matmul_inputs(const CustomOp *op) { return MATMUL_INPUTS; }
static int matmul_input_kind(const CustomOp *op, size_t index) { return index < MATMUL_ZEROS ? REQUIRED : OPTIONAL; }
static int matmul_input_type(const CustomOp *op, size_t index) {
    return index == MATMUL_WEIGHTS || index == MATMUL_ZEROS ? UINT8 : index == MATMUL_SCALES ? ANY : FLOAT;
}

static Status *matmul_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    MatmulState *made;
    TRY(state_of(sizeof *made, state));
    made = *state;
    READ_MATMUL_ATTRIBUTES(info, made);
    if (made->block < 1 || made->inputs < 1 || made->outputs < 1 || made->inputs % made->block)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: K must be a multiple of block_size, and N at least 1");
    return NULL;
}

static Status *find_matmul(const MatmulState *s, const MatmulInputs *in, const Matmul **found) {
    const int64_t blocks = s->inputs / s->block, tiles = (s->outputs + 15) / 16;
    if (in->x.type != FLOAT || in->weights.type != UINT8)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: A must be float32, and the weights uint8");
    if (in->scales.type != FLOAT && in->scales.type != FLOAT16)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: scales must be float32 or float16");
    if ((in->zeros.data && in->zeros.type != UINT8) || (in->bias.data && in->bias.type != FLOAT))
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: zero points must be uint8, and the bias float32");
    if (in->x.rank < 1 || in->x.dims[in->x.rank - 1] != s->inputs)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: the last dimension of A must be K");
    if (in->weights.elements != tiles * 16 * s->inputs * s->bits / 8 || in->scales.elements != tiles * blocks * 16)
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: weights or scales do not have the size of K and N");
    if ((in->zeros.data && in->zeros.elements != in->scales.elements) || (in->bias.data && in->bias.elements != s->outputs))
        return create_status(INVALID_ARGUMENT, "edgecompress MatMulBlocks: zero points or bias do not have the size of N");
    const Matmul *kind = MATMULS;
    while (kind->bits && (kind->bits != s->bits || kind->block != s->block || kind->half != (in->scales.type == FLOAT16) ||
                          kind->zeros != (in->zeros.data != NULL)))
        kind++;
    *found = kind;
    return kind->bits ? NULL : create_status(NOT_IMPLEMENTED, "edgecompress MatMulBlocks: this library has no kernel for these bits and block_size");
}

/* Plan a product whose inputs are checked; ``p`` must live as long as the job. */
static void plan_matmul(const MatmulState *s, const Matmul *found, const MatmulInputs *in, void *y, Room *memory, Job *job,
                        MatmulParameters *p) {
    const int64_t rows = in->x.elements / s->inputs, blocks = s->inputs / s->block, tiles = (s->outputs + 15) / 16;
    /* A part has a few hundred KiB of weights: small enough to balance threads, large enough to amortize taking a part. */
    const int64_t tile_bytes = s->inputs * 2 * s->bits, most = (tiles + 7) / 8;
    int64_t each = (131072 + tile_bytes - 1) / tile_bytes;
    if (each > most) each = most;
    int64_t columns = columns_of_part(rows, s->inputs);
    if (columns % s->block) columns = s->inputs;
    void *const q = room(memory, rows * s->inputs), *const scales = room(memory, rows * blocks * 4);
    *p = (MatmulParameters){
        .x = in->x.data, .q = q, .x_scales = scales, .x_sums = room(memory, rows * blocks * 4), .weights = in->weights.data,
        .scales = in->scales.data, .zeros = in->zeros.data, .bias = in->bias.data, .y = y, .rows = rows,
        .outputs = s->outputs, .inputs = s->inputs, .tiles_per_part = each, .columns = columns};
    add_row_work(job, found->quantize, p, rows, s->inputs, columns);
    add_work(job, found->multiply, p, (tiles + each - 1) / each);
}

typedef struct MatmulCall {
    const MatmulState *state;
    const Matmul *found;
    MatmulInputs in;
    void *y;
    MatmulParameters parameters;
} MatmulCall;

static void plan_matmul_call(void *of, Room *memory, Job *job) {
    MatmulCall *const call = of;
    plan_matmul(call->state, call->found, &call->in, call->y, memory, job, &call->parameters);
}

static Status *matmul_compute(void *state, Context *context) {
    const MatmulState *s = state;
    MatmulCall call = {.state = s};
    MatmulInputs *const in = &call.in;
    Tensor *const all[] = {&in->x, &in->weights, &in->scales, &in->zeros, &in->bias};
    _Static_assert(sizeof all / sizeof *all == MATMUL_INPUTS, "all inputs are read");
    for (size_t i = 0; i < MATMUL_INPUTS; i++) TRY(read_any(context, i, all[i]));
    TRY(find_matmul(s, in, &call.found));
    Value *y = NULL;
    int64_t dims[MOST_DIMENSIONS];
    for (size_t i = 0; i < in->x.rank; i++) dims[i] = in->x.dims[i];
    dims[in->x.rank - 1] = s->outputs;
    TRY(output(context, 0, dims, in->x.rank, &y));
    if (!in->x.elements) return NULL;
    TRY(tensor_data(y, &call.y));
    return run_planned(context, plan_matmul_call, &call);
}

static const CustomOp MATMUL = {
    OPERATOR_ON_CPU(one), .name = matmul_name,
    .input_type = matmul_input_type, .input_count = matmul_inputs, .input_kind = matmul_input_kind,
    .output_type = type_float, .output_count = count_one,
    .create_v2 = matmul_create, .compute_v2 = matmul_compute,
};
