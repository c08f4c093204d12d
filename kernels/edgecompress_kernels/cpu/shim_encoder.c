/* The encoder's operators, after shim.c in one translation unit: packing tokens, layers over packed rows, pooling. */

#include "shim.h"

/* ---- PackTokens: attention_mask [B, T] -> indices of the tokens [N], starts of the sequences [B + 1] ---- */

static const char *pack_name(const CustomOp *op) { return PACK_TOKENS_NAME; }
static size_t count_two(const CustomOp *op) { return 2; }
static int type_int64(const CustomOp *op, size_t index) { return INT64; }

static Status *no_state(const CustomOp *op, const void *table, const Info *info, void **state) { return state_of(8, state); }

static Status *pack_compute(void *state, Context *context) {
    Tensor mask;
    Value *rows = NULL, *starts = NULL;
    void *to = NULL, *ends = NULL;
    TRY(read_input(context, 0, INT64, "edgecompress PackTokens: the mask must be int64", &mask));
    if (mask.rank != 2) return create_status(INVALID_ARGUMENT, "edgecompress PackTokens: the mask must be [B, T]");
    const int64_t *given = mask.data, sequences = mask.dims[0] + 1;
    int64_t tokens = 0;
    for (int64_t i = 0; i < mask.elements; i++) tokens += given[i] != 0;
    TRY(output(context, 0, &tokens, 1, &rows));
    TRY(output(context, 1, &sequences, 1, &starts));
    TRY(tensor_data(rows, &to));
    TRY(tensor_data(starts, &ends));
    int64_t *row = to, *end = ends, found = 0;
    for (int64_t b = 0, i = 0; b < mask.dims[0]; b++) {
        end[b] = found;
        for (int64_t t = 0; t < mask.dims[1]; t++, i++)
            if (given[i]) row[found++] = i;
    }
    end[mask.dims[0]] = found;
    return NULL;
}

static const CustomOp PACK_TOKENS = {
    OPERATOR_ON_CPU(one), .name = pack_name,
    .input_type = type_int64, .input_count = count_one, .input_kind = kind_required,
    .output_type = type_int64, .output_count = count_two,
    .create_v2 = no_state, .compute_v2 = pack_compute,
};

/* ---- EncoderProjections and EncoderLayer: encoder_layer.py ---- */

static Status *encoder_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    EncoderState *made;
    TRY(state_of(sizeof *made, state));
    made = *state;
    READ_ENCODER_ATTRIBUTES(info, made);
    if (made->heads < 1 || made->hidden < 16 || made->hidden % made->heads || made->hidden / made->heads % 16 ||
        made->feed_forward < 16 || made->feed_forward % 16)
        return create_status(INVALID_ARGUMENT, "edgecompress EncoderLayer: heads and feed_forward must be multiples of 16 wide");
    return NULL;
}

static Status *encoder_of(const EncoderState *s, const Encoder **found) {
    const Encoder *e = ENCODERS;
    while (e->hidden && (e->hidden != s->hidden || e->heads != s->heads || e->feed_forward != s->feed_forward ||
                         e->weight_bits != s->weight_bits))
        e++;
    *found = e;
    return e->hidden ? NULL
                     : create_status(NOT_IMPLEMENTED, "edgecompress EncoderLayer: this library has no kernel for these sizes");
}

/* Lay out queries, keys and values in one buffer; returns its size. */
static size_t projections(const EncoderState *s, int64_t tokens, char *at, void **q, void **scales, void **sums, void **keys,
                          void **values) {
    const size_t rows = tokens + SPARE_ROWS, blocks = (tokens + 15) / 16;
    const size_t side = up(rows * s->heads * 4), packed = up(blocks * s->heads * BLOCK_BYTES(s->hidden / s->heads));
    char *const start = at;
    *q = at;
    *scales = at += up(rows * s->hidden);
    *sums = at += side;
    *keys = at += side;
    *values = at += packed;
    return at + packed - start;
}

/* Few rows: eight per part, so that two threads share even a short text. Many: enough rows to reuse the weights. */
static int64_t rows_per_part(int64_t tokens) { return tokens <= 32 ? 8 : tokens <= (MATRICES ? 64 : 128) ? 16 : ENCODER_ROWS; }

