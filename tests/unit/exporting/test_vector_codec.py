"""The vector codec against what theory says of a Gaussian, and its stated size against its real one."""

import numpy as np
import pytest
import torch

from chinchilla_ds.exporting.vector_codec import Codec, decode, encode, pack, relative_error, unpack

LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
"""Least mean squared error of a scalar quantiser of a unit Gaussian by bits: Max 1960, table I."""


def gaussian(rows=256, columns=512):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * 0.02 * torch.rand(rows, 1, generator=generator).add(0.1)


@pytest.mark.parametrize("bits", LLOYD_MAX)
def test_single_numbers_lose_what_lloyd_and_max_say(bits):
    weight = gaussian()
    coded = encode(weight, codec=Codec(dimension=1, codebook_size=2**bits))
    assert relative_error(weight, decode(coded, shape=(256, 512))) == pytest.approx(LLOYD_MAX[bits], rel=0.015)


@pytest.mark.parametrize(("dimension", "size"), [(2, 16), (2, 64), (2, 256), (4, 256)])
def test_vectors_lose_less_than_numbers_and_more_than_shannon_allows(dimension, size):
    weight = gaussian()
    codec = Codec(dimension=dimension, codebook_size=size)
    error = relative_error(weight, decode(encode(weight, codec=codec), shape=(256, 512)))
    bits = codec.bits_per_index // dimension
    assert 2.0 ** (-2 * bits) < error < LLOYD_MAX[bits]


@pytest.mark.parametrize(("dimension", "size"), [(1, 8), (2, 64), (4, 256)])
def test_stated_bits_are_those_that_are_stored(dimension, size):
    codec = Codec(dimension=dimension, codebook_size=size)
    coded = encode(gaussian(), codec=codec)
    stored = 8 * sum(part.nbytes for part in (coded.codes, coded.codebook, coded.scales)) / (256 * 512)
    assert codec.bits_per_weight((256, 512)) == stored
    assert stored == pytest.approx(codec.bits_per_index / dimension, rel=0.1)


def test_a_matrix_of_few_values_comes_back_exactly():
    values = torch.tensor([[1.0, -1.0], [0.5, 0.25]]).repeat(8, 8)
    coded = encode(values, codec=Codec(dimension=2, codebook_size=16))
    assert relative_error(values, decode(coded, shape=(16, 16))) < 1e-6


def test_rows_of_zeros_stay_zeros():
    weight = gaussian(8, 32)
    weight[3] = 0
    decoded = decode(encode(weight, codec=Codec(dimension=2, codebook_size=16)), shape=(8, 32))
    assert torch.equal(decoded[3], torch.zeros(32))


@pytest.mark.parametrize("bits", range(1, 13))
def test_packed_indices_come_back(bits):
    indices = np.random.default_rng(bits).integers(0, 2**bits, size=1003).astype(np.uint16)
    packed = pack(indices, bits=bits)
    assert len(packed) == -(-1003 * bits // 8)
    assert np.array_equal(unpack(packed, bits=bits, number=1003), indices)
