/* Declarations shared by the shims: ONNX Runtime's C API, the table of abi.py, and the shims' types and functions.
 *
 * The shims are one translation unit, so that the compiler can inline across them; each also compiles alone. They need no
 * ONNX Runtime header: its function table only grows at the end, and the few functions used are named here by index.
 * Nothing uses libc. */

#ifndef EDGECOMPRESS_SHIM_H
#define EDGECOMPRESS_SHIM_H

#include <stddef.h>
#include <stdint.h>

/* ---- ONNX Runtime's C API ---- */

enum { API_VERSION = 18 }; /* ONNX Runtime 1.18, the first with everything used here */
enum { FAIL = 1, INVALID_ARGUMENT = 2, NOT_IMPLEMENTED = 9 }; /* OrtErrorCode */

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

enum { /* indices in OrtApi, with its names */
    CreateStatus = 0,
    CreateCustomOpDomain = 26,
    CustomOpDomain_Add = 27,
    AddCustomOpDomain = 28,
    GetTensorMutableData = 51,
    GetTensorElementType = 60,
    GetDimensionsCount = 61,
    GetDimensions = 62,
    GetTensorTypeAndShape = 65,
    GetAllocatorWithDefaultOptions = 78,
    KernelInfoGetAttribute_float = 85,
    KernelInfoGetAttribute_int64 = 86,
    KernelContext_GetInput = 90,
    KernelContext_GetOutput = 91,
    ReleaseStatus = 93,
    ReleaseTensorTypeAndShapeInfo = 99,
    KernelInfo_GetInputCount = 230,
    KernelInfoGetConstantInput_tensor = 249,
    KernelContext_ParallelFor = 274,
};

static void *const *api; /* a process has one ONNX Runtime */

#define CALL(place, result, ...) ((result(*)(__VA_ARGS__))api[place])
#define create_status CALL(CreateStatus, Status *, int, const char *)
#define create_domain CALL(CreateCustomOpDomain, Status *, const char *, void **)
#define add_to_domain CALL(CustomOpDomain_Add, Status *, void *, const void *)
#define add_domain CALL(AddCustomOpDomain, Status *, void *, void *)
#define tensor_data CALL(GetTensorMutableData, Status *, Value *, void **)
#define element_type CALL(GetTensorElementType, Status *, const Shape *, int *)
#define dimension_count CALL(GetDimensionsCount, Status *, const Shape *, size_t *)
#define dimensions CALL(GetDimensions, Status *, const Shape *, int64_t *, size_t)
#define type_and_shape CALL(GetTensorTypeAndShape, Status *, const Value *, Shape **)
#define default_allocator CALL(GetAllocatorWithDefaultOptions, Status *, Allocator **)
#define attribute_float CALL(KernelInfoGetAttribute_float, Status *, const Info *, const char *, float *)
#define attribute_int CALL(KernelInfoGetAttribute_int64, Status *, const Info *, const char *, int64_t *)
#define input CALL(KernelContext_GetInput, Status *, const Context *, size_t, const Value **)
#define output CALL(KernelContext_GetOutput, Status *, Context *, size_t, const int64_t *, size_t, Value **)
#define release_status CALL(ReleaseStatus, void, Status *)
#define release_shape CALL(ReleaseTensorTypeAndShapeInfo, void, Shape *)
#define input_names CALL(KernelInfo_GetInputCount, Status *, const Info *, size_t *)
#define constant_input CALL(KernelInfoGetConstantInput_tensor, Status *, const Info *, size_t, int *, const Value **)
#define parallel_for CALL(KernelContext_ParallelFor, Status *, const Context *, Kernel, size_t, size_t, void *)

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

/* ---- the table of abi.py ---- */

typedef union Number {
    float value;
    int64_t slot;
} Number;

#include "abi.h"

/* ---- written by build.py for the library's kernels ---- */

extern const int MATRICES; /* the kernels use tiles of sixteen rows, two at a time */
extern const char ISA[]; /* the kernels' instruction set, and the CPU features that it needs */
extern const char *const NEEDS[];
static void check_operators(void); /* from abi_header.py: empty, or a compile error */
static Status *add_operators(void *domain); /* from abi_header.py: all operators of the table */

/* ---- cpu.c ---- */

static void relax(void);
static void let_others_run(void);
static const char *lacking(const char *const *needs);
static char *append_text(char *to, const char *end, const char *text);

/* ---- shim.c: shared by all operators ---- */

