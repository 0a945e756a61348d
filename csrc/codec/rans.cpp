#include "codec/rans.h"

#include <array>

#include "base/errors.h"

namespace pyquant {
namespace {

constexpr size_t kStates = 4;
constexpr uint32_t kLow = 1u << 16;  // the least state, and where the encoder begins
constexpr size_t kStateBytes = 4, kWordBytes = 2;

// What a value of the low bits of a state decodes to. Frequencies reach 2^16, so one less is kept.
struct Slot {
  uint16_t symbol, frequency_less_1, offset;
};

uint32_t read_word(const uint8_t* in) { return in[0] | static_cast<uint32_t>(in[1]) << 8; }

uint32_t read_state(const uint8_t* in) { return read_word(in) | read_word(in + 2) << 16; }

std::vector<Slot> make_slots(int32_t first, std::span<const uint32_t> starts) {
  std::vector<Slot> slots(starts.back());
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const uint32_t frequency = starts[i + 1] - starts[i];
    for (uint32_t offset = 0; offset < frequency; ++offset) {
      slots[starts[i] + offset] = {static_cast<uint16_t>(first + i), static_cast<uint16_t>(frequency - 1),
                                   static_cast<uint16_t>(offset)};
    }
  }
  return slots;
}

}  // namespace

void rans_encode(std::span<const uint16_t> symbols, int32_t first, std::span<const uint32_t> starts, int precision,
                 std::vector<uint8_t>& out) {
  std::array<uint32_t, kStates> states;
  states.fill(kLow);
  std::vector<uint16_t> words;  // the last to be read first
  for (size_t i = symbols.size(); i-- > 0;) {
    uint32_t& x = states[i % kStates];
    const uint32_t start = starts[symbols[i] - first], frequency = starts[symbols[i] - first + 1] - start;
    if (x >= static_cast<uint64_t>(frequency) << (32 - precision)) {
      words.push_back(static_cast<uint16_t>(x));
      x >>= 16;
    }
    x = (x / frequency << precision) + x % frequency + start;
  }
  const auto append = [&](uint32_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) out.push_back(static_cast<uint8_t>(value >> (8 * i)));
  };
  for (const uint32_t x : states) append(x, kStateBytes);
  for (size_t i = words.size(); i-- > 0;) append(words[i], kWordBytes);
}

int64_t rans_decode(std::span<const uint8_t> coded, int32_t first, std::span<const uint32_t> starts, int precision,
                    std::span<uint16_t> symbols) {
  if (coded.size() < kStates * kStateBytes) throw Error("it ends before its states");
  std::array<uint32_t, kStates> states;
  for (size_t j = 0; j < kStates; ++j) {
    states[j] = read_state(coded.data() + j * kStateBytes);
    if (states[j] < kLow) throw Error("a state of it is too small");
  }
  const std::vector<Slot> slots = make_slots(first, starts);
  const Slot* const table = slots.data();
  const uint32_t mask = (1u << precision) - 1;
  const uint8_t* in = coded.data() + kStates * kStateBytes;
  const uint8_t* const end = coded.data() + coded.size();
  const auto step = [&](uint32_t x, uint16_t& symbol) {
    const Slot slot = table[x & mask];
    symbol = slot.symbol;
    return (slot.frequency_less_1 + 1u) * (x >> precision) + slot.offset;
  };
  size_t i = 0;
  // Where a word is left for each state, it may be looked at whether it is used or not: no branch depends on data.
  for (; i + kStates <= symbols.size() && end - in >= static_cast<int64_t>(kStates * kWordBytes); i += kStates) {
    for (size_t j = 0; j < kStates; ++j) {
      const uint32_t x = step(states[j], symbols[i + j]);
      const bool refill = x < kLow;
      const uint32_t refilled = x << 16 | read_word(in);
      states[j] = refill ? refilled : x;
      in += refill ? kWordBytes : 0;
    }
  }
  for (; i < symbols.size(); ++i) {
    uint32_t& x = states[i % kStates];
    x = step(x, symbols[i]);
    if (x >= kLow) continue;
    if (end - in < static_cast<int64_t>(kWordBytes)) throw Error("it ends before its last symbol");
    x = x << 16 | read_word(in);
    in += kWordBytes;
  }
  for (const uint32_t x : states) {
    if (x != kLow) throw Error("its states do not end where they must");
  }
  return in - coded.data();
}

}  // namespace pyquant
