"""NumPy code for the host: boxes, COCO's run lengths and polygons, and the clean-up of predicted masks.

These functions run on NumPy arrays, in original pixels, and are outside the jit and vmap rules. Import the modules:
`from vision_jax.host import boxes, masks, polygons, rle`.
"""

from vision_jax.host import boxes, masks, polygons, rle

__all__ = ('boxes', 'masks', 'polygons', 'rle')
