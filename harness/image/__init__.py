"""Guest images: packages, root file systems, kernels, and the content-addressed cache."""
