"""What makes images and text ready for a vision-language model, as its checkpoint defines it."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from quantaudit.common.logs import compiled_prints_aside
from quantaudit.errors import ModelError
from quantaudit.model.loading.checkpoint import Checkpoint
from quantaudit.model.loading.classes import takes_images
from quantaudit.model.loading.load import explained, load_config, quiet


def load_processor(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """What makes images and text ready for this model, as the checkpoint defines it. Raises ModelError."""
    quiet()
    config = load_config(checkpoint, trust_remote_code=trust_remote_code)
    if checkpoint.gguf or not takes_images(config):
        raise ModelError(
            "the corpus has images, and this model takes none",
            where=str(checkpoint.folder),
            hint="give a corpus of text, or the folder of a vision-language model",
        )
    if not any((checkpoint.folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise ModelError(
            "the corpus has images, and the checkpoint has no image processor (preprocessor_config.json)",
            where=str(checkpoint.folder),
            hint="give a complete checkpoint, or a corpus of text",
        )
    with explained(checkpoint, "image processor", trust_remote_code=trust_remote_code), compiled_prints_aside():
        try:
            processor = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
        except ImportError:
            if is_torchvision_available() or type(config) not in PROCESSOR_MAPPING:
                raise
            processor = _without_video(PROCESSOR_MAPPING[type(config)]).from_pretrained(checkpoint.folder)
    if getattr(processor, "image_processor", None) is None:
        raise ModelError("the checkpoint's processor takes no images", where=str(checkpoint.folder))
    return processor


def _without_video(processor: Any) -> Any:
    """A processor class that leaves out its video part, which alone needs torchvision; images go through Pillow."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in super(subclass, cls).get_attributes() if "video" not in name]

    subclass: Any = type(processor.__name__, (processor,), {"get_attributes": classmethod(get_attributes)})
    return subclass
