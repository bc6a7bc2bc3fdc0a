"""ICC profiles of a few hundred bytes, put together by hand."""

import itertools
import struct

import numpy as np

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)  # white points (x, y)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # red, green and blue (x, y)
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50_XYZ = np.array([0.9642, 1.0, 0.8249])


def _xyz(point: tuple[float, float]) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1, (1 - x - y) / y])


def to_xyz(primaries: tuple[tuple[float, float], ...], white: tuple[float, float]) -> np.ndarray:
    """The matrix (3, 3) from linear RGB to XYZ, as seen in the light D50 (Bradford), the reference of ICC."""
    colorants = np.stack([_xyz(point) for point in primaries], axis=1)
    colorants = colorants * np.linalg.solve(colorants, _xyz(white))
    cones = np.diag((BRADFORD @ D50_XYZ) / (BRADFORD @ _xyz(white)))
    return np.linalg.inv(BRADFORD) @ cones @ BRADFORD @ colorants


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _point(xyz: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*xyz)


def _curve(gamma: float | tuple[float, ...]) -> bytes:
    if isinstance(gamma, tuple):
        return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(*gamma)
    return b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)


def _profile(device: bytes, colours: bytes, reference: bytes, tags: dict[bytes, bytes]) -> bytes:
    start, table, values = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(values), len(value))
        values += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(values), b"test", 0x02400000, device, colours, reference)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*D50_XYZ) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + values


def rgb_profile(
    primaries: tuple[tuple[float, float], ...] = DISPLAY_P3,
    white: tuple[float, float] = D65,
    gamma: float | tuple[float, ...] = SRGB_CURVE,
) -> bytes:
    """A profile of a matrix and curves; by default Display P3."""
    red, green, blue = to_xyz(primaries, white).T
    tags = {
        name: b"XYZ " + bytes(4) + _fixed(*xyz) for name, xyz in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))
    }
    tags |= {name: _curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {b"wtpt": _point(D50_XYZ), **tags})


def grey_profile(gamma: float) -> bytes:
    tags = {b"wtpt": _point(D50_XYZ), b"kTRC": _curve(gamma)}
    return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def cmyk_profile(ink: tuple[int, int, int]) -> bytes:
    """A printer whose black ink makes the lightness 0, and whose other inks, alone or together, all look like `ink`
    (L, a, b)."""
    corners = [
        (0, 128, 128) if black else (round(ink[0] * 2.55), ink[1] + 128, ink[2] + 128) if any(inks) else (255, 128, 128)
        for *inks, black in itertools.product((0, 1), repeat=4)
    ]
    linear = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += linear * 4 + bytes(value for corner in corners for value in corner) + linear * 3
    tags = {b"wtpt": _point(D50_XYZ), b"A2B0": table}
    return _profile(b"prtr", b"CMYK", b"Lab ", tags)
