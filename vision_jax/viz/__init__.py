"""Pictures: boxes, class maps, contact sheets, confusion matrices and training curves; arrays in, arrays out.

Pictures are uint8 RGB `[H, W, 3]`. Pillow is loaded by the first call that draws and not by the import.
"""

from vision_jax.viz.canvas import legible_scale, save_png
from vision_jax.viz.colours import class_colours, palette
from vision_jax.viz.curves import draw_confusion, draw_curves
from vision_jax.viz.draw import (
  contact_sheet,
  draw_classification,
  draw_detections,
  draw_segmentation,
  save_palette_png,
)
from vision_jax.viz.roles import draw_assignment

__all__ = ('class_colours', 'contact_sheet', 'draw_assignment', 'draw_classification', 'draw_confusion', 'draw_curves',
           'draw_detections', 'draw_segmentation', 'legible_scale', 'palette', 'save_palette_png', 'save_png')
