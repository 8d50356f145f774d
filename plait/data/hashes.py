"""Hashes of whole columns at once: MurmurHash3 (x64, 128 bits; Austin Appleby, public domain) of each cell's bytes, by
numpy over Arrow's buffers."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa

LONG = 1024  # bytes: of longer cells hashing itself is what takes time, and they are hashed one by one
ROWS = 1 << 15  # at once, so that what is held stays in the cache
C1, C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
F1, F2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
MASKS = np.asarray([(1 << 8 * k) - 1 for k in range(9)], np.uint64)  # of the first k bytes of a word


def hash_column(cells: pa.ChunkedArray, seed: int = 0) -> np.ndarray:
    """(n, 2) uint64: a hash for each cell of strings, binary or lists of floats without nulls inside, by its bytes;
    zeros for null, and for nothing else."""
    parts = [_hash_array(chunk, seed) for chunk in cells.chunks]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)


def mixed(hashes: np.ndarray, key: str) -> np.ndarray:
    """(n, 2) uint64 -> (n, 2): each turned into another by a key, so that the sums of several keys' hashes tell all of
    them."""
    a, b = np.frombuffer(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest(), np.uint64)
    out = np.empty_like(hashes)
    for at in range(0, len(hashes), ROWS):
        some = hashes[at : at + ROWS]
        out[at : at + ROWS] = _finished(some[:, 0] + a, some[:, 1] ^ b)
    return out


def codes(hashes: np.ndarray) -> np.ndarray:
    """(n, 2) uint64 -> (n,) int64 from 0: equal where the hashes are, in the order of the hashes."""
    order = np.argsort(hashes[:, 0])
    lined = hashes[order]
    new = np.ones(len(lined), bool)
    differ = lined[1:] != lined[:-1]
    if (differ[:, 1] & ~differ[:, 0]).any():  # halves that are the same, of others: once in 10^19 pairs
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        lined = hashes[order]
        differ = lined[1:] != lined[:-1]
    new[1:] = differ.any(1)
    out = np.empty(len(lined), np.int64)
    out[order] = np.cumsum(new) - 1
    return out


def _hash_array(array: pa.Array, seed: int) -> np.ndarray:
    starts, lengths, data = _bytes_of(array)
    out = np.empty((len(array), 2), np.uint64)
    for at in range(0, len(array), ROWS):
        out[at : at + ROWS] = _murmur(starts[at : at + ROWS], lengths[at : at + ROWS], data, seed)
    out[~out.any(1), 1] = 1
    for i in np.flatnonzero(lengths > LONG).tolist():
        cell = data[starts[i] : starts[i] + lengths[i]]
        out[i] = np.frombuffer(blake2b(cell, digest_size=16, key=str(seed).encode()).digest(), np.uint64)
    if array.null_count:
        out[~array.is_valid().to_numpy(zero_copy_only=False)] = 0
    return out


def _bytes_of(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each cell starts in the bytes of an array, how many it has, and these bytes, with room behind them."""
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    kind, width = (np.int64 if large or pa.types.is_large_list(array.type) else np.int32), 1
    offsets = np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        width = array.type.value_type.bit_width // 8
        held, first = array.values.buffers()[1], array.values.offset
        offsets = offsets + first
    else:
        held = array.buffers()[2]
    offsets *= width
    low, high = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    data = np.zeros(high - low + 16, np.uint8)  # words of 8 bytes are read beyond the last cell
    if held is not None:
        data[: high - low] = np.frombuffer(held, np.uint8)[low:high]
    return offsets[:-1] - low, np.diff(offsets), data


def _murmur(starts: np.ndarray, lengths: np.ndarray, data: np.ndarray, seed: int) -> np.ndarray:
    """(n, 2) uint64 of n cells; of those longer than `LONG` anything."""
    words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))  # one begins at each byte
    h1 = np.full(len(starts), seed, np.uint64)
    h2 = h1.copy()
    lengths = np.where(lengths > LONG, 0, lengths)
    for block in range(int(lengths.max(initial=0)) // 16):
        there = np.flatnonzero(lengths >= 16 * (block + 1))
        at = starts[there] + 16 * block
        a, b = h1[there] ^ _first(words[at]), h2[there]
        a = (_turned(a, 27) + b) * np.uint64(5) + np.uint64(0x52DCE729)
        b ^= _second(words[at + 8])
        b = (_turned(b, 31) + a) * np.uint64(5) + np.uint64(0x38495AB5)
        h1[there], h2[there] = a, b
    at, left = starts + lengths // 16 * 16, lengths % 16
    h1 ^= _first(words[at] & MASKS[np.minimum(left, 8)])
    some = np.flatnonzero(left > 8)
    h2[some] ^= _second(words[at[some] + 8] & MASKS[left[some] - 8])
    return _finished(h1 ^ lengths.astype(np.uint64), h2 ^ lengths.astype(np.uint64))


def _first(k: np.ndarray) -> np.ndarray:
    return _turned(k * C1, 31) * C2


def _second(k: np.ndarray) -> np.ndarray:
    return _turned(k * C2, 33) * C1


def _turned(x: np.ndarray, bits: int) -> np.ndarray:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _finished(h1: np.ndarray, h2: np.ndarray) -> np.ndarray:
    h1 = h1 + h2
    h2 = h2 + h1
    h1, h2 = _avalanche(h1), _avalanche(h2)
    h1 += h2
    return np.stack([h1, h2 + h1], 1)


def _avalanche(k: np.ndarray) -> np.ndarray:
    k = (k ^ (k >> np.uint64(33))) * F1
    k = (k ^ (k >> np.uint64(33))) * F2
    return k ^ (k >> np.uint64(33))
