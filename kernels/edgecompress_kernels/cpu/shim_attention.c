/* ---- CachedAttention: attention.py, and CachedAttentionInt8: attention_int8.py ---- */

enum { SPLIT = 512, TILE_ROWS = 8, INT8_ROWS = 24 }; /* SPLIT of both, and ROWS, as in these */
enum { INPUTS = 10, K_SCALE = 10, V_SCALE = 11, INT8_INPUTS = 12 };

typedef struct Attention {
    int64_t size;
    Kernel append, attend, combine;
} Attention;

extern const Attention ATTENTIONS[], INT8_ATTENTIONS[]; /* made by build.py, ended by a size of zero */

typedef struct AttentionState {
    int64_t heads, kv_heads, size, window;
    float scale;
    int int8; /* what the cache is made of */
} AttentionState;

/* A message of either operator; ``int8`` tells which. */
#define SAY(text) (int8 ? "edgecompress CachedAttentionInt8: " text : "edgecompress CachedAttention: " text)
#define BAD(text) create_status(INVALID_ARGUMENT, SAY(text))

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
    void *k_scales, *v_scales;
} AttentionParameters;

static const CustomOp INT8_ATTENTION;
static const char *attention_name(const CustomOp *op) {
    return op == &INT8_ATTENTION ? "CachedAttentionInt8" : "CachedAttention";
}
static size_t attention_inputs(const CustomOp *op) { return op == &INT8_ATTENTION ? INT8_INPUTS : INPUTS; }
static size_t attention_outputs(const CustomOp *op) { return 3; }
static int attention_input_kind(const CustomOp *op, size_t index) {
    return index == 1 || index == 2 || (index > 6 && index < INPUTS) ? OPTIONAL : REQUIRED;
}
static int type_of_input(int int8, size_t index) {
    const int cache = index == 3 || index == 4;
    return index == 5 || index == 6 ? INT32 : index == 9 ? INT64 : cache && int8 ? INT8 : FLOAT;
}
static int attention_input_type(const CustomOp *op, size_t index) { return type_of_input(op == &INT8_ATTENTION, index); }
static int attention_output_type(const CustomOp *op, size_t index) {
    return index > 0 && op == &INT8_ATTENTION ? INT8 : FLOAT;
}

