#include "bindings/codec.h"

#include "bindings/convert.h"
#include "codec/packing.h"
#include "codec/streams.h"

namespace pyquant {

using namespace py::literals;

namespace {

// The bytes of the packed codes of all streams.
int64_t checked_bytes(int bits, int64_t models, int64_t count) {
  if (bits < 1 || bits > kMaxCodeBits) throw Error("codes have 1 to 16 bits, not " + std::to_string(bits));
  return packed_bytes(checked_multiply(models, count), bits);
}

}  // namespace

void register_codec(py::module_& m) {
  m.def(
      "encode_codes",
      [](const Array<uint8_t>& packed, int bits, int64_t models, int64_t count) {
        if (packed.size() != checked_bytes(bits, models, count)) throw Error("packed codes: their number is off");
        std::vector<uint8_t> coded;
        {
          const py::gil_scoped_release no_gil;
          coded = encode_codes(as_span(packed), bits, models, count);
        }
        return Array<uint8_t>(static_cast<py::ssize_t>(coded.size()), coded.data());
      },
      "packed"_a, "bits"_a, "models"_a, "count"_a, "A stream for each of `models` times `count` packed codes.");

  m.def(
      "decode_codes",
      [](const Array<uint8_t>& coded, int bits, int64_t models, int64_t count) {
        Array<uint8_t> packed(checked_bytes(bits, models, count));
        const std::span<uint8_t> out{packed.mutable_data(), static_cast<size_t>(packed.size())};
        {
          const py::gil_scoped_release no_gil;
          decode_codes(as_span(coded), bits, models, count, out);
        }
        return packed;
      },
      "coded"_a, "bits"_a, "models"_a, "count"_a, "The packed codes of the streams that encode_codes() made.");
}

}  // namespace pyquant
