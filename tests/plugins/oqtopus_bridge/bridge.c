/* What stands for QRMI's bridge to OQTOPUS, which its wheel does not contain: the same symbols, in
 * front of oqtopus_bridge.py. QRMI calls them in a process that has loaded libpython. */
#include <stdlib.h>
#include <string.h>

typedef void PyObject;
extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int);
extern void Py_DecRef(PyObject *);
extern PyObject *PyImport_ImportModule(const char *);
extern PyObject *PyObject_CallMethod(PyObject *, const char *, const char *, ...);
extern const char *PyUnicode_AsUTF8(PyObject *);
extern void PyErr_Print(void);

void py_bridge_free_string(char *text) { free(text); }

/* Python answers "0" or "1" for success or failure, followed by the text. */
static int call(const char *name, const char *argument, const char *config, char **out, char **err)
{
    int state = PyGILState_Ensure(), failed = 1;
    PyObject *module = PyImport_ImportModule("oqtopus_bridge");
    PyObject *answer =
        module ? PyObject_CallMethod(module, "call", "sss", name, argument, config) : NULL;
    const char *text = answer ? PyUnicode_AsUTF8(answer) : NULL;
    if (text) {
        failed = text[0] != '0';
        *(failed ? err : out) = strdup(text + 1);
    } else {
        PyErr_Print();
    }
    if (answer)
        Py_DecRef(answer);
    if (module)
        Py_DecRef(module);
    PyGILState_Release(state);
    return failed ? -1 : 0;
}

#define BRIDGE(name)                                                                               \
    int name(const char *argument, const char *config, char **out, char **err)                     \
    {                                                                                              \
        return call(#name, argument, config, out, err);                                            \
    }

BRIDGE(submit_job)
BRIDGE(get_job_status)
BRIDGE(get_job_result_json)
BRIDGE(cancel_job)
BRIDGE(get_device_json)
BRIDGE(get_device_status)
