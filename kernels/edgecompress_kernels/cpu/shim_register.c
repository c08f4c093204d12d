/* ---- the library's only entry point: registers the operators if the CPU has the features they need ---- */

#include "shim.h"

__attribute__((visibility("default"))) Status *RegisterCustomOps(void *options, const Base *base) {
    check_operators();
    api = base->get_api(API_VERSION);
    if (!api) {
        api = base->get_api(1); /* the oldest version of the same table has everything needed for a message */
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
    TRY(add_operators(domain));
    return add_domain(options, domain);
}
