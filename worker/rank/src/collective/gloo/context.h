// Only declared: our code holds c10d objects that hold such contexts, and calls getPair alone. See
// rendezvous/store.h.
#pragma once
#include <chrono>
#include <exception>
#include <memory>
#include <string>

namespace gloo {
namespace transport {
// One connection; signalExceptionExternal is what gloo itself calls on all of them when a wait
// takes too long.
class Pair {
 public:
  virtual ~Pair() = 0;
};

namespace tcp {
class Pair : public ::gloo::transport::Pair {
 public:
  // Its return value takes a hidden parameter: leaving it out would shift the others.
  std::exception_ptr signalExceptionExternal(const std::string& message);
};
} // namespace tcp
} // namespace transport

class Context {
 public:
  virtual ~Context();
  std::unique_ptr<transport::Pair>& getPair(int rank);
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