static Status *read_floats(Context *context, size_t index, int64_t wanted, int optional, void **data) {
    Tensor found;
    TRY(read_input(context, index, FLOAT, "edgecompress EncoderLayer: scales, biases and norms must be float32", &found));
    *data = found.data;
    if ((!found.data && !optional) || (found.data && found.elements != wanted))
        return create_status(INVALID_ARGUMENT, "edgecompress EncoderLayer: scales, biases or norms do not have the size of their rows");
    return NULL;
}

/* Three inputs: weights, columns, and optional smoothing factors. */
static Status *read_linear(Context *context, size_t index, int64_t inputs, int64_t outputs, void **weights, void **columns,
                           void **smooth) {
    Tensor found;
    const int64_t wide = (outputs + PANEL - 1) / PANEL * PANEL;
    TRY(read_input(context, index, INT8, "edgecompress EncoderLayer: weights must be int8", &found));
    if (!found.data || found.elements != wide * inputs)
        return create_status(INVALID_ARGUMENT, "edgecompress EncoderLayer: weights do not have the size of their rows");
    *weights = found.data;
    TRY(read_floats(context, index + 1, 3 * wide, 0, columns));
    return read_floats(context, index + 2, inputs, 1, smooth);
}

static Status *read_rows(const EncoderState *s, Context *context, Tensor *x) {
    TRY(read_input(context, 0, FLOAT, "edgecompress EncoderLayer: the rows must be float32", x));
    if (x->rank != 2 || x->dims[1] != s->hidden)
        return create_status(INVALID_ARGUMENT, "edgecompress EncoderLayer: the rows must be [N, hidden]");
    return NULL;
}

/* The output bytes for the projections of ``tokens`` rows. */
static Status *next_projections(const EncoderState *s, Context *context, size_t index, EncoderParameters *p) {
    Value *value = NULL;
    void *data = NULL, *none[5];
    const int64_t size = p->tokens ? projections(s, p->tokens, NULL, none, none + 1, none + 2, none + 3, none + 4) : 0;
    TRY(output(context, index, &size, 1, &value));
    TRY(tensor_data(value, &data));
    projections(s, p->tokens, data, &p->next_q, &p->next_q_scales, &p->next_q_sums, &p->next_keys, &p->next_values);
    return NULL;
}

static Status *run_parts(Context *context, Kernel kernel, EncoderParameters *p) {
    p->rows_per_part = rows_per_part(p->tokens);
    const int64_t parts = (p->tokens + p->rows_per_part - 1) / p->rows_per_part;
    if (parts > 1) return parallel_for(context, kernel, parts, 0, p);
    kernel(p, 0);
    return NULL;
}

static const char *project_name(const CustomOp *op) { return ENCODER_PROJECTIONS_NAME; }
static size_t project_inputs(const CustomOp *op) { return ENCODER_PROJECTIONS_INPUTS; }
static int project_input_kind(const CustomOp *op, size_t index) { return index == ENCODER_PROJECTIONS_QKV_SMOOTH ? OPTIONAL : REQUIRED; }
static int project_input_type(const CustomOp *op, size_t index) { return index == ENCODER_PROJECTIONS_QKV_WEIGHTS ? INT8 : FLOAT; }
static int type_uint8(const CustomOp *op, size_t index) { return UINT8; }

static Status *project_compute(void *state, Context *context) {
    const EncoderState *s = state;
    const Encoder *found = NULL;
    Tensor x;
    EncoderParameters p = {0};
    TRY(encoder_of(s, &found));
    TRY(read_rows(s, context, &x));
    TRY(read_linear(context, ENCODER_PROJECTIONS_QKV_WEIGHTS, s->hidden, 3 * s->hidden, &p.qkv_weights, &p.qkv_columns, &p.qkv_smooth));
    p.x = x.data;
    p.tokens = x.dims[0];
    p.scale.value = s->scale;
    TRY(next_projections(s, context, 0, &p));
    return p.tokens ? run_parts(context, found->project, &p) : NULL;
}

static const CustomOp ENCODER_PROJECTIONS = {
    OPERATOR_ON_CPU(one), .name = project_name,
    .input_type = project_input_type, .input_count = project_inputs, .input_kind = project_input_kind,
    .output_type = type_uint8, .output_count = count_one,
    .create_v2 = encoder_create, .compute_v2 = project_compute,
};

