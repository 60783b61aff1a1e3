"""Pure, parameter-free functions on arrays: import one and use it; they need nothing but jax.

Every one of them may stand under jit, vmap and grad, takes its options by keyword, computes in float32, and gives
finite values and gradients on degenerate boxes and whatever invalid slots hold.
"""

from vision_jax.ops.boxes import (
    box_area,
    ciou,
    clip_boxes,
    cxcywh_to_xywh,
    cxcywh_to_xyxy,
    diou,
    giou,
    iou,
    pairwise_iou,
    xywh_to_cxcywh,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from vision_jax.ops.decode import yolov3_decode
from vision_jax.ops.nms import class_aware_nms, nms
from vision_jax.ops.yolo import MAX_LOG_SCALE, YoloSlots, flatten_levels, yolo_decode, yolo_encode, yolo_slots

__all__ = [
    'MAX_LOG_SCALE',
    'YoloSlots',
    'box_area',
    'ciou',
    'class_aware_nms',
    'clip_boxes',
    'cxcywh_to_xywh',
    'cxcywh_to_xyxy',
    'diou',
    'flatten_levels',
    'giou',
    'iou',
    'nms',
    'pairwise_iou',
    'xywh_to_cxcywh',
    'xywh_to_xyxy',
    'xyxy_to_cxcywh',
    'xyxy_to_xywh',
    'yolo_decode',
    'yolo_encode',
    'yolo_slots',
    'yolov3_decode',
]
