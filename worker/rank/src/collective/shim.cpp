// A C face over libtorch's c10d, called by ffi.rs only. Every function catches every C++ exception
// and leaves the message in a thread-local string that retri_error() returns; none lets one cross
// into Rust. Tensors cross as `at::Tensor*`, which is what tch hands out. With RETRI_CUDA the NCCL
// process group is there too.
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
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#include <unistd.h>
#include <algorithm>
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

// Buckets as DistributedDataParallel sizes them: the first small, so that communication starts
// early.
constexpr int64_t first_bucket_bytes = 1024 * 1024;
constexpr int64_t bucket_bytes = 25 * 1024 * 1024;

struct Store {
  c10::intrusive_ptr<c10d::TCPStore> tcp;
};

// Counts the own gradients of a prepared backward and tells when the last one is ready, on
// whichever thread autograd computes it. Each of the trained parameters has its hook once in such a
// backward; others are not counted.
struct Countdown {
  Countdown(int total, void* user, void (*tell)(void*), void (*release)(void*))
      : total(total), user(user), tell(tell), release(release) {}
  Countdown(const Countdown&) = delete;
  Countdown& operator=(const Countdown&) = delete;
  ~Countdown() { release(user); }

  void begin() { left = total; }

  void one() {
    if (left.load() > 0 && left.fetch_sub(1) == 1) {
      tell(user);
    }
  }

  const int total;
  std::atomic<int> left{0};
  void* const user;
  void (*const tell)(void*);
  void (*const release)(void*);
};

struct CountdownHook : torch::autograd::FunctionPostHook {
  explicit CountdownHook(std::shared_ptr<Countdown> countdown) : countdown(std::move(countdown)) {}

  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) override {
    countdown->one();
    return outputs;
  }

  const std::shared_ptr<Countdown> countdown;
};

// A countdown's hooks on the parameters; takes them off at its end.
struct OwnGradients {
  OwnGradients(const std::vector<at::Tensor>& parameters, std::shared_ptr<Countdown> counts)
      : countdown(std::move(counts)) {
    for (const auto& parameter : parameters) {
      auto node = torch::autograd::impl::grad_accumulator(parameter);
      const auto key = node->add_post_hook(std::make_unique<CountdownHook>(countdown));
      hooks.emplace_back(std::move(node), key);
    }
  }
  OwnGradients(const OwnGradients&) = delete;
  OwnGradients& operator=(const OwnGradients&) = delete;
  ~OwnGradients() {
    for (auto& [node, key] : hooks) {
      node->del_post_hook(key);
    }
  }

  const std::shared_ptr<Countdown> countdown;
  // A parameter does not keep its node alive.
  std::vector<std::pair<std::shared_ptr<torch::autograd::Node>, uintptr_t>> hooks;
};

struct Group {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  c10::intrusive_ptr<c10d::Backend> backend;
  std::unique_ptr<c10d::Reducer> reducer;
  std::unique_ptr<OwnGradients> own;

  c10d::Reducer& reduces() {
    TORCH_CHECK(reducer != nullptr, "no reducer was made for this group");
    return *reducer;
  }
};

using Work = c10::intrusive_ptr<c10d::Work>;

// Runs `body`; on an exception keeps its message and returns `failed`.
template <typename Result, typename Body>
Result guarded(Result failed, Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception that is no std::exception";
  }
  return failed;
}

// c10d's abort does nothing for Gloo: this ends its connections, and with them every wait. Merely
// closing a connection would leave its own waits waiting.
struct OpenGloo : c10d::ProcessGroupGloo {
  static void end(c10d::ProcessGroupGloo& group) {
    for (auto& context : group.*(&OpenGloo::contexts_)) {
      for (int peer = 0; peer < group.getSize(); peer++) {
        guarded(-1, [&] {
          if (auto& pair = context->getPair(peer)) {
            static_cast<gloo::transport::tcp::Pair*>(pair.get())->signalExceptionExternal("the group is aborted");
          }
          return 0;
        });
      }
    }
  }
};

