"""Codecs: one per transfer syntax, each frame by itself.

`codecs` maps a Transfer Syntax UID to its `Codec`; another package adds one through an entry point.
"""

from imaging.codecs import htj2k, j2k, jpeg, jpegls, native, rle
from imaging.codecs.codec import Codec, Decoded
from imaging.plugins import Registry

__all__ = ["Codec", "Decoded", "codecs"]

codecs: Registry[Codec] = Registry("imaging.codecs")

for _codec in (
    *native.CODECS,
    rle.LOSSLESS,
    jpeg.BASELINE,
    jpeg.EXTENDED,
    jpeg.LOSSLESS,
    jpeg.LOSSLESS_SV1,
    jpegls.LOSSLESS,
    jpegls.NEAR_LOSSLESS,
    j2k.LOSSLESS,
    j2k.LOSSY,
    htj2k.LOSSLESS,
    htj2k.LOSSLESS_RPCL,
    htj2k.LOSSY,
):
    codecs.register(_codec.uid)(_codec)
