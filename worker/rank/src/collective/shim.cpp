// A C interface to libtorch's c10d, called only through ffi.rs. Every function catches all C++
// exceptions, so that none unwinds into Rust, and stores the message in a thread-local string that
// retri_error() returns. Tensors are passed as `at::Tensor*`, the pointer type of tch. With
// RETRI_CUDA the NCCL process group is included.
#include <ATen/Version.h>
#include <torch/torch.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#ifdef RETRI_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Millis = std::chrono::milliseconds;

thread_local std::string last_error;

#ifdef RETRI_CUDA
std::atomic<bool> nccl_is_used{false};
#endif

// Bucket sizes of DistributedDataParallel. The first bucket is small, so that communication starts
// early.
constexpr int64_t first_bucket_bytes = 1024 * 1024;
constexpr int64_t bucket_bytes = 25 * 1024 * 1024;

struct Store {
  c10::intrusive_ptr<c10d::TCPStore> tcp;
};

// Counts the local gradients of a prepared backward and notifies when the last one is ready, on the
// autograd thread that computed it. In such a backward the hook of each trained parameter runs
// once. Other backwards are not counted.
struct Countdown {
  Countdown(int total, void* user, void (*notify)(void*), void (*release)(void*))
      : total(total), user(user), notify(notify), release(release) {}
  Countdown(const Countdown&) = delete;
  Countdown& operator=(const Countdown&) = delete;
  ~Countdown() { release(user); }

  void begin() { left = total; }

  void decrement() {
    if (left.load() > 0 && left.fetch_sub(1) == 1) {
      notify(user);
    }
  }

  const int total;
  std::atomic<int> left{0};
  void* const user;
  void (*const notify)(void*);
  void (*const release)(void*);
};

struct CountdownHook : torch::autograd::FunctionPostHook {
  explicit CountdownHook(std::shared_ptr<Countdown> countdown) : countdown(std::move(countdown)) {}

  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs,
      const torch::autograd::variable_list&) override {
    countdown->decrement();
    return outputs;
  }

  const std::shared_ptr<Countdown> countdown;
};

// The hooks of a countdown on the parameters; removed by the destructor.
struct LocalGradients {
  LocalGradients(const std::vector<at::Tensor>& parameters, std::shared_ptr<Countdown> counts)
      : countdown(std::move(counts)) {
    for (const auto& parameter : parameters) {
      auto node = torch::autograd::impl::grad_accumulator(parameter);
      const auto key = node->add_post_hook(std::make_unique<CountdownHook>(countdown));
      hooks.emplace_back(std::move(node), key);
    }
  }
  LocalGradients(const LocalGradients&) = delete;
  LocalGradients& operator=(const LocalGradients&) = delete;
  ~LocalGradients() {
    for (auto& [node, key] : hooks) {
      node->del_post_hook(key);
    }
  }

  const std::shared_ptr<Countdown> countdown;
  // The nodes are kept here: a parameter holds its node only weakly.
  std::vector<std::pair<std::shared_ptr<torch::autograd::Node>, uintptr_t>> hooks;
};

struct Group {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  c10::intrusive_ptr<c10d::Backend> backend;
  std::unique_ptr<c10d::Reducer> reducer;
  std::unique_ptr<LocalGradients> local;

  c10d::Reducer& require_reducer() {
    TORCH_CHECK(reducer != nullptr, "this group has no reducer");
    return *reducer;
  }
};

using Work = c10::intrusive_ptr<c10d::Work>;

// Runs `body`. On an exception, stores its message and returns `failed`.
template <typename Result, typename Body>
Result guarded(Result failed, Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception that is not a std::exception";
  }
  return failed;
}

// c10d's abort does nothing for Gloo. This fails all connections of the group, and with them every
// wait. Closing a connection alone would not wake the waits on this side.
struct GlooAccess : c10d::ProcessGroupGloo {
  static void fail_connections(c10d::ProcessGroupGloo& group) {
    for (auto& context : group.*(&GlooAccess::contexts_)) {
      for (int peer = 0; peer < group.getSize(); peer++) {
        guarded(-1, [&] {
          if (auto& pair = context->getPair(peer)) {
            auto* tcp_pair = static_cast<gloo::transport::tcp::Pair*>(pair.get());
            tcp_pair->signalExceptionExternal("the group is aborted");
          }
          return 0;
        });
      }
    }
  }
};

// Makes the running collectives of this backend fail.
void abort_backend(c10d::Backend& backend) {
  if (auto* gloo = dynamic_cast<c10d::ProcessGroupGloo*>(&backend)) {
    GlooAccess::fail_connections(*gloo);
  } else {
    backend.abort();
  }
}