static Status *attention_create(const CustomOp *op, const void *table, const Info *info, void **state) {
    AttentionState *made;
    TRY(state_of(sizeof *made, state));
    made = *state;
    const int int8 = made->int8 = op == &INT8_ATTENTION;
    TRY(attribute_int(info, "num_heads", &made->heads));
    TRY(attribute_int(info, "kv_num_heads", &made->kv_heads));
    TRY(attribute_int(info, "head_size", &made->size));
    TRY(attribute_int(info, "local_window_size", &made->window));
    TRY(attribute_float(info, "scale", &made->scale));
    if (made->kv_heads < 1 || made->heads < 1 || made->heads % made->kv_heads)
        return BAD("num_heads must be a multiple of kv_num_heads");
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
    const int int8 = s->int8;
    Tensor q, k, v, past_key, past_value, last, total, cos, sin, positions, k_scale, v_scale;
    Tensor *const all[] = {&q,     &k,   &v,   &past_key,  &past_value, &last,
                           &total, &cos, &sin, &positions, &k_scale,    &v_scale};
    for (size_t i = 0; i < (int8 ? INT8_INPUTS : INPUTS); i++)
        TRY(read_input(context, i, type_of_input(int8, i), SAY("an input is of the wrong type"), all[i]));
    const int64_t size = s->size, group = s->heads / s->kv_heads, width = s->heads * size, kv_width = s->kv_heads * size;
    const Attention *found = int8 ? INT8_ATTENTIONS : ATTENTIONS;
    while (found->size && found->size != size) found++;
    if (!found->size)
        return create_status(NOT_IMPLEMENTED, SAY("this library has no kernel for this head_size"));
    if (q.rank != 3 || q.dims[2] != (k.data ? width : width + 2 * kv_width))
        return BAD("the query does not have the width of its heads");
    const int64_t batch = q.dims[0], tokens = q.dims[1];
    if (k.data && (!v.data || k.elements != batch * tokens * kv_width || v.elements != k.elements))
        return BAD("keys or values do not have the size of the query");
    if (past_key.rank != 4 || past_value.rank != 4 || past_key.dims[0] != batch || past_key.dims[1] != s->kv_heads ||
        past_key.dims[3] != size || past_value.elements != past_key.elements || past_value.dims[2] != past_key.dims[2])
        return BAD("the past must be [B, kv_num_heads, capacity, head_size]");
    if (last.elements != batch || total.elements != 1)
        return BAD("seqlens_k must be [B] and total_sequence_length one number");
    const int64_t rotary = cos.data ? 2 * cos.dims[cos.rank - 1] : 0;
    if (rotary && (!sin.data || !positions.data || sin.elements != cos.elements || positions.elements != batch * tokens ||
                   rotary > size || rotary % 32 || cos.rank != 2))
        return BAD("cos, sin and position_ids do not fit each other");
    if (int8 && (k_scale.elements != kv_width || v_scale.elements != kv_width))
        return BAD("k_scale and v_scale must have one number a channel, kv_num_heads times head_size");
    const int64_t longest = *(const int32_t *)total.data;
    const int64_t capacity = past_key.dims[2] > longest ? past_key.dims[2] : longest;

    Value *y = NULL;
    const int64_t y_dims[3] = {batch, tokens, width};
    AttentionParameters p = {.rotary = rotary, .batch = batch, .tokens = tokens, .kv_heads = s->kv_heads, .group = group,
                             .capacity = capacity, .window = s->window, .cos = cos.data, .sin = sin.data};
    const int64_t row_bytes = int8 ? size : size * 4, query_bytes = int8 ? 2 * size + 64 : size * 4;
    if (int8) p.k_scales = k_scale.data, p.v_scales = v_scale.data;
    TRY(output(context, 0, y_dims, 3, &y));
    TRY(present_of(context, 1, &past_key, capacity, row_bytes, &p.keys));
    TRY(present_of(context, 2, &past_value, capacity, row_bytes, &p.values));
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
    const int64_t most_rows = int8 ? INT8_ROWS : TILE_ROWS, row_parts = (rows + most_rows - 1) / most_rows;
    /* Many rows: a few each, over all keys. Few: all rows over a split each, joined afterwards in the same order. */
    const int apart = p.splits > 1 && heads * row_parts < 16;
    p.rows_per_part = apart ? rows : most_rows;
    p.row_parts = apart ? 1 : row_parts;
    p.split_parts = apart ? p.splits : 1;
    const size_t past_bytes = up(batch * 8), position_bytes = up(batch * tokens * 8), q_bytes = up(batch * tokens * s->heads * query_bytes);
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
            status = BAD("seqlens_k does not fit total_sequence_length");
        for (int64_t t = 0; t < tokens; t++) {
            where[b * tokens + t] = 0;
            const int64_t at = rotary ? ((const int64_t *)positions.data)[b * tokens + t] : 0;
            if (!status && (at < 0 || (rotary && at >= cos.dims[0])))
                status = BAD("a position is beyond the rotary table");
            if (status) break;
        }
        if (status) break;
    }
    if (!status && batch * tokens == 1)
        found->append(&p, 0);
    else if (!status)
        status = parallel_for(context, found->append, batch * tokens, 0, &p);
    if (!status) status = parallel_for(context, found->attend, heads * p.row_parts * p.split_parts, 0, &p);
    if (!status && apart && heads > 1 && p.splits > 8) /* enough to be worth a hand-over */
        status = parallel_for(context, found->combine, heads, 0, &p);
    else if (!status && apart)
        for (int64_t i = 0; i < heads; i++) found->combine(&p, i);
    allocator->free(allocator, scratch);
    return status;
}

#define AN_ATTENTION { \
    .version = API_VERSION, .name = attention_name, .provider = on_cpu, \
    .input_type = attention_input_type, .input_count = attention_inputs, .input_kind = attention_input_kind, \
    .output_type = attention_output_type, .output_count = attention_outputs, .output_kind = kind_required, \
    .input_memory = memory_default, .variadic_input_min = one, .variadic_input_same = one, \
    .variadic_output_min = one, .variadic_output_same = one, \
    .create_v2 = attention_create, .compute_v2 = attention_compute, .destroy = destroy, \
    .first_version = one, .last_version = any_version \
}
static const CustomOp ATTENTION = AN_ATTENTION;
static const CustomOp INT8_ATTENTION = AN_ATTENTION; /* the same functions, which ask what they are called on */
