// The exception that the core throws for input it cannot use; bindings turn it into pyquant.errors.InputError.
#pragma once

#include <stdexcept>
#include <string>

namespace pyquant {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what) : std::runtime_error(what) {}
};

}  // namespace pyquant
