// Declarations only: c10d objects hold such contexts, and shim.cpp calls only getPair. See
// rendezvous/store.h.
#pragma once
#include <chrono>
#include <exception>
#include <memory>
#include <string>

namespace gloo {
namespace transport {
// One connection. gloo itself calls signalExceptionExternal on all connections when a wait times
// out.
class Pair {
 public:
  virtual ~Pair() = 0;
};

namespace tcp {
class Pair : public ::gloo::transport::Pair {
 public:
  // The return type must be declared: it is passed as a hidden parameter, which shifts the others.
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
