// How the tests steer the emulation, by ctypes.
#include "emulation.h"

extern "C" void emulation_set_thread_order(int order) { emulation::thread_order = order; }
extern "C" void emulation_set_launch_hook(emulation::LaunchHook hook) { emulation::launch_hook = hook; }
extern "C" const char* cudaGetErrorString(cudaError_t) { return "no error"; }  // errors are exceptions here
