"""Train and evaluate image localisation by retrieval with SFRS on fused operators."""