Group* assemble(
    const c10::intrusive_ptr<c10d::Store>& store,
    int rank,
    int world,
    c10::DeviceType device,
    c10d::ProcessGroup::BackendType type,
    const c10::intrusive_ptr<c10d::Backend>& backend) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, world);
  group->setDefaultBackend(type);
  group->setBackend(device, type, std::optional<c10::intrusive_ptr<c10d::Backend>>(backend));
  return new Group{group, backend, nullptr, nullptr};
}

std::unique_ptr<c10d::Reducer> make_reducer(
    const std::vector<at::Tensor>& parameters,
    const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
  auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(
      parameters, {static_cast<size_t>(first_bucket_bytes), static_cast<size_t>(bucket_bytes)});
  // Gradients become ready from the last layer to the first, so buckets go in reverse.
  std::vector<std::vector<size_t>> reversed(buckets.rbegin(), buckets.rend());
  std::vector<bool> sparse(parameters.size(), false);
  std::unordered_map<size_t, std::string> names;
  const bool find_unused = false;
  const bool gradient_as_bucket_view = true;
  return std::make_unique<c10d::Reducer>(
      parameters, std::move(reversed), group, std::move(sparse), bucket_bytes, find_unused,
      gradient_as_bucket_view, std::move(names), first_bucket_bytes,
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11
      // Empty: use the two limits above.
      ,
      /*bucket_bytes_cap_list=*/std::vector<int64_t>()
#endif
  );
}

} // namespace

