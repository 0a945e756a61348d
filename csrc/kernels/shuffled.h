// Tables of bytes that fit registers: how their codebooks, entries and places lie in memory.
#pragma once

#include <cstdint>

namespace pyquant {

// Codebooks of few centroids, whose products with the inputs of a block at one pixel are a table of bytes: a register
// holds four tables of 16 entries, or two of 32.
struct ShuffledCodebooks {
  const uint32_t* quads;   // [M, dim, entries] quads of weights, zero behind the last centroid
  const uint32_t* bounds;  // [M, families(), dim]: the largest of a few centroids, byte by byte, without signs
  int64_t entries;         // of a table: 16 or 32
  int64_t codebooks;       // M, of which together() is a multiple
  int64_t dim;             // quads of a block, up to kMostShuffledQuads
  int64_t blocks;          // J
  int64_t shift;           // at least 1; with it no scale is above kMostShuffledScale

  // Positions whose tables are in a register, a group; there may be some behind the last, whose tables are zero.
  constexpr int64_t together() const { return kShuffledBytes / entries; }
  constexpr int64_t groups() const { return (blocks * codebooks + together() - 1) / together(); }

  // Of centroids that are alike, so that their largest product is little below their bound. Tables of 16 entries are
  // mostly those of large blocks, for which bounds take longer, and gain less.
  constexpr int64_t families() const { return families_of(entries); }
  static constexpr int64_t families_of(int64_t entries) { return entries == 16 ? 2 : 8; }

  static constexpr int64_t kShuffledBytes = 64;
};
constexpr int64_t kMostShuffled = 32;  // centroids
constexpr int64_t kMostShuffledQuads = 6;
constexpr int64_t kMostShuffledScale = 127;

// Where the entry of a centroid is in the tables of a group, of its i-th position.
constexpr uint8_t shuffled_place(int64_t entries, int64_t i, int64_t centroid) {
  const int64_t sixteen = i * entries / 16 + centroid / 16, at = centroid % 16;
  return static_cast<uint8_t>(at / 4 * 16 + sixteen / 2 * 8 + at % 4 * 2 + sixteen % 2);
}

// Where the place of output o at position q is among the places of all: [outputs / V, groups, 16, V / 16, together()],
// V outputs being `entries`. An output's places of a group lie side by side, with those of the 16th after it.
constexpr int64_t place_at(const ShuffledCodebooks& books, int64_t o, int64_t q) {
  const int64_t together = books.together(), halves = books.entries / 16;
  const int64_t vector = o / books.entries * books.groups() + q / together;
  return ((vector * 16 + o % 16) * halves + o % books.entries / 16) * together + q % together;
}

// What multiplying with it divides by a scale, in mulhrs: round(2^14 / scale).
constexpr int32_t shuffled_factor(int32_t scale) { return ((1 << 15) / scale + 1) / 2; }

constexpr int64_t kShuffledPixels = 64;  // of a tile

// For 16 of them: tables, scales and factors of all groups, and a sum of scales.
constexpr int64_t shuffle8_bytes(int64_t groups) { return 16 * (groups * (64 + 8 + 8) + 4); }

}  // namespace pyquant