static const char *layer_name(const CustomOp *op) { return ENCODER_LAYER_NAME; }
static size_t layer_inputs(const CustomOp *op) { return ENCODER_LAYER_INPUTS; }
static int layer_input_kind(const CustomOp *op, size_t index) {
    return index >= ENCODER_LAYER_QKV_WEIGHTS ||
                   (index >= ENCODER_LAYER_OUT_WEIGHTS && index < ENCODER_LAYER_NORM1_GAMMA && index % 3 == 2)
               ? OPTIONAL
               : REQUIRED;
}
static int layer_input_type(const CustomOp *op, size_t index) {
    if (index == ENCODER_LAYER_PROJECTIONS) return UINT8;
    if (index == ENCODER_LAYER_STARTS) return INT64;
    return index == ENCODER_LAYER_OUT_WEIGHTS || index == ENCODER_LAYER_UP_WEIGHTS || index == ENCODER_LAYER_DOWN_WEIGHTS ||
                   index == ENCODER_LAYER_QKV_WEIGHTS
               ? INT8
               : FLOAT;
}
static int layer_output_type(const CustomOp *op, size_t index) { return index ? UINT8 : FLOAT; }

static Status *read_starts(Context *context, int64_t tokens, void **starts) {
    Tensor found;
    TRY(read_input(context, ENCODER_LAYER_STARTS, INT64, "edgecompress EncoderLayer: the starts must be int64", &found));
    const int64_t *at = found.data;
    int good = found.rank == 1 && found.elements > 0 && at[0] == 0 && at[found.elements - 1] == tokens;
    for (int64_t i = 1; good && i < found.elements; i++) good = at[i - 1] <= at[i];
    *starts = found.data;
    return good ? NULL : create_status(INVALID_ARGUMENT, "edgecompress EncoderLayer: the starts must rise from 0 to the number of rows");
}

static Status *layer_compute(void *state, Context *context) {
    const EncoderState *s = state;
    const Encoder *found = NULL;
    Tensor x, given, next;
    Value *y = NULL;
    EncoderParameters p = {0};
    TRY(encoder_of(s, &found));
    TRY(read_rows(s, context, &x));
    p.tokens = x.dims[0];
    p.x = x.data;
    TRY(read_input(context, ENCODER_LAYER_PROJECTIONS, UINT8, "edgecompress EncoderLayer: the projections must be uint8", &given));
    const size_t size = projections(s, p.tokens, given.data, &p.q, &p.q_scales, &p.q_sums, &p.keys, &p.values);
    if (p.tokens && (size_t)given.elements != size)
        return create_status(INVALID_ARGUMENT, "edgecompress EncoderLayer: the projections are not those of these rows");
    TRY(read_starts(context, p.tokens, &p.starts));
    TRY(read_linear(context, ENCODER_LAYER_OUT_WEIGHTS, s->hidden, s->hidden, &p.out_weights, &p.out_columns, &p.out_smooth));
    TRY(read_linear(context, ENCODER_LAYER_UP_WEIGHTS, s->hidden, s->feed_forward, &p.up_weights, &p.up_columns, &p.up_smooth));
    TRY(read_linear(context, ENCODER_LAYER_DOWN_WEIGHTS, s->feed_forward, s->hidden, &p.down_weights, &p.down_columns, &p.down_smooth));
    void **const norms[4] = {&p.norm1_gamma, &p.norm1_beta, &p.norm2_gamma, &p.norm2_beta};
    for (size_t i = 0; i < 4; i++) TRY(read_floats(context, ENCODER_LAYER_NORM1_GAMMA + i, s->hidden, 0, norms[i]));
    p.scale.value = s->scale;
    p.epsilon1.value = s->epsilon1;
    p.epsilon2.value = s->epsilon2;
    TRY(output(context, 0, x.dims, 2, &y));
    TRY(tensor_data(y, &p.y));
    TRY(read_input(context, ENCODER_LAYER_QKV_WEIGHTS, INT8, "edgecompress EncoderLayer: weights must be int8", &next));
    if (next.data) {
        TRY(read_linear(context, ENCODER_LAYER_QKV_WEIGHTS, s->hidden, 3 * s->hidden, &p.qkv_weights, &p.qkv_columns, &p.qkv_smooth));
        TRY(next_projections(s, context, 1, &p));
    } else {
        const int64_t none = 0;
        TRY(output(context, 1, &none, 1, &y));
    }
    return p.tokens ? run_parts(context, found->layer, &p) : NULL;
}

static const CustomOp ENCODER_LAYER = {
    OPERATOR_ON_CPU(one), .name = layer_name,
    .input_type = layer_input_type, .input_count = layer_inputs, .input_kind = layer_input_kind,
    .output_type = layer_output_type, .output_count = count_two,
    .create_v2 = encoder_create, .compute_v2 = layer_compute,
};

