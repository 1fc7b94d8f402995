// Only declared: our code holds c10d objects that hold such contexts, and never calls one. See rendezvous/store.h.
#pragma once
#include <chrono>

namespace gloo {
class Context {
 public:
  virtual ~Context();
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
