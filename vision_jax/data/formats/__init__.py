"""Readers of labelled data: one file a format, each with `read(split, *, path, ...) -> records.Labelled`.

A reader looks at labels alone; it opens no image but for the header of one whose size the labels do not state. What it
cannot use becomes a finding with file and line, or annotation id, and is left out of the records; what makes reading
impossible is a ValueError at once.
"""

from __future__ import annotations

from collections.abc import Callable

from vision_jax.data.formats import coco, image_folder, mask_folder, object_masks, voc, yolo
from vision_jax.data.records import Labelled

READERS: dict[str, Callable[..., Labelled]] = {
    'coco': coco.read,
    'identities': image_folder.identities,
    'image_folder': image_folder.read,
    'mask_folder': mask_folder.read,
    'object_masks': object_masks.read,
    'voc': voc.read,
    'yolo': yolo.read,
}
