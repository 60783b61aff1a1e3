"""NumPy code for the host: box conversion and IoU, and the clean-up of predicted masks.

These functions run on NumPy arrays, in original pixels, and are outside the jit and vmap rules. Import the modules:
`from vision_jax.host import boxes, masks`.
"""

from vision_jax.host import boxes, masks

__all__ = ('boxes', 'masks')