extern "C" {

const char* retri_error() {
  return last_error.c_str();
}

// The version of the headers that this was compiled with.
const char* retri_libtorch_version() {
  return TORCH_VERSION;
}

// The instruction set of the CPU kernels, and whether fp32 is rounded to TF32 at this moment. Valid
// until this thread's next call.
const char* retri_numerics() {
  thread_local std::string text;
  text = guarded(std::string("unknown"), [] {
    const bool tf32 =
        at::globalContext().allowTF32CuDNN() || at::globalContext().allowTF32CuBLAS();
    return at::get_cpu_capability() + (tf32 ? ", TF32 on" : ", TF32 off");
  });
  return text.c_str();
}

// Exits the process at once, without destructors: one could wait for a peer that has exited.
void retri_exit(int code) {
  _exit(code);
}

// Opens the store of one generation. With `server`, port 0 means any free port. Does not wait for
// other ranks.
void* retri_store(const char* host, int port, int server, int64_t timeout_ms) {
  return guarded<void*>(nullptr, [&]() -> void* {
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port);
    options.isServer = server != 0;
    options.waitWorkers = false;
    options.timeout = Millis(timeout_ms);
    return new Store{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

int retri_store_port(void* store) {
  return static_cast<Store*>(store)->tcp->getPort();
}

int retri_store_set(void* store, const char* key, const char* value) {
  return guarded(-1, [&] {
    const std::string text(value);
    static_cast<Store*>(store)->tcp->set(key, std::vector<uint8_t>(text.begin(), text.end()));
    return 0;
  });
}

// Writes the value of a key that is set, and returns its length.
int retri_store_get(void* store, const char* key, char* value, int value_bytes) {
  return guarded(-1, [&] {
    const auto bytes = static_cast<Store*>(store)->tcp->get(key);
    TORCH_CHECK(bytes.size() <= static_cast<size_t>(value_bytes), "it is ", bytes.size(),
        " bytes long; at most ", value_bytes, " are expected");
    std::copy(bytes.begin(), bytes.end(), value);
    return static_cast<int>(bytes.size());
  });
}

// Waits until the key is set.
int retri_store_wait(void* store, const char* key, int64_t timeout_ms) {
  return guarded(-1, [&] {
    static_cast<Store*>(store)->tcp->wait({std::string(key)}, Millis(timeout_ms));
    return 0;
  });
}

void retri_store_free(void* store) {
  delete static_cast<Store*>(store);
}

// Writes the interfaces of this machine that are up, one `NAME ADDRESS` a line, in the kernel's
// order.
int retri_interfaces(char* list, int list_bytes) {
  return guarded(-1, [&] {
    ifaddrs* first = nullptr;
    TORCH_CHECK(getifaddrs(&first) == 0, "getifaddrs: ", strerror(errno));
    const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(first, freeifaddrs);
    std::string text;
    for (const auto* it = first; it != nullptr; it = it->ifa_next) {
      if (it->ifa_addr == nullptr || (it->ifa_flags & IFF_UP) == 0) {
        continue;
      }
      const void* address = nullptr;
      if (it->ifa_addr->sa_family == AF_INET) {
        address = &reinterpret_cast<const sockaddr_in*>(it->ifa_addr)->sin_addr;
      } else if (it->ifa_addr->sa_family == AF_INET6) {
        address = &reinterpret_cast<const sockaddr_in6*>(it->ifa_addr)->sin6_addr;
      } else {
        continue;
      }
      std::array<char, INET6_ADDRSTRLEN> digits{};
      if (inet_ntop(it->ifa_addr->sa_family, address, digits.data(), digits.size()) != nullptr) {
        text += std::string(it->ifa_name) + " " + digits.data() + "\n";
      }
    }
    TORCH_CHECK(text.size() < static_cast<size_t>(list_bytes), "too many network interfaces");
    snprintf(list, static_cast<size_t>(list_bytes), "%s", text.c_str());
    return 0;
  });
}

// host: the address of this rank for traffic between ranks.
void* retri_group_gloo(
    void* store, const char* prefix, const char* host, int rank, int world, int64_t timeout_ms) {
  return guarded<void*>(nullptr, [&]() -> void* {
    auto scoped = c10::make_intrusive<c10d::PrefixStore>(prefix, static_cast<Store*>(store)->tcp);
    auto options = c10d::ProcessGroupGloo::Options::create(Millis(timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(scoped, rank, world, options);
    return assemble(
        scoped, rank, world, c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, backend);
  });
}

#ifdef RETRI_CUDA
// sockets: the value of NCCL_SOCKET_IFNAME; empty: the one in the environment stays.
void* retri_group_nccl(
    void* store, const char* prefix, const char* sockets, int device, int rank, int world,
    int64_t timeout_ms) {
  return guarded<void*>(nullptr, [&]() -> void* {
    // 1: on a timeout or a communicator error, the watchdog aborts the communicator and ends the
    // process.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", 1);
    const auto heartbeat_s = std::max<int64_t>(1, timeout_ms / 1000);
    setenv("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", std::to_string(heartbeat_s).c_str(), 1);
    if (*sockets != '\0') {
      setenv("NCCL_SOCKET_IFNAME", sockets, 1);
    }
    // The flight recorder remembers so many collectives. It reads this once, and records nothing
    // without it; what the user has set stays.
    setenv("TORCH_FR_BUFFER_SIZE", "256", 0);
    nccl_is_used = true;
    auto scoped = c10::make_intrusive<c10d::PrefixStore>(prefix, static_cast<Store*>(store)->tcp);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = Millis(timeout_ms);
    // Non-blocking, so that a missing peer causes our timeout and not a hang inside NCCL.
    options->config.blocking = 0;
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(scoped, rank, world, options);
    backend->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    return assemble(
        scoped, rank, world, c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
  });
}
#endif

// The collectives that NCCL's flight recorder knows to have begun and not ended, as JSON; empty if
// this process uses no NCCL. A text that has no room is cut.
int retri_flight_recorder(char* text, int text_bytes) {
  return guarded(-1, [&] {
    std::string dump;
#ifdef RETRI_CUDA
    if (nccl_is_used) {
      dump = c10d::dump_nccl_trace_json(true, true);
    }
#endif
    snprintf(text, static_cast<size_t>(text_bytes), "%s", dump.c_str());
    return 0;
  });
}

// Starts a sum over all ranks. The tensor must not be accessed until retri_work_wait has returned.
void* retri_all_reduce(void* group, at::Tensor* tensor) {
  return guarded<void*>(nullptr, [&]() -> void* {
    std::vector<at::Tensor> tensors{*tensor};
    return new Work(static_cast<Group*>(group)->group->allreduce(tensors));
  });
}

// Takes ownership of the work.
int retri_work_wait(void* work) {
  const std::unique_ptr<Work> owned(static_cast<Work*>(work));
  return guarded(-1, [&] {
    (*owned)->wait();
    return 0;
  });
}

int retri_broadcast(void* group, at::Tensor* tensor, int root) {
  return guarded(-1, [&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    static_cast<Group*>(group)->group->broadcast(tensors, options)->wait();
    return 0;
  });
}

// A handle to the group's backend, for aborting it from another thread than the one that waits in a
// collective. Keeps the backend alive independently of the group.
void* retri_group_backend(void* group) {
  return new c10::intrusive_ptr<c10d::Backend>(static_cast<Group*>(group)->backend);
}

// Aborts on a separate thread, because an abort can block. Takes ownership of the backend.
void retri_backend_abort(void* backend) {
  std::thread([backend = static_cast<c10::intrusive_ptr<c10d::Backend>*>(backend)] {
    guarded(-1, [&] {
      abort_backend(**backend);
      delete backend;
      return 0;
    });
  }).detach();
}

void retri_backend_free(void* backend) {
  delete static_cast<c10::intrusive_ptr<c10d::Backend>*>(backend);
}

// Attaches the reducer's hooks to the parameters, whose order must be the same on every rank. In
// every backward that reduces, `notify` is called with `user` as soon as the last local gradient is
// ready. `release` is called once, after the last `notify`, also if this call fails.
int retri_reducer(
    void* group, at::Tensor* const* parameters, int count, void* user, void (*notify)(void*),
    void (*release)(void*)) {
  return guarded(-1, [&] {
    auto countdown = std::make_shared<Countdown>(count, user, notify, release);
    std::vector<at::Tensor> list;
    for (int i = 0; i < count; i++) {
      list.push_back(*parameters[i]);
    }
    auto* owner = static_cast<Group*>(group);
    // Attached before the reducer's hooks, which start to reduce the last bucket.
    owner->local = std::make_unique<LocalGradients>(list, std::move(countdown));
    owner->reducer = make_reducer(list, owner->group);
    return 0;
  });
}

// Call before the forward whose backward reduces. Once, after the first such backward, the ranks
// rebuild the buckets, and wait for each other.
int retri_reducer_forward(void* group) {
  return guarded(-1, [&] {
    auto& reducer = static_cast<Group*>(group)->require_reducer();
    reducer.prepare_for_forward();
    reducer.rebuild_buckets();
    return 0;
  });
}

// The next backward reduces.
int retri_reducer_backward(void* group) {
  return guarded(-1, [&] {
    auto* owner = static_cast<Group*>(group);
    owner->require_reducer().prepare_for_backward({});
    owner->local->countdown->begin();
    return 0;
  });
}

// Nanoseconds from retri_reducer_backward until the last local gradient was ready; -1 if unknown.
int64_t retri_reducer_ready_nanos(void* group) {
  return guarded<int64_t>(-1, [&]() -> int64_t {
    const auto ready = static_cast<Group*>(group)->require_reducer().get_backward_stats();
    return ready.empty() ? -1 : *std::max_element(ready.begin(), ready.end());
  });
}

// Removes the reducer's hooks from the parameters at once, and frees the rest on a separate thread,
// because connections to exited peers can be slow to close.
void retri_group_free(void* group) {
  guarded(-1, [&] {
    auto* owner = static_cast<Group*>(group);
    owner->reducer.reset();
    owner->local.reset();
    std::thread([owner] {
      guarded(-1, [&] {
        abort_backend(*owner->backend);
        delete owner;
        return 0;
      });
    }).detach();
    return 0;
  });
}

// Number of visible CUDA devices; 0 in a CPU build, -1 on an error.
int retri_cuda_devices() {
#ifdef RETRI_CUDA
  return guarded(-1, [&] { return static_cast<int>(at::cuda::device_count()); });
#else
  return 0;
#endif
}

// Writes the device's name and returns its compute capability as major * 10 + minor. Returns -1 and
// sets retri_error() on an error.
int retri_cuda_capability(int device, char* name, int name_bytes) {
#ifdef RETRI_CUDA
  return guarded(-1, [&] {
    const auto* properties = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(device));
    snprintf(name, static_cast<size_t>(name_bytes), "%s", properties->name);
    return properties->major * 10 + properties->minor;
  });
#else
  (void)device;
  (void)name;
  (void)name_bytes;
  last_error = "this build has no CUDA; build with CUDA=1";
  return -1;
#endif
}

// The library's build description, which includes the compiler's architecture flags. Empty in a CPU
// build and without a driver.
const char* retri_cuda_build() {
#ifdef RETRI_CUDA
  static const std::string text =
      guarded(std::string(), [] { return at::detail::getCUDAHooks().showConfig(); });
  return text.c_str();
#else
  return "";
#endif
}

// The largest number of bytes that tensors have occupied on the device so far; -1 on an error and in
// a CPU build.
int64_t retri_cuda_peak_bytes(int device) {
#ifdef RETRI_CUDA
  return guarded<int64_t>(-1, [&]() -> int64_t {
    const auto stats =
        c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return stats.allocated_bytes[all].peak;
  });
#else
  (void)device;
  last_error = "this build has no CUDA; build with CUDA=1";
  return -1;
#endif
}

// Disables TF32: newer GPUs otherwise round the fp32 inputs of convolutions and matrix products to
// 10 bits of mantissa.
void retri_full_fp32() {
  at::globalContext().setAllowTF32CuDNN(false);
  at::globalContext().setAllowTF32CuBLAS(false);
}

} // extern "C"
