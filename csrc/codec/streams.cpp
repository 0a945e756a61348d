#include "codec/streams.h"

#include <algorithm>

#include "base/errors.h"
#include "codec/frequencies.h"
#include "codec/packing.h"
#include "codec/rans.h"

namespace pyquant {
namespace {

enum Kind : uint8_t { kPacked = 0, kEntropyCoded = 1 };
constexpr size_t kTableHeader = 6;  // bytes before the levels

// How codes stand in symbols.
struct Grouping {
  int bits;     // of a code
  int members;  // codes of a symbol
  int width() const { return bits * members; }
};

Grouping grouping_for(int bits) { return {bits, std::max(1, 8 / bits)}; }

// Where symbols are whole, they may be taken for codes themselves, which are packed as the codes in them are.
void join_codes(int& bits, int64_t& count) {
  const Grouping grouping = grouping_for(bits);
  if (count % grouping.members != 0) return;
  bits = grouping.width();
  count /= grouping.members;
}

std::vector<uint16_t> symbols_of(std::span<const uint16_t> codes, const Grouping& grouping) {
  std::vector<uint16_t> symbols(ceil_div(static_cast<int64_t>(codes.size()), grouping.members));
  for (size_t i = 0; i < codes.size(); ++i) {
    symbols[i / grouping.members] |= static_cast<uint16_t>(codes[i] << (i % grouping.members * grouping.bits));
  }
  return symbols;
}

void codes_of(std::span<const uint16_t> symbols, const Grouping& grouping, std::span<uint16_t> codes) {
  const uint32_t mask = (1u << grouping.bits) - 1;
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = symbols[i / grouping.members] >> (i % grouping.members * grouping.bits) & mask;
  }
  const size_t last = codes.size() - (symbols.size() - 1) * grouping.members;  // codes of the last symbol
  if (symbols.back() >> (last * grouping.bits)) throw Error("its last symbol is not filled with zeros");
}

// The stream of `symbols`, entropy-coded.
std::vector<uint8_t> encode_symbols(std::span<const uint16_t> symbols, int width) {
  const int precision = precision_for(width);
  std::vector<int64_t> counts(size_t{1} << width);
  for (const uint16_t symbol : symbols) ++counts[symbol];
  const LevelTable table = fit_table(counts, precision);
  const size_t size = table.levels.size(), last = table.first + size - 1;
  std::vector<uint8_t> out(1 + kTableHeader + packed_bytes(size, table.level_bits));
  out[0] = kEntropyCoded;
  out[1] = static_cast<uint8_t>(table.first);
  out[2] = static_cast<uint8_t>(table.first >> 8);
  out[3] = static_cast<uint8_t>(last);
  out[4] = static_cast<uint8_t>(last >> 8);
  out[5] = static_cast<uint8_t>(table.mantissa | table.level_bits << 4);
  out[6] = static_cast<uint8_t>(table.lowest);
  pack_codes(table.levels, table.level_bits, std::span(out).subspan(1 + kTableHeader));
  rans_encode(symbols, table.first, table.starts(precision), precision, out);
  return out;
}

// Read the table at the beginning of `coded`, and return how many bytes it takes.
size_t read_table(std::span<const uint8_t> coded, int width, LevelTable& table) {
  if (coded.size() < kTableHeader) throw Error("it ends before its table");
  table.first = coded[0] | coded[1] << 8;
  const int32_t last = coded[2] | coded[3] << 8;
  table.mantissa = coded[4] & 15;
  table.level_bits = coded[4] >> 4;
  table.lowest = coded[5];
  if (table.first > last || last >= 1 << width) throw Error("its table is of symbols that do not exist");
  if (table.mantissa > kMaxMantissaBits || table.level_bits < 1 || table.level_bits > kMaxLevelBits) {
    throw Error("its table has levels of an impossible kind");
  }
  const auto levels = coded.subspan(kTableHeader);
  const auto bytes = static_cast<size_t>(packed_bytes(last - table.first + 1, table.level_bits));
  if (levels.size() < bytes) throw Error("it ends within its table");
  table.levels.resize(last - table.first + 1);
  unpack_codes(levels, table.level_bits, table.levels);
  return kTableHeader + bytes;
}

// Read the stream of `codes` at the beginning of `coded`, and return how many bytes it takes.
size_t decode_stream(std::span<const uint8_t> coded, const Grouping& grouping, std::span<uint16_t> codes,
                     std::vector<uint16_t>& symbols) {
  if (coded.empty()) throw Error("it is missing");
  const auto contents = coded.subspan(1);
  if (coded[0] == kPacked) {
    const auto bytes = static_cast<size_t>(packed_bytes(codes.size(), grouping.bits));
    if (contents.size() < bytes) throw Error("it ends within its packed codes");
    unpack_codes(contents, grouping.bits, codes);
    return 1 + bytes;
  }
  if (coded[0] != kEntropyCoded || codes.empty()) throw Error("it is of an unknown kind");
  const int precision = precision_for(grouping.width());
  LevelTable table;
  const size_t bytes = read_table(contents, grouping.width(), table);
  const std::span<uint16_t> target = grouping.members == 1 ? codes : std::span(symbols);
  const int64_t words = rans_decode(contents.subspan(bytes), table.first, table.starts(precision), precision, target);
  if (grouping.members > 1) codes_of(symbols, grouping, codes);
  return 1 + bytes + words;
}

}  // namespace

std::vector<uint8_t> encode_codes(std::span<const uint8_t> packed, int bits, int64_t models, int64_t count) {
  join_codes(bits, count);
  std::vector<uint16_t> codes(checked_multiply(models, count));
  unpack_codes(packed, bits, codes);
  const Grouping grouping = grouping_for(bits);
  std::vector<uint8_t> out;
  for (int64_t m = 0; m < models; ++m) {
    const auto own = std::span<const uint16_t>(codes).subspan(m * count, count);
    const auto fixed = static_cast<size_t>(packed_bytes(count, bits));
    if (count > 0) {
      const auto symbols =
          grouping.members == 1 ? std::vector<uint16_t>(own.begin(), own.end()) : symbols_of(own, grouping);
      const std::vector<uint8_t> coded = encode_symbols(symbols, grouping.width());
      if (coded.size() < 1 + fixed) {
        out.insert(out.end(), coded.begin(), coded.end());
        continue;
      }
    }
    out.push_back(kPacked);
    out.resize(out.size() + fixed);
    pack_codes(own, bits, std::span(out).last(fixed));
  }
  return out;
}

void decode_codes(std::span<const uint8_t> coded, int bits, int64_t models, int64_t count, std::span<uint8_t> packed) {
  join_codes(bits, count);
  const Grouping grouping = grouping_for(bits);
  std::vector<uint16_t> codes(checked_multiply(models, count));
  std::vector<uint16_t> symbols(grouping.members == 1 ? 0 : ceil_div(count, grouping.members));
  size_t at = 0;
  for (int64_t m = 0; m < models; ++m) {
    try {
      at += decode_stream(coded.subspan(at), grouping, std::span(codes).subspan(m * count, count), symbols);
    } catch (const Error& error) {
      throw Error("stream " + std::to_string(m) + " of " + std::to_string(models) + ": " + error.what());
    }
  }
  if (at != coded.size()) throw Error(std::to_string(coded.size() - at) + " bytes after the last stream");
  pack_codes(codes, bits, packed);
}

}  // namespace pyquant
