"""The entropy coder once more, slow and readable: decodes streams bit by bit as their description says."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = PACKED, ENTROPY_CODED = 0, 1
STATES, LOW = 4, 1 << 16


@dataclass
class Reader:
    """Bytes that are taken from the front, as little-endian numbers or packed ones."""

    data: bytes
    at: int = 0

    def number(self, size: int) -> int:
        assert self.at + size <= len(self.data)
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def packed(self, count: int, bits: int) -> list[int]:
        whole = self.number(-(-count * bits // 8))
        return [whole >> (i * bits) & ((1 << bits) - 1) for i in range(count)]


def grouping(bits: int) -> tuple[int, int]:
    """Return how many codes a symbol has, and its bits."""
    members = max(1, 8 // bits)
    return members, members * bits


def precision_for(width: int) -> int:
    return min(max(width + 4, 12), 16)


def weight(v: int, mantissa: int) -> int:
    step = 1 << mantissa
    return v if v < step else (step + v % step) << (v // step - 1)


def read_frequencies(reader: Reader, width: int) -> dict[int, int]:
    """Return the frequency of each symbol that occurs; they add up to 2 ** precision."""
    first, last = reader.number(2), reader.number(2)
    kind, lowest = reader.number(1), reader.number(1)
    mantissa, level_bits = kind & 15, kind >> 4
    levels = reader.packed(last - first + 1, level_bits)
    weights = {first + i: weight(lowest + level - 1, mantissa) for i, level in enumerate(levels) if level}
    if not any(weights.values()):
        weights = dict.fromkeys(weights, 1)
    rest, total = (1 << precision_for(width)) - len(weights), sum(weights.values())
    frequencies, before, starts = {}, 0, 0
    for number, (symbol, own) in enumerate(weights.items(), 1):
        before += own
        end = number + before * rest // total
        frequencies[symbol], starts = end - starts, end
    return frequencies


def read_symbols(reader: Reader, count: int, width: int) -> list[int]:
    precision = precision_for(width)
    frequencies = read_frequencies(reader, width)
    assert sum(frequencies.values()) == 1 << precision
    owner = [symbol for symbol, frequency in frequencies.items() for _ in range(frequency)]
    starts = {symbol: owner.index(symbol) for symbol in frequencies}
    states = [reader.number(4) for _ in range(STATES)]
    symbols = []
    for i in range(count):
        x = states[i % STATES]
        low = x % (1 << precision)
        symbol = owner[low]
        x = frequencies[symbol] * (x >> precision) + low - starts[symbol]
        if x < LOW:
            x = x << 16 | reader.number(2)
        states[i % STATES] = x
        symbols.append(symbol)
    assert states == [LOW] * STATES
    return symbols


def read_codes(data: bytes, bits: int, models: int, count: int) -> list[list[int]]:
    """Return the codes of each stream."""
    reader, result = Reader(data), []
    members, width = grouping(bits)
    for _ in range(models):
        if reader.number(1) == PACKED:
            result.append(reader.packed(count, bits))
            continue
        symbols = read_symbols(reader, -(-count // members), width)
        codes = [symbol >> (i * bits) & ((1 << bits) - 1) for symbol in symbols for i in range(members)]
        assert not any(codes[count:])
        result.append(codes[:count])
    assert reader.at == len(data)
    return result
