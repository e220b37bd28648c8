"""One scan from disk, safely: NIfTI-1 or -2, ``.nii`` or ``.nii.gz``.

The file may be broken or hostile, so the header is judged first, from the first few hundred bytes
and before memory is taken for the voxels; what it promises then bounds how much is read and how
much is unpacked. nibabel interprets the header; nothing in a file is executed or unpickled.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import DataContractError
from common.site_files import UNREADABLE, open_inside, plain, relative

MAX_SIDE = 1024  # voxels
MAX_BYTES = 512 * 2**20  # voxels of one scan, as stored and as float32
VOXEL_SIZE_MM = (0.05, 30.0)  # accepted range

_SLACK_BYTES = 2**20  # tolerated behind the last voxel
_MAX_OFFSET = 16 * 2**20  # header extensions
_MAX_DEFLATE_RATIO = 1032  # of the format: https://www.zlib.net/zlib_tech.html
_PIECE_BYTES = 2**16  # unpacked at once
_EXTENDER_BYTES = 4  # behind the header
_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class ScanHeader:
    """What the header of a scan says, once found acceptable.

    Parameters
    ----------
    shape : tuple of int
        Voxels along each of the three stored axes.
    affine : np.ndarray
        Stored voxel index to RAS position in mm, shape (4, 4).
    dtype : np.dtype
        Stored type, with its byte order.
    offset : int
        Bytes before the first voxel.
    slope, inter : float or None
        Scale factors, None when there are none.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: np.dtype
    offset: int
    slope: float | None
    inter: float | None

    @property
    def n_bytes(self) -> int:
        """Size of the unpacked file that the header promises."""
        return self.offset + int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def zooms_mm(self) -> tuple[float, float, float]:
        """Voxel size along each stored axis, in mm."""
        return tuple(float(z) for z in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Direction of each stored axis, such as RAS."""
        import nibabel as nib

        return "".join(nib.aff2axcodes(self.affine))


def load_scan(path: Path, *, site: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load one scan in canonical orientation.

    Parameters
    ----------
    path : Path
        The image, below ``root``.
    site : str
        Name of the site.
    root : Path
        The site's folder, which the path must not leave.

    Returns
    -------
    volume : np.ndarray
        Intensities with scale factors applied, float32, shape (X, Y, Z): x from left to right,
        y from back to front, z from bottom to top.
    affine : np.ndarray
        Voxel index to position in mm, float64, shape (4, 4).

    Raises
    ------
    DataContractError
        The scan cannot be used; the message names the file and, where there is one, the voxel.
    """
    raw = read_scan(path, site=site, root=root)
    return decode_scan(raw, site=site, where=relative(path, root))


def read_scan(path: Path, *, site: str, root: Path) -> bytes:
    """Read a scan's file after judging its header.

    Raises
    ------
    DataContractError
        The file cannot be read, or its header or its size is not acceptable.
    """
    where = relative(path, root)
    with open_inside(path, root=root, site=site) as stream:
        try:
            n_bytes = os.fstat(stream.fileno()).st_size
            if n_bytes > 2 * MAX_BYTES:
                raise DataContractError(site, "a scan's file is too large", where=where)
            header = _read_header(stream, site, where)
            # Deflate adds a few bytes in a thousand at the most.
            limit = header.n_bytes + header.n_bytes // 256 + _SLACK_BYTES
            stream.seek(0)
            # Not up to the limit: a read takes all the memory that it asks for. What lies behind a
            # whole file has no effect.
            return stream.read(min(n_bytes, limit))
        except OSError as error:
            raise DataContractError(site, UNREADABLE, where=where) from error


def scan_header(path: Path, *, site: str, root: Path) -> ScanHeader:
    """Judge a scan's header without reading its voxels.

    Raises
    ------
    DataContractError
        As for `read_scan`.
    """
    where = relative(path, root)
    with open_inside(path, root=root, site=site) as stream:
        try:
            return _read_header(stream, site, where)
        except OSError as error:
            raise DataContractError(site, UNREADABLE, where=where) from error


def decode_scan(raw: bytes, *, site: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Volume and affine of a scan from its file's bytes; see `load_scan`."""
    import nibabel as nib

    header = _read_header(io.BytesIO(raw), site, where)
    unpacked = unpack(raw, header, site, where)
    count = int(np.prod(header.shape))
    stored = np.frombuffer(unpacked, header.dtype, count, header.offset)
    stored = stored.reshape(header.shape, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused just below
        if header.slope is not None:
            stored = nib.volumeutils.apply_read_scaling(stored, header.slope, header.inter)
        volume = stored.astype(np.float32)
    volume = _check_voxels(_with_air(volume), site, where)
    turn = nib.io_orientation(header.affine)
    affine = header.affine @ nib.orientations.inv_ornt_aff(turn, header.shape)
    return nib.apply_orientation(volume, turn), affine


def _read_header(stream: BinaryIO, site: str, where: str) -> ScanHeader:
    """Judge the header at the start of a stream, unpacking no more than it."""
    start = stream.read(2)
    stream.seek(0)
    if not start:
        raise DataContractError(site, "a scan is empty", where=where, got="0 bytes")
    if start == _GZIP:
        with gzip.GzipFile(fileobj=stream, mode="rb") as packed:
            block = take(packed, _HEADER_BYTES, site, where)
    else:
        block = stream.read(_HEADER_BYTES)
    return _parse_header(block, site, where)


def take(packed: gzip.GzipFile, n: int, site: str, where: str) -> bytes:
    """Read at most n bytes of an unpacked file.

    Raises
    ------
    DataContractError
        If the file is cut short or its compression corrupted.
    """
    try:
        return packed.read(n)
    except EOFError as error:
        raise _truncated(site, where) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _corrupted(site, where) from error


def _inflate(raw: bytes, size: int) -> bytes:
    """Unpack ``size`` bytes, and go on to the end of their member, where the checksum stands.

    What follows it is no part of the scan, as what is unpacked beyond the voxels: of that at most
    ``_SLACK_BYTES`` are, after which the checksum is left unread.

    Raises
    ------
    EOFError
        The packed bytes end before.
    zlib.error
        They are damaged.
    """
    parts: list[bytes] = []
    left, beyond, place = size, 0, 0
    packed = None
    # By pieces, since what follows a member is copied at its end, and there may be many members.
    while place < len(raw):
        if packed is None:
            if raw[place : place + 2] != _GZIP:
                break
            packed = zlib.decompressobj(16 + zlib.MAX_WBITS)
        piece = raw[place : place + _PIECE_BYTES]
        out = packed.decompress(piece, left or _PIECE_BYTES)
        place += len(piece) - len(packed.unconsumed_tail) - len(packed.unused_data)
        if left:
            parts.append(out)
            left -= len(out)
        else:
            beyond += len(out)
        if not left and (packed.eof or beyond > _SLACK_BYTES):
            return b"".join(parts)
        if packed.eof:
            packed = None
    if packed is not None:
        raise EOFError
    return b"".join(parts)


def unpack(raw: bytes, header: ScanHeader, site: str, where: str) -> bytes:
    """Unpacked file, bounded by what its header promises."""
    size = header.n_bytes
    if raw[:2] != _GZIP:
        unpacked = raw
    elif size > _MAX_DEFLATE_RATIO * len(raw):
        raise _truncated(site, where)  # known before memory is taken
    else:
        try:
            unpacked = _inflate(raw, size)
        except EOFError as error:
            raise _truncated(site, where) from error
        except zlib.error as error:
            raise _corrupted(site, where) from error
    if len(unpacked) < size:
        raise _truncated(site, where, f"{len(unpacked)} of {size} bytes")
    return unpacked


def _parse_header(block: bytes, site: str, where: str) -> ScanHeader:
    """Interpret and judge a header, of which at most `_HEADER_BYTES` are given."""

    def refuse(problem: str, got: Any = "", remedy: str = "") -> DataContractError:
        return DataContractError(site, problem, where=where, got=plain(str(got)), remedy=remedy)

    header = nibabel_header(block)
    if header is None:
        if len(block) < 348:
            raise _truncated(site, where, f"{len(block)} bytes")
        raise refuse("a scan is not NIfTI", remedy="Accepted: NIfTI-1 and -2 in .nii or .nii.gz")
    shape = _shape(header, refuse)
    try:
        dtype = header.get_data_dtype()
    except Exception as error:  # nibabel raises several kinds for an unknown code
        raise refuse("a scan's data type is unknown", int(header["datatype"])) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        accepted = "Accepted: integers of 8 to 64 bits and floats of 32 or 64"
        raise refuse("a scan's data type is not accepted", dtype, accepted)
    if int(np.prod(shape)) * max(dtype.itemsize, 4) > MAX_BYTES:
        raise refuse(
            "a scan's header promises too many voxels",
            " × ".join(map(str, shape)) + f" of {dtype}",
            f"At most {MAX_BYTES // 2**20} MiB",
        )
    if not int(header["sform_code"]) > 0:  # the affine is made of it then, and else without it
        pixdim = np.asarray(header["pixdim"][1:4], dtype=float)
        if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
            remedy = "Set pixdim[1] to pixdim[3] to the voxel size in mm, or write an sform"
            raise refuse("a scan's voxel size is not positive", pixdim.tolist(), remedy)
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the standard has it: qfac 0 means 1
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=float)
        # 0: the first byte that a file of this kind has for voxels, as other readers take it.
        offset = int(header.get_data_offset()) or int(header["sizeof_hdr"]) + _EXTENDER_BYTES
        slope, inter = header.get_slope_inter()
    except Exception as error:  # nibabel raises several kinds for bad quaternions and factors
        raise refuse("a scan's header contradicts itself", error) from error
    affine[:3] *= _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    if not np.isfinite(affine).all():
        raise refuse("a scan's affine is not finite")
    with np.errstate(over="ignore"):  # what overflows is out of range
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = VOXEL_SIZE_MM
    if not ((sizes >= low) & (sizes <= high)).all():
        got = " × ".join(f"{size:g}" for size in sizes) + " mm"
        raise refuse("a scan's voxel size is out of range", got, f"Accepted: {low} to {high} mm")
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise refuse("a scan's affine is singular")
    if offset < int(header["sizeof_hdr"]):
        raise refuse("a scan's voxels start inside its header", offset)
    if offset > _MAX_OFFSET:
        raise refuse("a scan's header extensions are too long", offset)
    return ScanHeader(shape, affine, dtype, offset, slope, inter)


def nibabel_header(block: bytes) -> Any | None:
    """Header as nibabel understands it, or None when it is no NIfTI of one file."""
    import nibabel as nib

    for kind, magic in ((nib.Nifti1Header, b"n+1"), (nib.Nifti2Header, b"n+2")):
        size = kind.template_dtype.itemsize
        sizes = {size.to_bytes(4, order) for order in ("little", "big")}
        if block[:4] in sizes and len(block) >= size:
            header = kind(block[:size], check=False)
            if bytes(header["magic"]).startswith(magic) and int(header["sizeof_hdr"]) == size:
                return header
    return None


def _shape(header: Any, refuse: Any) -> tuple[int, int, int]:
    """Three dimensions of a volume, after trailing ones are dropped."""
    dims = [int(side) for side in header["dim"]]
    n_dims, sides = dims[0], dims[1:]
    if not 1 <= n_dims <= 7:
        raise refuse("a scan's number of dimensions is absurd", n_dims)
    sides = sides[:n_dims]
    got = " × ".join(map(str, sides))
    if min(sides) < 1 or max(sides) > MAX_SIDE:
        remedy = f"Accepted: 2 to {MAX_SIDE} voxels a side"
        raise refuse("a scan's header promises absurd dimensions", got, remedy)
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    if len(sides) > 3:
        raise refuse("a scan holds more than one volume", got, "Accepted: one 3-D volume")
    if len(sides) < 3 or min(sides) < 2:
        raise refuse("a scan is not a volume", got, "Accepted: one 3-D volume")
    return tuple(sides)


def _with_air(volume: np.ndarray) -> np.ndarray:
    """Volume whose border of NaN, as SPM writes it beyond the field of view, is its darkest value.

    That are voxels of NaN which hang together up to a face of the volume; others stay.
    """
    from scipy import ndimage

    unknown = np.isnan(volume)
    if not unknown.any() or unknown.all():
        return volume
    parts, _ = ndimage.label(unknown)
    faces = [np.take(parts, end, axis=axis) for axis in range(3) for end in (0, -1)]
    border = np.isin(parts, np.setdiff1d(np.concatenate([f.ravel() for f in faces]), 0))
    volume[border] = volume[~unknown].min()
    return volume


def _check_voxels(volume: np.ndarray, site: str, where: str) -> np.ndarray:
    low, high = volume.min(), volume.max()  # a NaN makes both NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        voxel = np.unravel_index(np.argmin(np.isfinite(volume)), volume.shape)
        value = "NaN" if np.isnan(volume[voxel]) else "infinite"
        raise DataContractError(
            site,
            "a scan holds NaN or infinite voxels",
            where=f"{where}, voxel ({', '.join(str(int(i)) for i in voxel)})",
            got=value,
            remedy="Every voxel must be finite",
        )
    if low == high:
        problem = "a scan's voxels are all zero" if low == 0 else "a scan's voxels are all equal"
        raise DataContractError(site, problem, where=where)
    return volume


def _truncated(site: str, where: str, got: str = "") -> DataContractError:
    return DataContractError(
        site, "a scan is truncated", where=where, got=got, remedy="Copy the file again"
    )


def _corrupted(site: str, where: str) -> DataContractError:
    return DataContractError(
        site, "a scan's compression is corrupted", where=where, remedy="Copy the file again"
    )