/* ---- SumTokens: rows [N, H], starts [B + 1] -> the sum of each sequence's rows [B, H] ---- */

static const char *sum_name(const CustomOp *op) { return SUM_TOKENS_NAME; }
static size_t sum_inputs(const CustomOp *op) { return SUM_TOKENS_INPUTS; }
static int sum_input_type(const CustomOp *op, size_t index) { return index ? INT64 : FLOAT; }

static Status *sum_compute(void *state, Context *context) {
    Tensor x, starts;
    Value *y = NULL;
    void *data = NULL;
    TRY(read_input(context, 0, FLOAT, "edgecompress SumTokens: the rows must be float32", &x));
    TRY(read_input(context, 1, INT64, "edgecompress SumTokens: the starts must be int64", &starts));
    if (x.rank != 2 || starts.rank != 1 || starts.elements < 1)
        return create_status(INVALID_ARGUMENT, "edgecompress SumTokens: the rows must be [N, H] and the starts [B + 1]");
    const int64_t dims[2] = {starts.elements - 1, x.dims[1]}, *at = starts.data;
    TRY(output(context, 0, dims, 2, &y));
    TRY(tensor_data(y, &data));
    const float *rows = x.data;
    for (int64_t b = 0; b < dims[0]; b++) {
        if (at[b] < 0 || at[b] > at[b + 1] || at[b + 1] > x.dims[0])
            return create_status(INVALID_ARGUMENT, "edgecompress SumTokens: the starts must rise from 0 to the number of rows");
        float *const sum = (float *)data + b * dims[1];
        for (int64_t i = 0; i < dims[1]; i++) sum[i] = 0;
        for (int64_t n = at[b]; n < at[b + 1]; n++)
            for (int64_t i = 0; i < dims[1]; i++) sum[i] += rows[n * dims[1] + i];
    }
    return NULL;
}

static const CustomOp SUM_TOKENS = {
    OPERATOR_ON_CPU(one), .name = sum_name,
    .input_type = sum_input_type, .input_count = sum_inputs, .input_kind = kind_required,
    .output_type = type_float, .output_count = count_one,
    .create_v2 = no_state, .compute_v2 = sum_compute,
};

/* ---- UnpackTokens: rows [N, H], their indices [N], a mask [B, T] -> [B, T, H], zeros for padding ---- */

static const char *unpack_name(const CustomOp *op) { return UNPACK_TOKENS_NAME; }
static size_t unpack_inputs(const CustomOp *op) { return UNPACK_TOKENS_INPUTS; }

static Status *unpack_compute(void *state, Context *context) {
    Tensor x, places, mask;
    Value *y = NULL;
    void *data = NULL;
    TRY(read_input(context, 0, FLOAT, "edgecompress UnpackTokens: the rows must be float32", &x));
    TRY(read_input(context, 1, INT64, "edgecompress UnpackTokens: the places must be int64", &places));
    TRY(read_input(context, 2, INT64, "edgecompress UnpackTokens: the mask must be int64", &mask));
    if (x.rank != 2 || mask.rank != 2 || places.elements != x.dims[0])
        return create_status(INVALID_ARGUMENT, "edgecompress UnpackTokens: the rows must be [N, H], their places [N], the mask [B, T]");
    const int64_t dims[3] = {mask.dims[0], mask.dims[1], x.dims[1]}, *at = places.data;
    TRY(output(context, 0, dims, 3, &y));
    TRY(tensor_data(y, &data));
    float *const to = data;
    const float *rows = x.data;
    for (int64_t i = 0; i < mask.elements * dims[2]; i++) to[i] = 0;
    for (int64_t n = 0; n < x.dims[0]; n++) {
        if (at[n] < 0 || at[n] >= mask.elements)
            return create_status(INVALID_ARGUMENT, "edgecompress UnpackTokens: a place is outside the mask");
        for (int64_t i = 0; i < dims[2]; i++) to[at[n] * dims[2] + i] = rows[n * dims[2] + i];
    }
    return NULL;
}

static const CustomOp UNPACK_TOKENS = {
    OPERATOR_ON_CPU(one), .name = unpack_name,
    .input_type = sum_input_type, .input_count = unpack_inputs, .input_kind = kind_required,
    .output_type = type_float, .output_count = count_one,
    .create_v2 = no_state, .compute_v2 = unpack_compute,
};
