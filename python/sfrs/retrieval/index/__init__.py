"""An index of photographs: what they look like and where they were taken, in one directory.

    index.sqlite                 settings, and one line per image; what makes the directory an index
    network.safetensors          the network all descriptors come from
    whitening.safetensors        its whitening, if there is one
    descriptors-G.float32        (or .float16) a descriptor per image, row after row, nothing else
    quarters-G.float16           quarter VLADs per image, if the index keeps them for re-ranking by regions
    pq-G.faiss, ivf-G.faiss      compressed descriptors of the kinds pq, ivf and disk, made from the others
    lock                         held by whoever writes

G is the generation (`store`) that wrote the file. `Index` builds and searches an index,
`Builder` also removes from one. Where a folder on one machine is not enough, Milvus holds the images
(`milvus`), and the same calls with an address in place of a path build and search it; several processes
describe for a server together (`shards`).
"""

from sfrs.retrieval.index.adding import ALONE, PATIENCE, Adding, Change
from sfrs.retrieval.index.build import Builder
from sfrs.retrieval.index.opened import Index, builder_class, summarise

__all__ = ["ALONE", "PATIENCE", "Adding", "Builder", "Change", "Index", "builder_class", "summarise"]
