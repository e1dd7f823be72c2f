"""Product quantisation of weight matrices: short vectors of neighbouring weights become indices into a codebook.

The rows of a matrix [o, i] are divided by their root mean squares and split into vectors of d neighbouring weights,
and each vector is replaced by the nearest of k centres, which k-means finds for this matrix. Stored under its name:

    NAME.codes      uint8, log2(k) bits per vector, packed, most significant bit first
    NAME.codebook   FP16 [k, d]
    NAME.scales     FP32 [o]

Bits per weight: log2(k) / d, plus the codebook and the scales, which reported figures include. At the same rate,
vectors lose less than scalars: for a Gaussian, scalar quantisation has at least the distortion of Lloyd and Max (1960:
0.3634, 0.1175, 0.03454, 0.009497 of the variance at 1 to 4 bits), and no method has less than 2^(-2 bits).

Source: Jegou, Douze and Schmid 2011, "Product quantization for nearest neighbor search", section II; for weights Gong
et al. 2014 (arXiv:1412.6115), section 3.3.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_TRAINING_VECTORS = 1 << 15
"""Vectors of a matrix that k-means is fitted to; more make little difference."""
_ITERATIONS = 30
_CHUNK_VECTORS = 1 << 20
"""Vectors that are coded or packed at a time."""

CODES, CODEBOOK, SCALES = "codes", "codebook", "scales"


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How weights are coded."""

    dimension: int
    """d: number of neighbouring weights of a row that share an index."""
    codebook_size: int
    """k: number of centres, a power of two."""

    @property
    def bits_per_index(self) -> int:
        """log2(k)."""
        return self.codebook_size.bit_length() - 1

    def code_bytes(self, shape: tuple[int, int], /) -> int:
        """Return the size of the indices of a matrix [o, i], in bytes."""
        rows, columns = shape
        return -(-rows * columns // self.dimension * self.bits_per_index // 8)

    def bits_per_weight(self, shape: tuple[int, int], /) -> float:
        """Return the bits per weight of a matrix [o, i], including codebook and scales."""
        rows, columns = shape
        return 8 * (self.code_bytes(shape) + 2 * self.codebook_size * self.dimension + 4 * rows) / (rows * columns)

    def can_code(self, shape: tuple[int, ...], /) -> bool:
        """Return whether rows of the shape divide into whole vectors."""
        return len(shape) == 2 and shape[1] % self.dimension == 0


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A coded matrix."""

    codes: Tensor
    codebook: Tensor
    scales: Tensor


def encode(weight: Tensor, /, *, codec: Codec, seed: int = 0) -> Coded:
    """Return a matrix in coded form.

    Args:
        weight: The matrix, FP32 [o, i].
        codec: The codec.
        seed: Seed of k-means.
    """
    scales = weight.square().mean(dim=1).sqrt()
    unit = weight / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    vectors = unit.reshape(-1, codec.dimension).numpy()
    codebook = _codebook(vectors, codec=codec, seed=seed)
    chunks = [
        _nearest(vectors[start : start + _CHUNK_VECTORS], codebook) for start in range(0, len(vectors), _CHUNK_VECTORS)
    ]
    codes = pack(np.concatenate(chunks), bits=codec.bits_per_index)
    return Coded(codes=torch.from_numpy(codes), codebook=torch.from_numpy(codebook).half(), scales=scales)


def decode(coded: Coded, /, *, shape: tuple[int, int]) -> Tensor:
    """Return the matrix that is coded, FP32 [o, i]."""
    bits = len(coded.codebook).bit_length() - 1
    number = math.prod(shape) // coded.codebook.shape[1]
    indices = torch.from_numpy(unpack(coded.codes.numpy(), bits=bits, number=number))
    return coded.codebook.float()[indices].reshape(shape) * coded.scales[:, None]


def relative_error(weight: Tensor, decoded: Tensor, /) -> float:
    """Return the squared error relative to the squared weights."""
    return float((weight - decoded).square().sum() / weight.square().sum())


def pack(indices: npt.NDArray[np.uint16], /, *, bits: int) -> npt.NDArray[np.uint8]:
    """Return indices below 2^bits as a bit stream, most significant bit first; the last byte is padded with zeros."""
    places = np.arange(bits - 1, -1, -1, dtype=np.uint16)
    step = 8 * (_CHUNK_VECTORS // 8)  # so that every chunk except the last ends on a byte
    chunks = [
        np.packbits((indices[start : start + step, None] >> places & 1).astype(np.uint8))
        for start in range(0, len(indices), step)
    ]
    return np.concatenate(chunks)


def unpack(codes: npt.NDArray[np.uint8], /, *, bits: int, number: int) -> npt.NDArray[np.int64]:
    """Return the `number` indices that `pack` wrote.

    Args:
        codes: The packed bit stream.
        bits: Bits per index.
        number: Number of indices.
    """
    indices = np.empty(number, dtype=np.int64)
    places = 1 << np.arange(bits - 1, -1, -1)
    step = 8 * (_CHUNK_VECTORS // 8)
    for start in range(0, number, step):
        count = min(step, number - start)
        first = start * bits // 8
        part = np.unpackbits(codes[first : first - (-count * bits // 8)], count=count * bits)
        indices[start : start + count] = part.reshape(count, bits) @ places
    return indices


def _codebook(vectors: npt.NDArray[np.float32], *, codec: Codec, seed: int) -> npt.NDArray[np.float32]:
    """Return the centres of k-means, rounded to FP16, [k, d].

    They start at vectors of the matrix (at its quantiles if d is 1), spread by a factor of sqrt((d + 2) / d), which
    gives the density of the optimal centres of a Gaussian, p^(d / (d + 2)).

    Source: Zador 1982, "Asymptotic quantization error of continuous signals", IEEE Trans. Inf. Theory 28(2).
    """
    from scipy.cluster.vq import kmeans2  # type: ignore[import-untyped]

    k, d = codec.codebook_size, codec.dimension
    generator = np.random.default_rng(seed)
    sample = vectors[generator.choice(len(vectors), size=min(len(vectors), _TRAINING_VECTORS), replace=False)]
    spread = np.sort(sample, axis=0) if d == 1 else sample
    start = spread[((np.arange(k) + 0.5) / k * len(spread)).astype(np.int64)] * np.float32(math.sqrt((d + 2) / d))
    with warnings.catch_warnings():  # a small matrix may have fewer vectors than centres
        warnings.filterwarnings("ignore", message="One of the clusters is empty", category=UserWarning)
        centres, _ = kmeans2(sample, start, iter=_ITERATIONS, minit="matrix", missing="warn")
    return np.asarray(centres, dtype=np.float16).astype(np.float32)


def _nearest(vectors: npt.NDArray[np.float32], codebook: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    from scipy.cluster.vq import vq

    return np.asarray(vq(vectors, codebook)[0], dtype=np.uint16)
