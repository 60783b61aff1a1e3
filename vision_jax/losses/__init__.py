"""Pure losses: import one and use it; they need nothing but jax.

Element-wise losses return un-reduced arrays. Composite ones return a dict of `Term`, a sum and what to divide it by:
`sum(weight[k] * term.total / max(term.count, term.floor))` is the number to minimise, with totals and counts summed
over devices first where there are several. Options are keyword-only, and everything may stand under jit, vmap and grad.
"""

from vision_jax.losses.boxes import ciou_loss, diou_loss, giou_loss, iou_loss, l1_loss, smooth_l1_loss
from vision_jax.losses.classification import focal_loss, sigmoid_cross_entropy, softmax_cross_entropy
from vision_jax.losses.detr import detr_loss
from vision_jax.losses.embedding import (
  arcface_loss,
  batch_hard_triplet_loss,
  contrastive_loss,
  semi_hard_triplet_loss,
  triplet_loss,
)
from vision_jax.losses.faster_rcnn import ProposalSamples, mask_loss, roi_loss, rpn_loss, sample_proposals
from vision_jax.losses.fcos import fcos_loss
from vision_jax.losses.retinanet import retinanet_loss
from vision_jax.losses.segmentation import pixel_cross_entropy, segmentation_loss, soft_dice, tversky
from vision_jax.losses.ssd import ssd_loss
from vision_jax.losses.style import content_loss, gram_matrix, style_loss, style_transfer_loss, total_variation
from vision_jax.losses.targets import Roles
from vision_jax.losses.yolo_targets import YoloAssignment, yolov3_assign
from vision_jax.losses.yolov1 import YOLOV1_WEIGHTS, yolov1_assign, yolov1_loss
from vision_jax.losses.yolov2 import YOLOV2_WEIGHTS, yolov2_loss
from vision_jax.losses.yolov3 import yolov3_loss

__all__ = [
    'ProposalSamples',
    'Roles',
    'YOLOV1_WEIGHTS',
    'YOLOV2_WEIGHTS',
    'YoloAssignment',
    'arcface_loss',
    'batch_hard_triplet_loss',
    'ciou_loss',
    'content_loss',
    'contrastive_loss',
    'detr_loss',
    'diou_loss',
    'fcos_loss',
    'focal_loss',
    'giou_loss',
    'gram_matrix',
    'iou_loss',
    'l1_loss',
    'mask_loss',
    'pixel_cross_entropy',
    'retinanet_loss',
    'roi_loss',
    'rpn_loss',
    'sample_proposals',
    'segmentation_loss',
    'semi_hard_triplet_loss',
    'sigmoid_cross_entropy',
    'smooth_l1_loss',
    'soft_dice',
    'softmax_cross_entropy',
    'ssd_loss',
    'style_loss',
    'style_transfer_loss',
    'total_variation',
    'triplet_loss',
    'tversky',
    'yolov1_assign',
    'yolov1_loss',
    'yolov2_loss',
    'yolov3_assign',
    'yolov3_loss',
]
