"""Pure losses: import one and use it; they need nothing but jax.

Element-wise losses return un-reduced arrays. Composite ones return a dict of `Term`, a sum and what to divide it by:
`sum(weight[k] * term.total / max(term.count, term.floor))` is the number to minimise, with totals and counts summed
over devices first where there are several. Options are keyword-only, and everything may stand under jit, vmap and grad.
"""

from vision_jax.losses.boxes import ciou_loss, diou_loss, giou_loss, iou_loss
from vision_jax.losses.classification import sigmoid_cross_entropy, softmax_cross_entropy
from vision_jax.losses.segmentation import pixel_cross_entropy, segmentation_loss, soft_dice
from vision_jax.losses.yolov3 import YoloAssignment, yolov3_assign, yolov3_loss

__all__ = [
    'YoloAssignment',
    'ciou_loss',
    'diou_loss',
    'giou_loss',
    'iou_loss',
    'pixel_cross_entropy',
    'segmentation_loss',
    'sigmoid_cross_entropy',
    'soft_dice',
    'softmax_cross_entropy',
    'yolov3_assign',
    'yolov3_loss',
]
