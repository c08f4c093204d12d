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
