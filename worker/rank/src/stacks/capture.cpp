// Captures the stack of another thread of this process. The thread is interrupted by a signal, and
// the handler walks its stack. It allocates nothing and takes no lock: backtrace() has loaded what
// it needs before (see retri_stacks_prepare), and sem_post() may be called in a handler.

#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>

#include <execinfo.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int FRAMES = 128;
// The handler itself, and the kernel's return from it.
constexpr int OWN_FRAMES = 2;

struct {
  // The thread that is asked; 0 once it has begun to answer, or nobody is asked.
  std::atomic<int> thread{0};
  int count = 0;
  void* frames[FRAMES] = {};
  sem_t done;
} request;

// No library of the process uses it: NCCL, CUDA and Gloo use none of the real-time signals.
int number() { return SIGRTMIN + 7; }

void answer(int, siginfo_t*, void*) {
  const int saved = errno;
  int expected = static_cast<int>(syscall(SYS_gettid));
  // A thread that answers after nobody waits any more must not touch the frames.
  if (request.thread.compare_exchange_strong(expected, 0)) {
    request.count = backtrace(request.frames, FRAMES);
    sem_post(&request.done);
  }
  errno = saved;
}

bool wait(int timeout_ms) {
  timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_nsec += (timeout_ms % 1000) * 1000000L;
  until.tv_sec += timeout_ms / 1000 + until.tv_nsec / 1000000000L;
  until.tv_nsec %= 1000000000L;
  while (sem_timedwait(&request.done, &until) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

}  // namespace

extern "C" {

// Call once, before any thread is asked. Returns 0, or errno.
int retri_stacks_prepare() {
  void* frames[1];
  // Loads the unwinder: a handler could not.
  backtrace(frames, 1);
  if (sem_init(&request.done, 0, 0) != 0) return errno;
  struct sigaction action = {};
  action.sa_sigaction = answer;
  // Not on the alternative stack, which is too small to walk another one from.
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigemptyset(&action.sa_mask);
  return sigaction(number(), &action, nullptr) == 0 ? 0 : errno;
}

// Writes the addresses of the thread's frames, the innermost first, and returns their number. -1:
// there is no such thread. -2: it does not answer in time (it blocks signals, is stopped, or is
// deep in the kernel). -3: one has begun to answer and never ended; nobody can be asked again. Not
// for two callers at once.
int retri_stack(int thread, void** frames, int max, int timeout_ms) {
  static bool broken = false;
  if (broken) return -3;
  request.thread.store(thread);
  if (syscall(SYS_tgkill, getpid(), thread, number()) != 0) {
    request.thread.store(0);
    return -1;
  }
  if (!wait(timeout_ms)) {
    int expected = thread;
    if (request.thread.compare_exchange_strong(expected, 0)) return -2;
    // It has begun meanwhile.
    if (!wait(timeout_ms)) {
      broken = true;
      return -3;
    }
  }
  int count = 0;
  for (int frame = OWN_FRAMES; frame < request.count && count < max; frame++) {
    frames[count++] = request.frames[frame];
  }
  return count;
}

}  // extern "C"
