// Stands in for NVIDIA's libnvidia-ml in tests: the symbols and structures of nvml.h that the
// daemon reads. The values are in the file NAME.values beside the library NAME, in one line: GPUs,
// utilization in percent, used bytes, degrees Celsius, milliwatts, megahertz, then of the last GPU
// alone uncorrected ECC errors and an Xid that is reported once, and a mask of throttle reasons.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, TIMEOUT = 10, UNKNOWN = 999 };
enum { XID_EVENT = 8 };
enum { POLL_US = 5000 };

typedef struct { unsigned gpus, utilization; unsigned long long used; unsigned celsius, milliwatts,
    megahertz; unsigned long long ecc, xid, throttle; } values;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { void *device; unsigned long long type, data; unsigned gpu_instance,
    compute_instance; } event;

static int read_values(values *to) {
  Dl_info own;
  char path[4096];
  if (!dladdr((void *)&read_values, &own)) return UNKNOWN;
  snprintf(path, sizeof path, "%s.values", own.dli_fname);
  FILE *file = fopen(path, "r");
  if (!file) return UNKNOWN;
  int count = fscanf(file, "%u %u %llu %u %u %u %llu %llu %llu", &to->gpus, &to->utilization,
                     &to->used, &to->celsius, &to->milliwatts, &to->megahertz, &to->ecc, &to->xid,
                     &to->throttle);
  fclose(file);
  return count == 9 ? SUCCESS : UNKNOWN;
}

// Handles are the number of the GPU, from 1.
static int is_last(void *device, const values *of) { return (uintptr_t)device == of->gpus; }

#define READ(v) values v; { int error = read_values(&v); if (error) return error; }

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { (void)error; return "fake"; }
int nvmlDeviceGetCount_v2(unsigned *to) { READ(v); *to = v.gpus; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **to) {
  READ(v);
  if (v.gpus <= index) return INVALID_ARGUMENT;
  *to = (void *)(uintptr_t)(index + 1);
  return SUCCESS;
}
int nvmlDeviceGetName(void *device, char *to, unsigned bytes) {
  (void)device;
  snprintf(to, bytes, "Fake GPU");
  return SUCCESS;
}
int nvmlDeviceGetUUID(void *device, char *to, unsigned bytes) {
  snprintf(to, bytes, "GPU-fake-%u", (unsigned)(uintptr_t)device - 1);
  return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization *to) {
  (void)device;
  READ(v);
  to->gpu = v.utilization;
  to->memory = v.utilization;
  return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, memory *to) {
  (void)device;
  READ(v);
  to->total = 1ULL << 34;
  to->reserved = 0;
  to->used = v.used;
  to->free = to->total - v.used;
  return SUCCESS;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *to) {
  (void)device;
  (void)sensor;
  READ(v);
  *to = v.celsius;
  return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *to) {
  (void)device;
  READ(v);
  *to = v.milliwatts;
  return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *to) {
  (void)device;
  (void)clock;
  READ(v);
  *to = v.megahertz;
  return SUCCESS;
}
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *to) {
  (void)counter;
  READ(v);
  // 1: uncorrected.
  *to = kind == 1 && is_last(device, &v) ? v.ecc : 0;
  return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *to) {
  (void)device;
  READ(v);
  *to = v.throttle;
  return SUCCESS;
}
int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *to) {
  (void)device;
  *to = XID_EVENT;
  return SUCCESS;
}
int nvmlEventSetCreate(void **to) { *to = (void *)1; return SUCCESS; }
int nvmlEventSetFree(void *set) { (void)set; return SUCCESS; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
  (void)device;
  (void)types;
  (void)set;
  return SUCCESS;
}
// Returns soon instead of after the whole time, so that tests read often.
int nvmlEventSetWait_v2(void *set, event *to, unsigned milliseconds) {
  static unsigned long long reported = 0;
  (void)set;
  (void)milliseconds;
  READ(v);
  if (v.xid == 0 || v.xid == reported) {
    usleep(POLL_US);
    return TIMEOUT;
  }
  reported = v.xid;
  memset(to, 0, sizeof *to);
  to->device = (void *)(uintptr_t)v.gpus;
  to->type = XID_EVENT;
  to->data = v.xid;
  return SUCCESS;
}