enum { MOST_DIMENSIONS = 8 };

typedef struct Tensor {
    void *data;
    int64_t dims[MOST_DIMENSIONS];
    size_t rank;
    int64_t elements;
    int type;
} Tensor;

typedef union Scratch {
    size_t bytes;
    char line[64];
} Scratch;

static Status *describe(const Value *value, Tensor *tensor);
static Status *read_any(Context *context, size_t index, Tensor *tensor);
static Status *read_input(Context *context, size_t index, int type, const char *wrong, Tensor *tensor);
static size_t up(size_t bytes);
static int kind_required(const CustomOp *op, size_t index);
static int memory_default(const CustomOp *op, size_t index);
static int no(const CustomOp *op);
static int one(const CustomOp *op);
static int any_version(const CustomOp *op);
static const char *on_cpu(const CustomOp *op);
static size_t count_one(const CustomOp *op);
static int type_float(const CustomOp *op, size_t index);
static void give_back(Allocator *allocator, Scratch *scratch);
static Status *take_scratch(size_t bytes, Allocator **allocator, Scratch **scratch, char **memory);
static Status *state_of(size_t bytes, void **state);
static void destroy(void *state);

/* Fields that are the same in every operator; ``same``: whether variadic inputs all have one type. */
#define OPERATOR_ON_CPU(same) \
    .version = API_VERSION, .provider = on_cpu, .output_kind = kind_required, .input_memory = memory_default, \
    .variadic_input_min = one, .variadic_input_same = same, .variadic_output_min = one, .variadic_output_same = one, \
    .destroy = destroy, .first_version = one, .last_version = any_version

/* ---- shim_job.c: ordered work that threads share with a single dispatch ---- */

enum { MOST_WORK = 48 };

typedef struct Work {
    Kernel run;
    void *parameters;
    int64_t parts;
    int follows; /* each part runs right after the same part of the previous work, in the same thread */
} Work;

typedef struct Turn { /* two cache lines: CPUs fetch them in pairs */
    int64_t taken, done;
    char rest[112];
} Turn;

typedef struct Job {
    int count, finished, helpers;
    int64_t row_parts; /* of the last work, if it is row-wise and the next can be fused with it; else 0 */
    int64_t row_width;
    Work work[MOST_WORK];
    Turn turns[MOST_WORK];
} Job;

typedef struct Room { /* a job's memory: counted first, without a base, then handed out */
    char *base;
    size_t used;
} Room;

/* Plans the work of an operator's call and its memory. */
typedef void (*Plan)(void *call, Room *memory, Job *job);

static void add_work(Job *job, Kernel run, void *parameters, int64_t parts);
static int64_t columns_of_part(int64_t rows, int64_t width);
static void add_row_work(Job *job, Kernel run, void *parameters, int64_t rows, int64_t width, int64_t columns);
static void *room(Room *room, size_t bytes);
static Status *run_planned(Context *context, Plan plan, void *call);

/* ---- shim_matmul.c ---- */

typedef struct MatmulInputs {
    Tensor x, weights, scales, zeros, bias; /* scales are float or float16; zeros and bias are optional */
} MatmulInputs;

static Status *find_matmul(const MatmulState *s, const MatmulInputs *in, const Matmul **found);
static void plan_matmul(const MatmulState *s, const Matmul *found, const MatmulInputs *in, void *y, Room *memory, Job *job,
                        MatmulParameters *p);

/* ---- shim_attention.c ---- */

typedef struct AttentionInputs {
    Tensor q, k, v, past_key, past_value, last, total, cos, sin, positions, k_scale, v_scale;
} AttentionInputs;

#define QUERY_BYTES(size) (2 * (size) + 64) /* per query of attention_int8.py */

static size_t attention_outputs(const CustomOp *op);
static Status *read_attention(int int8, const Info *info, AttentionState *made);
static Status *find_attention(const AttentionState *s, const AttentionInputs *in, const Attention **kind, AttentionParameters *p);
static Status *present_caches(const AttentionState *s, Context *context, const AttentionInputs *in, AttentionParameters *p);
static void plan_attention(const AttentionState *s, const Attention *found, const AttentionInputs *in, void *y, Room *memory,
                           Job *job, AttentionParameters *p);

/* ---- shim_encoder.c ---- */

#define BLOCK_BYTES(size) (16 * (size) + 64) /* for sixteen keys or values of a head in encoder_attention.py */

#endif
