"""Arrays in messages: base64 of little-endian values, without copies beyond the one decoding makes.

In the processor's vector instructions (pybase64, of libbase64): a tenth of the time of the standard library, and
rows, vectors and examples are mostly this.
"""

from __future__ import annotations

from binascii import Error as Base64Error

import numpy as np
from numpy.typing import NDArray
from pybase64 import b64decode, b64encode_as_string

__all__ = [
    "LARGEST_LEARNED",
    "learnable",
    "pack_float16",
    "pack_float32",
    "pack_float64",
    "unpack_float16",
    "unpack_float32",
    "unpack_float64",
]


LARGEST_LEARNED = 1e6
"""What is larger was not learned: sums and squares of hundreds of such products stay finite in float32. One that does
not makes scores that compare with nothing, and compiled searches among them need not end."""


def learnable(*arrays: NDArray[np.floating]) -> bool:
    """Whether all numbers are finite and none is larger than :data:`LARGEST_LEARNED`."""
    return all(bool((np.abs(values) <= LARGEST_LEARNED).all()) for values in arrays)


def pack_float16(values: NDArray[np.floating]) -> str:
    """Base64 of ``values`` (any shape, C order) as little-endian float16."""
    return b64encode_as_string(np.ascontiguousarray(values, dtype="<f2").tobytes())


def unpack_float16(text: str) -> NDArray[np.float16]:
    """The float16 vector in ``text``, shape (n,), read-only.

    Raises:
        ValueError: when it is not base64 or not whole float16 values.
    """
    return np.frombuffer(_bytes(text), dtype="<f2")


def pack_float32(values: NDArray[np.floating]) -> str:
    """Base64 of ``values`` (any shape, C order) as little-endian float32."""
    return b64encode_as_string(np.ascontiguousarray(values, dtype="<f4").tobytes())


def unpack_float32(text: str) -> NDArray[np.float32]:
    """The float32 vector in ``text``, shape (n,), read-only.

    Raises:
        ValueError: when it is not base64 or not whole float32 values.
    """
    return np.frombuffer(_bytes(text), dtype="<f4")


def pack_float64(values: NDArray[np.floating]) -> str:
    """Base64 of ``values`` (any shape, C order) as little-endian float64."""
    return b64encode_as_string(np.ascontiguousarray(values, dtype="<f8").tobytes())


def unpack_float64(text: str) -> NDArray[np.float64]:
    """The float64 vector in ``text``, shape (n,), read-only.

    Raises:
        ValueError: when it is not base64 or not whole float64 values.
    """
    return np.frombuffer(_bytes(text), dtype="<f8")


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except Base64Error as error:
        raise ValueError(f"not base64: {error}") from error
