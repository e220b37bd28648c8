"""The groups of a run configuration, each a table of TOML: ``run``, ``data``, ``model``, ….

A value that is left open (0, "auto" or "") takes what suits the task and the study; see
:mod:`common.config.run_config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from common.extensions import ACCEPTED, LONGEST, NAME
from common.settings import NonNegative, Settings
from common.site_names import SITE_NAME

CLASSIFIERS = ("auto", "small", "efficientnet-b0", "efficientnet-b2", "slices", "gan-features")
_ABSOLUTE = {
    "accepted": "an absolute path or nothing, since Flower runs the app in the folder where its "
    "SuperLink was started, not in yours"
}


class Group(Settings):
    """Base of a group: its refusals name keys as the run config has them."""

    what: ClassVar[str] = "run config"


def sorted_names(value: str) -> str:
    """Return names of sites, with blanks between them, sorted: alike, if they mean the same.

    Raises
    ------
    ValueError
        One is no site's name, or stands twice.
    """
    names = value.split()
    if len(set(names)) < len(names) or not all(map(SITE_NAME.fullmatch, names)):
        raise ValueError("no names")  # put into words by accepted_values
    return " ".join(sorted(names))


def _require_absolute(value: str) -> str:
    if value and not Path(value).is_absolute():
        raise ValueError("relative path")  # put into words by accepted_values
    return value


class Run(Group):
    """How long, from which seed, on what, between whom."""

    prefix: ClassVar[str] = "run."

    rounds: int = Field(
        0, ge=0, le=100_000, description="communication rounds; 0: as many as suit the task"
    )
    seed: int = Field(0, ge=0, le=2**53, description="decides every random draw of the run")
    threads: int = Field(
        1, ge=1, le=256, description="CPU threads a site computes with: part of the result's bits"
    )
    device: Literal["auto", "cpu"] = Field(
        "auto", description="auto: the GPU share that Ray grants, else the CPU; cpu: never a GPU"
    )
    evaluate_every: int = Field(
        0, ge=0, le=100_000, description="rounds between two validations; 0: as suits the task"
    )
    output_dir: str = Field(
        "",
        description="absolute folder for run folders; empty: runs/ in the user's data folder",
        json_schema_extra=_ABSOLUTE,
    )
    min_sites: int = Field(
        2, ge=1, le=10_000, description="the server starts when this many sites are connected"
    )
    site_nodes: str = Field(
        "",
        description="which SuperNode each site is, as in 'north:1234 south:5678', where SuperNodes "
        "are registered with keys; others are not asked",
        json_schema_extra={
            "accepted": "pairs SITE:NODE with blanks between them, as in 'north:1234 south:5678', "
            "each site and each node once, or nothing"
        },
    )
    connect_timeout: float = Field(
        600.0, gt=0, le=1e6, description="seconds that the server waits for run.min-sites"
    )
    round_timeout: float = Field(
        3600.0, gt=0, le=1e6, description="seconds that sites may take to answer an order"
    )
    min_replies: int = Field(
        0,
        ge=0,
        le=10_000,
        description="sites whose answers make a round; others may be away or fail; 0: every site "
        "must answer, and one that fails ends the run",
    )
    grace_seconds: float = Field(
        60.0,
        ge=0,
        le=1e6,
        description="seconds that other sites are waited for when run.min-replies have answered",
    )
    round_retries: int = Field(
        3,
        ge=0,
        le=1000,
        description="how often a round with fewer answers than run.min-replies is repeated",
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the sites that train in a round, drawn from run.seed"
    )
    patience: int = Field(
        0,
        ge=0,
        le=100_000,
        description="validations in a row without a better run.stop-metric that end the training; "
        "0: all rounds are done",
    )
    stop_metric: str = Field(
        "loss",
        max_length=100,
        description="what run.patience looks at: a validation metric of all sites together",
    )
    id: str = Field(
        "",
        pattern=r"^([0-9][A-Za-z0-9-]{0,63})?$",
        description="what the run is called: its folder, and what sites keep for it; empty: "
        "Flower's number of the run",
        json_schema_extra={"accepted": "up to 64 letters, digits and '-', the first a digit"},
    )
    resume: bool = Field(
        False, description="go on with the run of that id from its last whole round"
    )

    _absolute = field_validator("output_dir")(_require_absolute)

    @field_validator("site_nodes")
    @classmethod
    def _pairs(cls, value: str) -> str:
        nodes_of_sites(value)
        return value


class Data(Group):
    """Which images, how large, and in whose intensities."""

    prefix: ClassVar[str] = "data."

    cohort_dir: str = Field(
        "",
        description="simulation: absolute folder with one folder a hospital; empty: a simulated "
        "cohort of the study in the user's cache",
        json_schema_extra=_ABSOLUTE,
    )
    size: int = Field(
        0,
        ge=0,
        le=512,
        description="pixels or voxels a side that a classifier sees; 0: the study's",
        json_schema_extra={"accepted": "a whole number from 16 up to 512, or 0 for the study's"},
    )
    harmonize: Literal["none", "landmarks"] = Field(
        "none",
        description="landmarks: a site maps its images' intensities to a scale that all sites "
        "share, by landmarks of its own training images that stay there (Nyul and Udupa 1999)",
    )

    unlabelled: str = Field(
        "",
        description="classification: names of sites, with blanks between them, whose labels for "
        "training and validation are not used, as if the site had none",
        json_schema_extra={"accepted": "names of sites with blanks between them, or nothing"},
    )

    classes: str = Field(
        "",
        description="simulation, generation: names of classes, with commas between them, of which "
        "alone images are learned from and judged by; empty: all",
        json_schema_extra={"accepted": "names of the study's classes with commas between them"},
    )

    _absolute = field_validator("cohort_dir")(_require_absolute)

    @property
    def unlabelled_sites(self) -> tuple[str, ...]:
        """The sites that ``unlabelled`` names, sorted."""
        return tuple(sorted(self.unlabelled.split()))

    _names = field_validator("unlabelled")(sorted_names)

    @property
    def chosen_classes(self) -> tuple[str, ...]:
        """The classes that ``classes`` names."""
        return tuple(filter(None, (name.strip() for name in self.classes.split(","))))

    @field_validator("size")
    @classmethod
    def _large_enough(cls, value: int) -> int:
        if 0 < value < 16:
            raise ValueError("too small")
        return value


class Model(Group):
    """Networks, and what judges generated pictures."""

    prefix: ClassVar[str] = "model."

    classifier: str = Field(
        "auto",
        max_length=LONGEST,
        pattern=f"^({'|'.join(CLASSIFIERS)}|{NAME.pattern})$",
        description="small: GroupNorm CNN for CPUs; efficientnet-…: MONAI's; slices: CNN of axial "
        "slices; gan-features: a discriminator's features, then a linear layer; auto: small, or "
        "slices where the study's view is slices; or a function of your own, "
        "package.module:function",
        json_schema_extra={
            "accepted": f"one of {', '.join(map(repr, CLASSIFIERS))}, or {ACCEPTED}"
        },
    )
    warm_start: str = Field(
        "",
        description="absolute path, at the server, of what the run begins with: the folder of a "
        "run or model of the same classifier; or, for efficientnet-… of pictures, the safetensors "
        "file of a pretrained network",
        json_schema_extra=_ABSOLUTE,
    )
    trains: Literal["all", "head"] = Field(
        "all", description="what learns: the whole network, or its last linear layer alone"
    )
    normalization: Literal["auto", "group", "frozen"] = Field(
        "auto",
        description="efficientnet-… of pictures: group: GroupNorm; frozen: the BatchNorm of "
        "pretrained networks, with their statistics; auto: frozen where model.warm-start names a "
        ".safetensors file, else group",
    )
    gan_checkpoint: str = Field(
        "",
        description="gan-features: absolute folder, at the server, of the run or training whose "
        "discriminator it begins with; empty: an untrained one",
        json_schema_extra=_ABSOLUTE,
    )
    heights: Literal["generated", "whole-head"] = Field(
        "generated",
        description="slices and gan-features: the axial slices of a head that they see, the five "
        "that generators make, or twelve from the temporal lobes to the crown",
    )
    adapt: Literal["auto", "none", "center", "statistics", "threshold"] = Field(
        "auto",
        description="how a site fits a model to its own training images, of which nothing leaves: "
        "center takes their mean out of the features, all classes counting as much; statistics "
        "normalizes by their mean and SD (AdaBN, arXiv 1603.04779); threshold shifts the decision "
        "where it suits them best; auto: as the study says",
    )
    gan: str = Field("tiny-32-federated", description="generation: preset of the StyleGAN2-ADA")
    gan_changes: str = Field(
        "",
        description="generation: keys of the preset that differ, as in "
        "'r1-gamma=0.1 label-kinds=sex,site'",
    )
    extractor: str = Field(
        "auto",
        description="generation: what judges pictures, fedscan-brain, fedscan-skin or an absolute "
        "path at each site; auto: as suits the study",
    )

    _absolute = field_validator("gan_checkpoint", "warm_start")(_require_absolute)


class Training(Group):
    """How a site trains in a round."""

    prefix: ClassVar[str] = "training."

    local_steps: int = Field(
        0, ge=0, le=1_000_000, description="optimizer steps a site and round; 0: as suits the task"
    )
    local_epochs: int = Field(
        0,
        ge=0,
        le=10_000,
        description="times that a site shows all of its images in a round, instead of local-steps "
        "of equal number at all sites; 0: local-steps decides",
    )
    batch_size: int = Field(
        0, ge=0, le=4096, description="images an optimizer step at a site; 0: as suits the task"
    )
    learning_rate: NonNegative = Field(
        0.0, le=10.0, description="AdamW's peak, cosine-decayed; 0: as suits the study"
    )
    weight_decay: NonNegative = Field(0.3, le=10.0, description="AdamW's decoupled weight decay")
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="learning rate of each layer as a share of that of the layer above; the last "
        "linear layer has the whole (arXiv 1801.06146)",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a label that is spread over all classes (arXiv 1512.00567, section "
        "7), so that correctly classified images keep a gradient",
    )
    loss: Literal["cross-entropy", "focal", "logit-adjusted"] = Field(
        "cross-entropy",
        description="focal: images with a confident, correct prediction count less (arXiv "
        "1708.02002); logit-adjusted: rarer classes need a larger margin (arXiv 2007.07314)",
    )
    focal_gamma: NonNegative = Field(
        2.0, le=10.0, description="focal: how much less; 0 is the cross-entropy"
    )
    logit_tau: NonNegative = Field(
        1.0,
        le=10.0,
        description="logit-adjusted: factor of the logarithm of a class's share of the site's "
        "images; 0 is the cross-entropy",
    )
    balance: Literal["auto", "weights", "batches", "none"] = Field(
        "auto",
        description="what keeps a site's mix of classes from becoming a prior: weights in the "
        "loss, or batches with all classes equally often; none: nothing; auto: weights for two "
        "classes, else batches, and none beside logit-adjusted",
    )
    absent_classes: Literal["keep", "mask"] = Field(
        "keep",
        description="mask: classes of which a site has no training image are no part of its "
        "softmax, so that it does not unlearn them (as in FedRS, Li and Zhan 2021, KDD)",
    )
    augment: Literal["all", "none"] = Field(
        "all", description="what training varies of an image: all that suits it, or nothing"
    )


class Strategy(Group):
    """How sites learn together."""

    prefix: ClassVar[str] = "strategy."

    name: str = Field(
        "auto",
        min_length=1,
        max_length=LONGEST,
        description="how sites learn together: one of `fedscan strategies`, or a class of your "
        "own, package.module:Class; auto: as the study says, in generation fedavg",
    )
    options: str = Field(
        "",
        max_length=10_000,
        description="the strategy's own, as in 'mu=0.1'; see fedscan strategies",
    )
    weighting: Literal["auto", "images", "uniform"] = Field(
        "auto",
        description="a site's weight in the average: its training images, or one site one vote; "
        "auto: images, in generation uniform",
    )
    server_learning_rate: NonNegative = Field(
        0.0,
        le=10.0,
        description="length of the server's step along the average; 0: as suits the task: 1, in "
        "generation the root of the number of sites",
    )
    most_share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="of two or more sites' votes in the average, the largest share that one may "
        "have, however many images it says it has; 1: any",
    )
    most_norm: NonNegative = Field(
        10.0,
        le=1e6,
        description="length of a site's update in medians of the other sites', from which on it "
        "is shortened; 0: any",
    )
    share: Literal["both", "generator"] = Field(
        "both", description="generation: both networks travel, or each site keeps its discriminator"
    )


def nodes_of_sites(pairs: str) -> dict[str, int]:
    """Read Flower's number of each site's SuperNode from pairs SITE:NODE.

    Raises
    ------
    ValueError
        A pair is not understood, or a site or node stands twice.
    """
    found: dict[str, int] = {}
    for pair in pairs.split():
        site, _, node = pair.partition(":")
        known = site in found or int(node or 0) in found.values()
        if not SITE_NAME.fullmatch(site) or not node.isdecimal() or known:
            raise ValueError(pair)  # put into words by accepted_values
        found[site] = int(node)
    return found
