"""Weights without torch: read them, write them, find them by name, and carry them into our models and back.

>>> from vision_jax import pretrained
>>> published = pretrained.find_published('resnet50:DEFAULT')
>>> published.name, published.top1, published.data_options()['canvas']
('resnet50:IMAGENET1K_V2', 80.858, (224, 224))

| function | what it does |
|---|---|
| `load(source, model)` | a model's variables from a file or the name of published weights, and a `Report` |
| `create(source)` | the same, with the model that the published weights belong to |
| `from_torch(model, state_dict)`, `to_torch(model, variables)` | a torch state dict to variables and back |
| `from_variables(model, variables)` | variables of ours, fitted to a model with another head |
| `from_darknet(model, path)`, `to_darknet(path, model, variables)` | darknet's `.weights` files to variables and back |
| `body_of(model)`, `fill_body(model, variables, body, report)` | a classifier's weights in the body of a detector |
| `read_state_dict(path)` | NumPy arrays out of `.pth`, `.pt`, `.bin`, `.safetensors`; no code of the file runs |
| `write_pth(path, state_dict)`, `write_safetensors(...)` | files that torch loads |
| `published()`, `find_published(name)`, `download(entry)` | what is published, how accurate, with what preprocessing |
"""

from __future__ import annotations

from vision_jax.pretrained.bodies import body_of, fill_body
from vision_jax.pretrained.catalogue import Published, cache_folder, categories, download, find_published, published
from vision_jax.pretrained.convert import Report, create, from_torch, from_variables, load, locate, to_torch
from vision_jax.pretrained.darknet import from_darknet, to_darknet
from vision_jax.pretrained.readers import StateDict, read_state_dict
from vision_jax.pretrained.writers import write_pth, write_safetensors

__all__ = ['Report', 'load', 'create', 'from_torch', 'from_variables', 'to_torch', 'locate', 'from_darknet',
           'to_darknet', 'body_of', 'fill_body', 'StateDict', 'read_state_dict', 'write_pth', 'write_safetensors',
           'Published', 'published', 'find_published', 'categories', 'download', 'cache_folder']
