/* Stands in for NVIDIA's libnvidia-ml.so.1 where there is no driver: one GPU, whose energy grows with each reading.
   With -DOLD_DRIVER the reasons for lower clocks have their name of before 2023, and energy is not supported. */
#include <string.h>

typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } process;

int nvmlInitWithFlags(unsigned flags) { return flags ? 2 : 0; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Not Found"; }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    static int gpu;
    *device = &gpu;
    return strcmp(uuid, "GPU-1234") ? 6 : 0;
}

int nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *mhz) { *mhz = type == 1 ? 1410 : 0; return 0; }
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) { *celsius = 61; return 0; }

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *found) {
    if (*count < 2) { *count = 2; return 7; }
    memset(found, 0, 2 * sizeof *found);
    *count = 2;
    return 0;
}

#ifdef OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) { *reasons = 4; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoule) { return 3; }
#else
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) { *reasons = 4; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoule) {
    static unsigned long long spent = 1000;
    *millijoule = spent += 500;
    return 0;
}
#endif