// Whoever waits in a collective of this backend gets an error.
void abort_backend(c10d::Backend& backend) {
  if (auto* gloo = dynamic_cast<c10d::ProcessGroupGloo*>(&backend)) {
    OpenGloo::end(*gloo);
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
      // Empty: the two limits above hold.
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

// The version whose headers this was compiled with.
const char* retri_libtorch_version() {
  return TORCH_VERSION;
}

// Leaves the process at once: no destructor of a library may wait for a peer that is gone.
void retri_exit(int code) {
  _exit(code);
}

// A store for one generation. port 0 with server: any free port. Does not wait for other ranks.
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

// Waits until the key is there.
int retri_store_wait(void* store, const char* key, int64_t timeout_ms) {
  return guarded(-1, [&] {
    static_cast<Store*>(store)->tcp->wait({std::string(key)}, Millis(timeout_ms));
    return 0;
  });
}

void retri_store_free(void* store) {
  delete static_cast<Store*>(store);
}

// host: the address on which this rank talks to the others.
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
void* retri_group_nccl(
    void* store, const char* prefix, int device, int rank, int world, int64_t timeout_ms) {
  return guarded<void*>(nullptr, [&]() -> void* {
    // 1: on a time-out or a communicator's error the watchdog aborts the communicator and ends the
    // process.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", 1);
    const auto heartbeat_s = std::max<int64_t>(1, timeout_ms / 1000);
    setenv("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", std::to_string(heartbeat_s).c_str(), 1);
    auto scoped = c10::make_intrusive<c10d::PrefixStore>(prefix, static_cast<Store*>(store)->tcp);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = Millis(timeout_ms);
    // Non-blocking: a peer that never comes is met by our time-out and not by a hang inside NCCL.
    options->config.blocking = 0;
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(scoped, rank, world, options);
    backend->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    return assemble(
        scoped, rank, world, c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
  });
}
#endif

// Starts a sum over all ranks. The tensor must not be touched until retri_work_wait has returned.
void* retri_all_reduce(void* group, at::Tensor* tensor) {
  return guarded<void*>(nullptr, [&]() -> void* {
    std::vector<at::Tensor> tensors{*tensor};
    return new Work(static_cast<Group*>(group)->group->allreduce(tensors));
  });
}

// Takes the work.
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

// The group's connections, to be aborted from another thread than the one that waits in a
// collective. Lives as long as it must, whatever becomes of the group.
void* retri_group_backend(void* group) {
  return new c10::intrusive_ptr<c10d::Backend>(static_cast<Group*>(group)->backend);
}

// Starts aborting on a thread of its own, because an abort can itself block. Takes the backend.
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

// Returns once the reducer's hooks hang on the parameters. Their order must be the same on every
// rank. `tell` is called with `user` in every backward that reduces, as soon as the last own
// gradient is ready; `release` when it never will be again, whatever this call returns.
int retri_reducer(
    void* group, at::Tensor* const* parameters, int count, void* user, void (*tell)(void*), void (*release)(void*)) {
  return guarded(-1, [&] {
    auto countdown = std::make_shared<Countdown>(count, user, tell, release);
    std::vector<at::Tensor> list;
    for (int i = 0; i < count; i++) {
      list.push_back(*parameters[i]);
    }
    auto* owner = static_cast<Group*>(group);
    // Before the reducer's, which starts to reduce the last bucket.
    owner->own = std::make_unique<OwnGradients>(list, std::move(countdown));
    owner->reducer = make_reducer(list, owner->group);
    return 0;
  });
}

// Before the forward whose backward reduces. Once, after the first such backward, the ranks agree
// anew on the buckets, and wait for each other.
int retri_reducer_forward(void* group) {
  return guarded(-1, [&] {
    auto& reducer = static_cast<Group*>(group)->reduces();
    reducer.prepare_for_forward();
    reducer.rebuild_buckets();
    return 0;
  });
}

// The next backward reduces.
int retri_reducer_backward(void* group) {
  return guarded(-1, [&] {
    auto* owner = static_cast<Group*>(group);
    owner->reduces().prepare_for_backward({});
    owner->own->countdown->begin();
    return 0;
  });
}

// Nanoseconds from retri_reducer_backward to the moment when the last own gradient was ready. -1:
// not known.
int64_t retri_reducer_ready_nanos(void* group) {
  return guarded<int64_t>(-1, [&]() -> int64_t {
    const auto ready = static_cast<Group*>(group)->reduces().get_backward_stats();
    return ready.empty() ? -1 : *std::max_element(ready.begin(), ready.end());
  });
}

// Takes the reducer's hooks off the parameters at once; the rest on a thread of its own, because
// connections to peers that are gone can be slow to end.
void retri_group_free(void* group) {
  guarded(-1, [&] {
    auto* owner = static_cast<Group*>(group);
    owner->reducer.reset();
    owner->own.reset();
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

// Does this library hold CUDA code, and can it see devices?
int retri_cuda_devices() {
#ifdef RETRI_CUDA
  return guarded(-1, [&] { return static_cast<int>(at::cuda::device_count()); });
#else
  return 0;
#endif
}

// Writes the device's name and compute capability as major * 10 + minor; -1 with retri_error()
// otherwise.
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

// What the library says of its own build, the compiler's architecture flags among it. "" in a CPU
// build, and where the driver is missing, without which it says nothing.
const char* retri_cuda_build() {
#ifdef RETRI_CUDA
  static const std::string text =
      guarded(std::string(), [] { return at::detail::getCUDAHooks().showConfig(); });
  return text.c_str();
#else
  return "";
#endif
}

// Forbids the GPU to round fp32 inputs of convolutions and matrix products to 10 bits, which newer
// ones do for speed.
void retri_full_fp32() {
  at::globalContext().setAllowTF32CuDNN(false);
  at::globalContext().setAllowTF32CuBLAS(false);
}

} // extern "C"
