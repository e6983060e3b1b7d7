"""Which family serves which pipeline, by the name of its class."""

from __future__ import annotations

from typing import Any

from .diffusion_transformers import DiTFamily, PixArtFamily, PixArtSigmaFamily
from .family import Family
from .flux import FluxFamily
from .stable_diffusion_3 import StableDiffusion3Family
from .unets import LatentConsistencyFamily, StableDiffusionFamily, StableDiffusionXLFamily

#: By the name of a class of diffusers; its subclasses are served too.
FAMILIES: dict[str, type[Family]] = {
    "DiTPipeline": DiTFamily,
    "FluxPipeline": FluxFamily,
    "LatentConsistencyModelPipeline": LatentConsistencyFamily,
    "PixArtAlphaPipeline": PixArtFamily,
    "PixArtSigmaPipeline": PixArtSigmaFamily,
    "StableDiffusion3Pipeline": StableDiffusion3Family,
    "StableDiffusionPipeline": StableDiffusionFamily,
    "StableDiffusionXLPipeline": StableDiffusionXLFamily,
}


def known_class(pipeline: Any) -> str:
    """The name under which a pipeline is in ``FAMILIES``.

    Raises:
        ValueError: no family serves it.
    """
    for kind in type(pipeline).__mro__:
        if kind.__name__ in FAMILIES:
            return kind.__name__
    unconditional = type(getattr(pipeline, "unet", None)).__name__ == "UNet2DModel"
    other = ": DenoisingProblem.from_diffusers takes unconditional ones" if unconditional else ""
    raise ValueError(
        f"pipeline must be one of {sorted(FAMILIES)}; got {type(pipeline).__name__}{other}"
    )
