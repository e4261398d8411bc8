/* A plugin of QEMU's: counts the Arm instructions that the program executes, in all its threads: a
 * runtime that is told to use one may still compute on another than the first.
 *
 * At every call of getpriority it notes the count so far: runners make one between their runs, and
 * nothing else does. At the end the notes are written to the file named by out=FILE, one per line.
 *
 * Only calls that QEMU has had since 4.2 and still has are used; they are declared here because
 * Debian's qemu-user comes without the header. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define GETPRIORITY 141 /* the system call's number on 64-bit Arm */
#define NOTES 1024
#define THREADS 256 /* more share a counter, and may lose some */

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
enum flags { NO_REGISTERS };
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb*, void (*)(unsigned, void*),
                                          enum flags, void*);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id,
                                          void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
                                                   uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                   uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void*), void*);

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

static uint64_t counts[THREADS], notes[NOTES], noted;
static char path[4096];

static void executed(unsigned cpu, void* instructions) {
  counts[cpu % THREADS] += (uintptr_t)instructions;
}

static void translated(plugin_id id, struct qemu_plugin_tb* block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS,
                                       (void*)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c,
                   uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number != GETPRIORITY || noted == NOTES) return;
  uint64_t sum = 0;
  for (int i = 0; i < THREADS; ++i) sum += counts[i];
  notes[noted++] = sum;
}

static void ended(plugin_id id, void* nothing) {
  (void)id, (void)nothing;
  FILE* file = fopen(path, "w");
  if (!file) return;
  for (uint64_t i = 0; i < noted; ++i) fprintf(file, "%llu\n", (unsigned long long)notes[i]);
  fclose(file);
}

EXPORT int qemu_plugin_install(plugin_id id, const void* info, int argc, char** argv) {
  (void)info;
  for (int i = 0; i < argc; ++i)
    if (strncmp(argv[i], "out=", 4) == 0) snprintf(path, sizeof path, "%s", argv[i] + 4);
  if (!path[0]) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
