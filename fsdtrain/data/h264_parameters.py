"""Where an H.264 stream says its chroma samples lie, which FFmpeg's Python binding does not tell.

Reads the sequence parameter set of an Annex B stream (ITU-T H.264, sections 7.3.2.1.1 and E.1.1)
up to that place. It decodes no picture.
"""

from fsdtrain.errors import DataError

# By chroma_sample_loc_type (figure E-1): where the first chroma sample lies, (down, right) in
# pixels from the picture's upper left corner. 0 holds where nothing is said.
CHROMA_SITES = ((1.0, 0.5), (1.0, 1.0), (0.5, 0.5), (0.5, 1.0), (1.5, 0.5), (1.5, 1.0))

_START = b"\0\0\1"
_PARAMETER_SET = 7  # nal_unit_type
_PROFILES_WITH_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_EXPLICIT_ASPECT = 255


def chroma_site(data: bytes, *, where: str) -> tuple[float, float]:
    """(down, right) of the first chroma sample; see CHROMA_SITES.

    Args:
        data: one Annex B stream, which a decoder has found to be in order.
        where: names the shard, clip and camera in errors.

    Raises:
        DataError: it has no parameter set, or a broken one.
    """
    try:
        location = _chroma_location(_Bits(_parameter_set(data)))
        return CHROMA_SITES[location]
    except (IndexError, ValueError) as error:
        raise DataError(f"{where}: its sequence parameter set is missing or broken") from error


def _parameter_set(data: bytes) -> bytes:
    start = data.index(_START) + len(_START)
    while data[start] & 0x1F != _PARAMETER_SET:
        start = data.index(_START, start) + len(_START)
    end = data.find(_START, start)
    # 00 00 03 stands for 00 00, so that no start code is inside a unit.
    return data[start + 1 : None if end < 0 else end].replace(b"\0\0\3", b"\0\0")


class _Bits:
    """Reads bits from the front; IndexError behind the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def number(self, num_bits: int = 1) -> int:
        value = 0
        for _ in range(num_bits):
            byte, bit = divmod(self._place, 8)
            value = value * 2 + (self._data[byte] >> (7 - bit) & 1)
            self._place += 1
        return value

    def golomb(self) -> int:
        num_zeros = 0
        while not self.number():
            num_zeros += 1
        return (1 << num_zeros) - 1 + self.number(num_zeros)

    def signed_golomb(self) -> int:
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -code // 2


def _chroma_location(bits: _Bits) -> int:
    profile = bits.number(8)
    bits.number(16)  # constraints, level
    bits.golomb()  # id
    if profile in _PROFILES_WITH_FORMAT:
        _skip_format(bits)
    bits.golomb()  # length of frame numbers
    _skip_picture_order(bits)
    bits.golomb()  # reference frames
    bits.number()
    bits.golomb(), bits.golomb()  # size in macroblocks
    if not bits.number():  # fields are allowed
        bits.number()
    bits.number()
    if bits.number():  # cropped
        for _ in range(4):
            bits.golomb()
    has_usability_information = bits.number()
    return _location_in_usability_information(bits) if has_usability_information else 0


def _skip_format(bits: _Bits) -> None:
    chroma_format = bits.golomb()
    if chroma_format == 3:
        bits.number()
    bits.golomb(), bits.golomb()  # bit depths
    bits.number()
    if bits.number():  # scaling matrices
        for matrix in range(12 if chroma_format == 3 else 8):
            if bits.number():
                _skip_scaling_list(bits, 16 if matrix < 6 else 64)


def _skip_scaling_list(bits: _Bits, length: int) -> None:
    scale = 8
    for _ in range(length):
        scale = (scale + bits.signed_golomb()) % 256
        if scale == 0:  # the rest repeats the last one
            return


def _skip_picture_order(bits: _Bits) -> None:
    kind = bits.golomb()
    if kind == 0:
        bits.golomb()
    elif kind == 1:
        bits.number()
        bits.golomb(), bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()


def _location_in_usability_information(bits: _Bits) -> int:
    if bits.number() and bits.number(8) == _EXPLICIT_ASPECT:
        bits.number(32)
    if bits.number():  # overscan
        bits.number()
    if bits.number():  # video signal: format, range, and maybe primaries, transfer and matrix
        bits.number(4)
        if bits.number():
            bits.number(24)
    return bits.golomb() if bits.number() else 0
