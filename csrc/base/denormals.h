// Numbers below 2^-126 count as zero on a thread: denormal ones take processors many times as long as others.
//
// They need not be anybody's: lanes behind the last pixel hold what other steps, of bytes or of pieces, left there.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pyquant {

// While an object of this lives.
class DenormalsAreZero {
 public:
  DenormalsAreZero() : before_(control()) { set_control(before_ | kZero); }
  ~DenormalsAreZero() { set_control(before_); }
  DenormalsAreZero(const DenormalsAreZero&) = delete;
  DenormalsAreZero& operator=(const DenormalsAreZero&) = delete;

 private:
#if defined(__x86_64__)
  using Control = uint32_t;
  static constexpr Control kZero = 0x8040;  // of results, and of operands
  static Control control() { return _mm_getcsr(); }
  static void set_control(Control value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Control = uint64_t;
  static constexpr Control kZero = 1u << 24;
  static Control control() {
    Control value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set_control(Control value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
#else
  using Control = uint32_t;
  static constexpr Control kZero = 0;
  static Control control() { return 0; }
  static void set_control(Control) {}
#endif

  Control before_;
};

}  // namespace pyquant
