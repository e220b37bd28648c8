"""Which masks are known of a site's images: drawn again of phantoms, or from a user's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config.run_config import RunConfig
from common.data.phantoms.dermatoscopes import ARTEFACTS
from common.errors import ConfigError, DataContractError
from common.studies.study import Study

LESION, REGIONS = "lesion", "regions"
SHORTCUTS = ARTEFACTS  # what no diagnosis should rest on
_ENDINGS = ("_segmentation.png", ".png")  # of ISIC 2018 task 1, and a plain one

Masks = Mapping[str, NDArray[np.bool_]]


def known_masks(
    study: Study,
    config: RunConfig,
    site: str,
    data: Path,
    files: Sequence[Path],
    shape: tuple[int, ...],
    folder: Path | None,
) -> Masks:
    """Return the masks of a site's images, in the geometry in which the classifier sees them.

    Parameters
    ----------
    study : Study
    config : RunConfig
    site : str
    data : Path
        The site's folder.
    files : sequence of N Path
        The images' files.
    shape : tuple of int
        Of one image as the classifier sees it, channels first.
    folder : Path, optional
        A user's masks, one PNG a picture; in place of the phantoms' mask of the lesion.

    Returns
    -------
    dict of str to ndarray of bool, shape (N, *space)
        Empty where nothing is known. A mask without a place is one that is not known, or not there.

    Raises
    ------
    ConfigError
        The user's masks are of volumes, or none of these images has one, or one cannot be read.
    """
    if study.images.view != "picture":
        if folder is not None:
            raise ConfigError(f"--masks is for pictures; study '{study.name}' has volumes")
        return _of_brains(study, config, data, len(files), shape)
    found = _of_lesions(data, files, shape[-1])
    if folder is not None:
        found = {**found, LESION: _of_folder(study, site, files, shape[-1], folder)}
    return found


def _of_lesions(data: Path, files: Sequence[Path], size: int) -> Masks:
    from common.data.phantoms.lesion_masks import MASKS, cohort_seed, picture_masks, picture_named

    seed = cohort_seed(data)
    if seed is None:
        return {}
    drawn = [picture_masks(picture_named(path.name, seed), seed, size) for path in files]
    return {name: np.stack([one[name] for one in drawn]) for name in MASKS}


def _of_brains(
    study: Study, config: RunConfig, data: Path, count: int, shape: tuple[int, ...]
) -> Masks:
    """Return the regions that differ between the sexes, of simulated scans, where sex is asked."""
    from common.data.phantoms.known import holds_phantoms
    from common.imaging.phantom_regions import regional_mask
    from common.tasks.classifier_networks import heights_mm

    if study.label.column != "sex" or not holds_phantoms(data):
        return {}
    mask = regional_mask(shape[-1], heights_mm(config))
    return {REGIONS: np.broadcast_to(mask, (count, *mask.shape))}


def _of_folder(
    study: Study, site: str, files: Sequence[Path], size: int, folder: Path
) -> NDArray[np.bool_]:
    from common.data.photographs import read_photograph

    if not folder.is_dir():
        raise ConfigError(f"--masks {folder}: there is no such folder")
    found, read = np.zeros((len(files), size, size), bool), 0
    for k, file in enumerate(files):
        names = (folder / f"{file.stem}{ending}" for ending in _ENDINGS)
        path = next((one for one in names if one.is_file()), None)
        if path is None:
            continue
        try:  # resized and cropped as the picture is
            pixels = read_photograph(
                path, size=size, channels=1, fit=study.images.fit, root=folder, site=site
            )
        except DataContractError as error:
            raise ConfigError(
                f"--masks: {error}", public=f"--masks: a mask cannot be used: {error.problem}"
            ) from None
        found[k] = pixels[..., 0] > pixels.max() / 2  # 0 and 1 will do as well as 0 and 255
        read += 1
    if not read:
        wanted = " or ".join(f"NAME{ending}" for ending in _ENDINGS)
        raise ConfigError(
            f"--masks {folder}: none of the {len(files)} pictures of site '{site}' has a mask "
            f"there. Accepted is {wanted} for a picture NAME.jpg",
            public=f"--masks: no picture of site '{site}' has a mask",
        )
    return found
