"""A rendered city: data sets nobody has to download.

`layout` draws the plan, `textures`, `sprites` and `ground` paint it, `scene` gathers them, `views` says where
pictures are taken, `renderer` takes them, `write` stores them in the field's folder format.
"""
